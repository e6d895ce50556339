//! `report`: one HTML page about one or more runs.

use std::path::PathBuf;

use super::device::Device;
use crate::inspect::report::{RunData, gather, page, with_spectra};
use crate::run::files::{self, refuse_existing};
use crate::terminal::failure::Failure;
use crate::terminal::output;

/// Arguments of `report`.
#[derive(clap::Args)]
pub struct Args {
    /// Runs, in the order of their colors
    #[arg(required = true, value_name = "RUN")]
    paths: Vec<PathBuf>,
    /// HTML file to create
    #[arg(long, value_name = "FILE.html")]
    out: PathBuf,
    /// Omit spectra and condition numbers, which have to be computed from the checkpoints
    #[arg(long)]
    no_spectra: bool,
    #[command(flatten)]
    device: Device,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    refuse_existing("--out", &args.out, "file")?;
    let runs = args.paths.iter().map(|path| gather(path)).collect::<Result<Vec<RunData>, Failure>>()?;
    let runs = if args.no_spectra { runs } else { with_spectra(runs, || args.device.open(false))? };
    files::create(&args.out, page(runs).as_bytes())?;
    output::print(&format!("{}\n", args.out.display()))
}
