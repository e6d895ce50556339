//! `bench`: what the adapter reaches, in two minutes.

use std::path::PathBuf;

use super::device::Device;
use crate::inspect::bench::{self, Part, Request};
use crate::terminal::failure::Failure;

/// Arguments of `bench`.
#[derive(clap::Args)]
pub struct Args {
    /// Measure only these parts, separated by commas; the limits are always measured
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    only: Vec<Part>,
    /// Time limit in seconds, approximate; slower adapters measure less and list what they left out
    #[arg(long, value_name = "N", default_value_t = 120.0)]
    seconds: f64,
    /// Print the results as one JSON object on a line, for benches/hardware.jsonl and for --compare
    #[arg(long)]
    json: bool,
    /// Compare with FILE, lines of --json: with its last line of the same adapter and kernels, or else its last line
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    compare: Option<PathBuf>,
    #[command(flatten)]
    device: Device,
}

/// The shortest and the longest time that make sense.
const SECONDS: std::ops::RangeInclusive<f64> = 1.0..=86_400.0;

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    if !SECONDS.contains(&args.seconds) {
        let found = args.seconds;
        return Err(Failure::usage(format!("--seconds: found {found}, expected a number from 1 to 86400")));
    }
    let request = Request { only: args.only.clone(), seconds: args.seconds, json: args.json, compare: args.compare.clone() };
    bench::run(&args.device.open_to_time()?, &request)
}
