//! What `spectrum` finds.

use serde::{Deserialize, Serialize};

use crate::model::spectra::Matrix;
use crate::run::measured::Gmcn;

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

/// A line per checkpoint.
pub fn table(report: &Report) -> String {
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
