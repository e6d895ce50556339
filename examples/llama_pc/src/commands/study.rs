//! `study`: what PC layers bring, measured: plans, trains, gathers and writes a page.

use std::path::PathBuf;

use clap::ValueEnum;

use super::device::Device;
use crate::study::{self, Scale};
use crate::terminal::failure::Failure;

/// Arguments of `study`.
#[derive(clap::Args)]
pub struct Args {
    /// How much to train: `small` takes hours on two CPU cores, `tiny` two minutes and shows only that everything works
    #[arg(long, value_enum, required_unless_present = "from")]
    scale: Option<Name>,
    /// Folder of the runs; an unfinished study in it is resumed [default: runs/study-SCALE]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Folder of study.md and study/, which are replaced [default: docs; for `tiny` that of the runs]
    #[arg(long, value_name = "DIR")]
    docs: Option<PathBuf>,
    /// Prepared data to train on, the folder that holds train and val
    #[arg(long, value_name = "DIR", default_value = "data/demo")]
    data: PathBuf,
    /// Seeds of each arm at its best learning rate, at least 2 [default: 4 for `small`, 2 for `tiny`]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(2..=100))]
    seeds: Option<u64>,
    /// Refuse a plan that takes longer than this [default: 6 for `small`, 1 for `tiny`]
    #[arg(long, value_name = "H")]
    max_hours: Option<f64>,
    /// Measure the step times and write the plan, no more
    #[arg(long)]
    plan_only: bool,
    /// Train nothing: write the page, its pictures and the report again from the metrics that a study kept
    #[arg(long, value_name = "METRICS", conflicts_with_all = ["scale", "out", "data", "seeds", "max_hours", "plan_only"])]
    from: Option<PathBuf>,
    #[command(flatten)]
    device: Device,
}

/// The scales by name.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Name {
    Small,
    Tiny,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let docs = || args.docs.clone();
    let scale = match (&args.from, args.scale) {
        (Some(metrics), _) => return study::show(metrics, &docs().unwrap_or_else(|| PathBuf::from("docs"))),
        (None, Some(Name::Small)) => study::SMALL,
        (None, _) => study::TINY,
    };
    let scale = with_limits(scale, args.seeds, args.max_hours)?;
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from(format!("runs/study-{}", scale.name)));
    let own = if scale.name == study::TINY.name { out.clone() } else { PathBuf::from("docs") };
    let request = study::Request { scale, docs: docs().unwrap_or(own), out, data: args.data.clone(), plan_only: args.plan_only };
    study::run(&request, || args.device.open(false))
}

fn with_limits(mut scale: Scale, seeds: Option<u64>, max_hours: Option<f64>) -> Result<Scale, Failure> {
    scale.design.seeds = seeds.unwrap_or(scale.design.seeds);
    scale.max_hours = max_hours.unwrap_or(scale.max_hours);
    if !(scale.max_hours > 0.0 && scale.max_hours.is_finite()) {
        return Err(Failure::usage(format!("--max-hours: found {}, expected a number above 0", scale.max_hours)));
    }
    Ok(scale)
}
