//! The command line.

use std::time::Duration;

pub const HELP: &str = "\
drivers compile [--adapter PART] [--all] [--steps] [--seconds N] [--chip NAME] [--out FILE]
    Compiles the kernels of training steps and of sampling with the driver of an adapter, in every tier that it has, and prints what
    the driver tells of each. The adapter is the first GPU, or the one with this index or part of a name.
    --all       every kernel in every combination of its constants
    --steps     then also runs a training step of every published size that fits the memory
    --seconds   compiles no more after so many seconds
    --chip      the name of the chip in tables; default: the adapter's
    --out       writes a report for `drivers table`
drivers table FILE...
    Prints the tables of docs/drivers.md. Fails if a kernel of a step spills, or anything was refused.
";

/// What to do.
pub enum Command {
    Help,
    Compile(Arguments),
    /// From these reports.
    Table(Vec<String>),
}

/// Of `compile`.
pub struct Arguments {
    pub adapter: Option<String>,
    pub all: bool,
    pub steps: bool,
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
        Some("compile") => compile(words).map(Command::Compile),
        Some(other) => Err(format!("found `{other}`, expected compile, table or help")),
    }
}

fn compile(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut arguments =
        Arguments { adapter: None, all: false, steps: false, time: crate::NO_LIMIT, chip: None, out: None };
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word}: a value expected after it"));
        match word.as_str() {
            "--all" => arguments.all = true,
            "--steps" => arguments.steps = true,
            "--adapter" => arguments.adapter = Some(value()?),
            "--chip" => arguments.chip = Some(value()?),
            "--out" => arguments.out = Some(value()?),
            "--seconds" => {
                let text = value()?;
                let seconds = text.parse().map_err(|_| format!("--seconds: found `{text}`, expected a whole number"))?;
                arguments.time = Duration::from_secs(seconds);
            }
            _ => return Err(format!("found `{word}`, expected --adapter, --all, --steps, --seconds, --chip or --out")),
        }
    }
    Ok(arguments)
}
