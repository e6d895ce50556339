//! `spectrum`: singular values of every matrix of the blocks of runs' checkpoints, before and after the polynomial, and the condition
//! numbers that follow from them.

pub mod measure;
mod numerics;
mod picture;

use std::path::Path;

use polytape::Gpu;
use serde::{Deserialize, Serialize};

use crate::cli;
use crate::engine;
use crate::failure::Failure;
use crate::output;
use crate::partial::{Partial, refuse_existing};
use crate::progress::Progress;
use crate::run;
use crate::weights::{self, Stored};
pub use measure::{Gmcn, Matrix};

/// What was measured of some runs; what `--json` writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub runs: Vec<RunSpectra>,
}

/// The checkpoints of a run, ascending by step. An exported folder is one without a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunSpectra {
    pub run: String,
    pub checkpoints: Vec<Spectra>,
}

/// One checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spectra {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
    /// Of the weights that the model computes with.
    pub gmcn: Gmcn,
    /// Of the weights that are trained: the same without PC layers.
    pub gmcn_raw: Gmcn,
    pub matrices: Vec<Matrix>,
}

impl Spectra {
    /// The worst shortfall of the streaming estimates of σ₁, relative; `None` where nothing is estimated.
    pub fn sigma_error(&self) -> Option<f64> {
        self.matrices.iter().filter_map(|matrix| matrix.sigma_error).reduce(f64::max)
    }
}

/// Runs the command.
pub fn run(args: &cli::Spectrum) -> Result<(), Failure> {
    args.json.as_deref().map_or(Ok(()), |path| refuse_existing("--json", path, "file"))?;
    args.out.as_deref().map_or(Ok(()), |path| refuse_existing("--out", path, "folder"))?;
    for path in &args.paths {
        weights::describe(path)?;
    }
    let gpu = engine::open(&args.device, false)?;
    let runs = args.paths.iter().map(|path| of_run(&gpu, path)).collect::<Result<Vec<_>, _>>()?;
    let report = Report { runs };
    if let Some(path) = &args.json {
        let partial = Partial::file(path)?;
        let json = serde_json::to_string(&report).expect("bug: spectra do not serialise");
        std::fs::write(partial.path(), json).map_err(|error| Failure::io("write", path, &error))?;
        partial.finish()?;
    }
    if let Some(path) = &args.out {
        let partial = Partial::folder(path)?;
        picture::save_all(&report, partial.path())?;
        partial.finish()?;
    }
    output::print(&table(&report))
}

fn of_run(gpu: &Gpu, path: &Path) -> Result<RunSpectra, Failure> {
    let steps = run::checkpoints(path);
    let steps = if steps.is_empty() { vec![None] } else { steps.into_iter().map(Some).collect() };
    let checkpoints = steps.into_iter().map(|step| of_checkpoint(gpu, path, step)).collect::<Result<_, _>>()?;
    Ok(RunSpectra { run: path.display().to_string(), checkpoints })
}

/// The checkpoint of a run after so many steps, or an exported folder.
pub fn of_checkpoint(gpu: &Gpu, path: &Path, step: Option<u64>) -> Result<Spectra, Failure> {
    let (config, folder) = weights::describe_at(path, step)?;
    let total = 7 * config.model.layers as u64;
    let progress = std::sync::Mutex::new(Progress::new("matrices", 0, total));
    let show = || progress.lock().expect("bug: a worker panicked").advance();
    let matrices = measure::matrices(gpu, &config, &Stored::open(&config, &folder)?, show)?;
    progress.into_inner().expect("bug: a worker panicked").finish();
    let mean = |condition: &dyn Fn(&Matrix) -> f64| {
        let conditions: Vec<(f64, bool)> =
            matrices.iter().map(|matrix| (condition(matrix), matrix.effective.is_some())).collect();
        Gmcn::of(&conditions).ok_or_else(|| Failure::other(format!("{}: found no matrix", folder.display())))
    };
    let (gmcn, gmcn_raw) = (mean(&|matrix| matrix.used().modified_condition)?, mean(&|matrix| matrix.raw.modified_condition)?);
    Ok(Spectra { step, gmcn, gmcn_raw, matrices })
}

/// A line per checkpoint.
fn table(report: &Report) -> String {
    let width = report.runs.iter().map(|run| run.run.chars().count()).max().unwrap_or(0).max(3);
    let mut text = format!(
        "{:width$}  {:>8}  {:>9}  {:>9}  {:>9}  {:>9}  {:>11}\n",
        "run", "step", "GMCN", "PC blocks", "others", "raw GMCN", "error of σ₁"
    );
    let number = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.3}"));
    for run in &report.runs {
        for spectra in &run.checkpoints {
            let step = spectra.step.map_or("-".to_owned(), |step| step.to_string());
            let error = spectra.sigma_error().map_or("-".to_owned(), |error| format!("{error:.1e}"));
            let Spectra { gmcn, gmcn_raw, .. } = spectra;
            text.push_str(&format!(
                "{:width$}  {step:>8}  {:>9}  {:>9}  {:>9}  {:>9}  {error:>11}\n",
                run.run,
                number(Some(gmcn.all)),
                number(gmcn.pc),
                number(gmcn.plain),
                number(Some(gmcn_raw.all)),
            ));
        }
    }
    text
}
