//! `train`: begins a run, or resumes one.

use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use super::device::Device;
use crate::config::Config;
use crate::run::paths::NewRun;
use crate::terminal::failure::Failure;
use crate::train::{self, World};

/// Arguments of `train`.
#[derive(clap::Args)]
pub struct Args {
    /// Configuration file; keys that it does not set have their defaults
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Override configuration keys; may be repeated
    #[arg(long, num_args = 1.., value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
    /// Run folder to create [default: the next free runs/NAME-N, NAME taken from the configuration file]
    #[arg(long, value_name = "RUN")]
    out: Option<PathBuf>,
    /// Initialize the weights from this folder: a run, or a folder in Hugging Face's layout
    #[arg(long, value_name = "DIR")]
    init: Option<PathBuf>,
    /// Resume this run from its newest checkpoint, with its own configuration; --set may change some keys
    #[arg(long, value_name = "RUN", conflicts_with_all = ["config", "out", "init"])]
    resume: Option<PathBuf>,
    /// Shorthand for --set train.steps=N
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    #[command(flatten)]
    device: Device,
    /// Print the time spent in each kernel at the end
    #[arg(long)]
    profile: bool,
    /// Allow data prepared with another tokenizer than that of --init or of the run to resume
    #[arg(long)]
    ignore_tokenizer: bool,
    /// How long ranks under mpirun wait for a silent one, such as 120s or 5m; five times as long until the first step is done
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = parse_time)]
    patience: Duration,
    /// Send gradients after the backward of a step instead of during it. Results are the same
    #[arg(long)]
    no_overlap: bool,
    /// Adapters of the ranks on each host, in order, by their index in `devices` [default: a GPU for each rank]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    device_map: Vec<usize>,
    /// Peak of the adapter in TFLOP/s, to report model FLOPs utilization (MFU)
    #[arg(long, value_name = "X")]
    peak_tflops: Option<f64>,
}

impl Args {
    /// The `--set` list, with `--steps` as its last entry.
    fn settings(&self) -> Vec<String> {
        let steps = self.steps.map(|steps| format!("train.steps={steps}"));
        self.set.iter().cloned().chain(steps).collect()
    }
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    if args.peak_tflops.is_some_and(|peak| !(peak > 0.0 && peak.is_finite())) {
        let found = args.peak_tflops.unwrap_or_default();
        return Err(Failure::usage(format!("--peak-tflops: found {found}, expected a number above 0")));
    }
    let world = Rc::new(World::join(args.patience, !args.no_overlap)?);
    world.run(|| train(args, &world))
}

/// Trains as one of the ranks.
fn train(args: &Args, world: &Rc<World>) -> Result<(), Failure> {
    let open = || args.device.open_on_rank(args.profile, world.local(), &args.device_map);
    let mut session = match &args.resume {
        Some(path) => train::resume(path, &args.settings(), args.peak_tflops, args.ignore_tokenizer, world.clone(), open)?,
        None => {
            let config = Config::load(args.config.as_deref(), &args.settings())?;
            let out = args.out.clone().map_or_else(|| NewRun::next(args.config.as_deref()), NewRun::At);
            let (init, peak_tflops, ignore_tokenizer) = (args.init.clone(), args.peak_tflops, args.ignore_tokenizer);
            let world = world.clone();
            train::begin(train::Request { config, out, init, peak_tflops, ignore_tokenizer, world }, open)?
        }
    };
    session.announce()?;
    session.train()?;
    session.finish(args.profile)
}

/// Reads `120s`, `2m`, `1h` or plain seconds.
fn parse_time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("found \"{text}\", expected a time of at least 3s, such as 120s, 2m or 1h");
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let factor = match unit.trim() {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(wrong()),
    };
    let seconds = number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    // Heartbeats come every second. A year keeps sums of durations from overflowing.
    seconds.filter(|seconds| (3..=31_536_000).contains(seconds)).map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn times_have_units() {
        let seconds = |text| parse_time(text).map(|time| time.as_secs());
        assert_eq!(["120s", "2m", "1h", "7"].map(seconds), [Ok(120), Ok(120), Ok(3600), Ok(7)]);
        for bad in ["", "s", "0s", "-1s", "2d", "99999999999h", "1.5m"] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn steps_come_after_every_set() {
        let line =
            Line::try_parse_from(["train", "--steps", "3", "--set", "train.steps=9", "seed=2"]).expect("a good command line");
        assert_eq!(line.args.settings(), ["train.steps=9", "seed=2", "train.steps=3"]);
    }
}
