//! `plan`: what a configuration needs, before it runs.

use std::path::{Path, PathBuf};

use super::device::Device;
use crate::config::Config;
use crate::data::meta::tokenizer_of;
use crate::data::tokenizer::Tokenizer;
use crate::inspect::plan::{Ask, Report};
use crate::terminal::failure::Failure;
use crate::terminal::output;

/// Arguments of `plan`.
#[derive(clap::Args)]
pub struct Args {
    /// Configuration file; keys that it does not set have their defaults
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Override configuration keys; may be repeated
    #[arg(long, num_args = 1.., value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
    /// Available device memory, such as 24GiB [default: nine tenths of what a GPU reports; system memory on the CPU]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    memory: Option<u64>,
    /// Also plan for this many ranks under mpirun
    #[arg(long, value_name = "P")]
    ranks: Option<usize>,
    /// Bandwidth of the link between the ranks' hosts, such as 10Gbit or 1.25GB (per second)
    #[arg(long, value_name = "B", default_value = "10Gbit", value_parser = parse_bandwidth)]
    bandwidth: f64,
    /// TFLOP/s that an adapter sustains in a step, to predict the time of a step on several ranks
    #[arg(long, value_name = "X")]
    tflops: Option<f64>,
    /// Print the plan as one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: Device,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let mut config = Config::load(args.config.as_deref(), &args.set)?;
    let tokenizer = tokenizer_of(Path::new(&config.data.train));
    let tokens = tokenizer.as_deref().map(|path| Tokenizer::load(path).map(|tokenizer| tokenizer.vocab_size())).transpose()?;
    config.resolve_vocab(tokens)?;
    // An adapter is optional, unless the user names one or its kernels.
    let gpu = match args.device.open(false) {
        Err(failure) if args.device.adapter.is_some() || args.device.kernels.is_some() => return Err(failure),
        opened => opened.ok(),
    };
    if let Some(found) = args.tflops.filter(|speed| !(*speed > 0.0 && speed.is_finite())) {
        return Err(Failure::usage(format!("--tflops: found {found}, expected a number above 0")));
    }
    let speed = args.tflops.map(|speed| speed * 1e12);
    let ask = args.ranks.map(|ranks| Ask { ranks, bandwidth: args.bandwidth, speed });
    let report = Report::new(&config, args.memory, gpu.as_ref(), ask)?;
    output::print(&if args.json { report.json() } else { report.text() })
}

/// Reads `10Gbit`, `100 Mbit/s` or bytes such as `1.25GB`: bytes per second.
fn parse_bandwidth(text: &str) -> Result<f64, String> {
    let wrong = || format!("found \"{text}\", expected a bandwidth such as 10Gbit, 100Mbit or 1.25GB");
    let lower = text.trim().to_ascii_lowercase();
    let lower = lower.strip_suffix("/s").unwrap_or(&lower);
    match lower.strip_suffix("bit") {
        Some(bits) => parse_bytes(bits).map(|bits| bits as f64 / 8.0).map_err(|_| wrong()),
        None => parse_bytes(lower).map(|bytes| bytes as f64).map_err(|_| wrong()),
    }
}

/// Reads `24GiB`, `24 GB`, `1.5g` or plain bytes.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("found \"{text}\", expected bytes such as 24GiB, 24GB or 25769803776");
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let unit = unit.trim();
    let (letter, base) = match unit.strip_suffix("ib") {
        Some(letter) => (letter, 1024f64),
        None => (unit.strip_suffix('b').unwrap_or(unit), 1000f64),
    };
    let power = match letter {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        _ => return Err(wrong()),
    };
    let bytes = number * base.powi(power);
    if (1.0..1e18).contains(&bytes) { Ok(bytes as u64) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bandwidths_are_bits_or_bytes() {
        let read = ["10Gbit", "100 Mbit/s", "1.25GB", "125m"].map(parse_bandwidth);
        assert_eq!(read, [Ok(1.25e9), Ok(1.25e7), Ok(1.25e9), Ok(1.25e8)]);
        assert!(["", "fast", "0Gbit", "-1Gbit"].iter().all(|bad| parse_bandwidth(bad).is_err()));
    }

    #[test]
    fn sizes_are_read_with_their_units() {
        assert_eq!(
            ["1000", "24GB", "24 GiB", "1.5gib", "512k"].map(parse_bytes),
            [Ok(1000), Ok(24_000_000_000), Ok(24 << 30), Ok(3 << 29), Ok(512_000)]
        );
        for bad in ["", "GiB", "-1", "1e99 TB", "3 XB", "0"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }
}
