//! The command line.

use std::time::Duration;

use polytape::gpu::KernelTier;

pub const HELP: &str = "\
drivers compile [--adapter PART] [--all] [--seconds N] [--chip NAME] [--out FILE]
    Compiles the kernels of training steps and of sampling with the driver of an adapter, in every tier that it may be given, and prints
    what the driver tells of each. The adapter is the first GPU, or the one with this index or part of a name.
    --all       every kernel in every combination of its constants, in every tier
    --seconds   time limit for compiling, in seconds
    --chip      the name of the chip in tables; default: the adapter's
    --out       writes a report for `drivers table`
drivers steps [--adapter PART] [--tier TIER] [--out FILE]
    Runs a training step of every published size that fits the memory, in every tier, or one, on a driver that executes nothing.
    --out       adds what became of them to a report of `drivers compile`
drivers table FILE...
    Prints the tables of docs/drivers.md. Fails if a kernel of a step spills, or anything was refused.
";

/// What to do.
pub enum Command {
    Help,
    Compile(Arguments),
    Steps(Arguments),
    /// A child of `compile`.
    Worker(Arguments),
    /// A child of `steps`.
    StepsOf(Arguments),
    /// From these reports.
    Table(Vec<String>),
}

/// Of all commands but `table`.
pub struct Arguments {
    pub adapter: Option<String>,
    pub all: bool,
    pub tier: Option<KernelTier>,
    /// Number of the first step.
    pub from: usize,
    pub time: Duration,
    pub chip: Option<String>,
    pub out: Option<String>,
}

/// Reads the arguments after the program's name.
pub fn parse(mut words: impl Iterator<Item = String>) -> Result<Command, String> {
    match words.next().as_deref() {
        None | Some("help" | "--help" | "-h") => Ok(Command::Help),
        Some("table") => match words.collect::<Vec<_>>() {
            paths if paths.is_empty() => Err("table: no files given, reports of `drivers compile --out` expected".into()),
            paths => Ok(Command::Table(paths)),
        },
        Some("compile") => read(words, &["--adapter", "--all", "--seconds", "--chip", "--out"]).map(Command::Compile),
        Some("worker") => read(words, &["--adapter", "--all"]).map(Command::Worker),
        Some("steps-of") => read(words, &["--adapter", "--tier", "--from"]).map(Command::StepsOf),
        Some("steps") => read(words, &["--adapter", "--tier", "--out"]).map(Command::Steps),
        Some(other) => Err(format!("found `{other}`, expected compile, steps, table or help")),
    }
}

/// Reads options, of which a command knows some.
fn read(mut words: impl Iterator<Item = String>, known: &[&str]) -> Result<Arguments, String> {
    let mut arguments = Arguments { adapter: None, all: false, tier: None, from: 0, time: NO_LIMIT, chip: None, out: None };
    while let Some(word) = words.next() {
        if !known.contains(&&*word) {
            return Err(format!("found `{word}`, expected {}", known.join(", ")));
        }
        let mut value = || words.next().ok_or_else(|| format!("{word}: a value expected after it"));
        match &*word {
            "--all" => arguments.all = true,
            "--adapter" => arguments.adapter = Some(value()?),
            "--chip" => arguments.chip = Some(value()?),
            "--from" => {
                let text = value()?;
                arguments.from = text.parse().map_err(|_| format!("--from: found `{text}`, expected a whole number"))?;
            }
            "--out" => arguments.out = Some(value()?),
            "--tier" => arguments.tier = Some(value()?.parse().map_err(|error: polytape::Error| error.to_string())?),
            _ => {
                let text = value()?;
                let seconds = text.parse().map_err(|_| format!("--seconds: found `{text}`, expected a whole number"))?;
                arguments.time = Duration::from_secs(seconds);
            }
        }
    }
    Ok(arguments)
}

/// Long enough to never be up.
const NO_LIMIT: Duration = Duration::from_secs(u32::MAX as u64);
