//! `spectrum`: the singular values of every matrix, before and after the polynomial.

use std::path::PathBuf;

use super::device::Device;
use crate::inspect::spectrum::{self, Report};
use crate::model::import;
use crate::run::files::{self, Partial, refuse_existing};
use crate::terminal::failure::Failure;
use crate::terminal::output;

/// Arguments of `spectrum`.
#[derive(clap::Args)]
pub struct Args {
    /// Runs (every checkpoint is measured) or exported folders
    #[arg(required = true, value_name = "RUN")]
    paths: Vec<PathBuf>,
    /// Write all measurements to this new file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write pictures to this new folder
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    device: Device,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    args.json.as_deref().map_or(Ok(()), |path| refuse_existing("--json", path, "file"))?;
    args.out.as_deref().map_or(Ok(()), |path| refuse_existing("--out", path, "folder"))?;
    for path in &args.paths {
        import::describe(path)?;
    }
    let gpu = args.device.open(false)?;
    let runs = args.paths.iter().map(|path| spectrum::of_run(&gpu, path)).collect::<Result<Vec<_>, _>>()?;
    let report = Report { runs };
    if let Some(path) = &args.json {
        let json = serde_json::to_string(&report).expect("bug: spectra do not serialise");
        files::create(path, json.as_bytes())?;
    }
    if let Some(path) = &args.out {
        let partial = Partial::folder(path)?;
        spectrum::save_all(&report, partial.path())?;
        partial.finish()?;
    }
    output::print(&spectrum::table(&report))
}
