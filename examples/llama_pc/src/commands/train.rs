//! `train`: begins a run, or resumes one.

use std::path::PathBuf;

use super::device::Device;
use crate::config::Config;
use crate::run::paths::NewRun;
use crate::terminal::failure::Failure;
use crate::train;

/// Arguments of `train`.
#[derive(clap::Args)]
pub struct Args {
    /// Configuration file; keys that it does not set have their defaults
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Override configuration keys; may be repeated
    #[arg(long, num_args = 1.., value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
    /// Run folder to create [default: the next free runs/NAME-N, NAME being that of the configuration file]
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
    /// Train on data prepared with another tokenizer than that of --init or of the run to resume
    #[arg(long)]
    ignore_tokenizer: bool,
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
    let open = || args.device.open(args.profile);
    let mut session = match &args.resume {
        Some(path) => train::resume(path, &args.settings(), args.peak_tflops, args.ignore_tokenizer, open)?,
        None => {
            let config = Config::load(args.config.as_deref(), &args.settings())?;
            let out = args.out.clone().map_or_else(|| NewRun::next(args.config.as_deref()), NewRun::At);
            let (init, peak_tflops, ignore_tokenizer) = (args.init.clone(), args.peak_tflops, args.ignore_tokenizer);
            train::begin(train::Request { config, out, init, peak_tflops, ignore_tokenizer }, open)?
        }
    };
    session.announce()?;
    session.train()?;
    session.finish(args.profile)
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
    fn steps_come_after_every_set() {
        let line =
            Line::try_parse_from(["train", "--steps", "3", "--set", "train.steps=9", "seed=2"]).expect("a good command line");
        assert_eq!(line.args.settings(), ["train.steps=9", "seed=2", "train.steps=3"]);
    }
}
