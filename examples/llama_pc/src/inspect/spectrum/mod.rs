//! Singular values of every matrix of the blocks of runs' checkpoints, before and after the polynomial, and the condition numbers that
//! follow from them.

mod picture;
mod report;

use std::path::Path;
use std::sync::Mutex;

use polytape::Gpu;
use polytape::llama::names;

use crate::model::import::{Stored, describe_at};
use crate::model::spectra::{self, Matrix};
use crate::run::measured::Gmcn;
use crate::run::paths;
use crate::terminal::failure::Failure;
use crate::terminal::progress::Progress;
pub use picture::save_all;
pub use report::{Report, RunSpectra, Spectra, table};

/// All checkpoints of a run, or an exported folder.
pub fn of_run(gpu: &Gpu, path: &Path) -> Result<RunSpectra, Failure> {
    let steps = paths::checkpoints(path)?;
    let steps = if steps.is_empty() { vec![None] } else { steps.into_iter().map(Some).collect() };
    let checkpoints = steps.into_iter().map(|step| of_checkpoint(gpu, path, step)).collect::<Result<_, _>>()?;
    Ok(RunSpectra { run: path.display().to_string(), checkpoints })
}

/// The checkpoint of a run after `step` steps, or an exported folder.
pub fn of_checkpoint(gpu: &Gpu, path: &Path, step: Option<u64>) -> Result<Spectra, Failure> {
    let (config, folder) = describe_at(path, step)?;
    let total = (names::MATRICES.len() * config.model.layers) as u64;
    let progress = Mutex::new(Progress::new("matrices", 0, total));
    let show = || progress.lock().expect("bug: a worker panicked").advance();
    let matrices = spectra::matrices(gpu, &config, &Stored::open(&config, &folder)?, show)?;
    progress.into_inner().expect("bug: a worker panicked").finish();
    let mean = |condition: &dyn Fn(&Matrix) -> f64| {
        let conditions: Vec<(f64, bool)> =
            matrices.iter().map(|matrix| (condition(matrix), matrix.effective.is_some())).collect();
        Gmcn::of(&conditions).ok_or_else(|| Failure::other(format!("{}: found no matrix", folder.display())))
    };
    let (gmcn, gmcn_raw) = (mean(&|matrix| matrix.used().modified_condition)?, mean(&|matrix| matrix.raw.modified_condition)?);
    Ok(Spectra { step, gmcn, gmcn_raw, matrices })
}
