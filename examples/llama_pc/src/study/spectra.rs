//! The singular values that a run ends with.

use std::path::Path;

use polytape::Gpu;
use serde::{Deserialize, Serialize};

use super::statistics::mean;
use crate::inspect::spectrum;
use crate::terminal::failure::Failure;

/// The matrices that have PC layers in the arms with any.
const KINDS: [&str; 4] = ["o", "gate", "up", "down"];

/// The most quantiles that a file may hold.
pub const MOST_QUANTILES: usize = 1001;

/// σ/σ₁ at equal steps of the quantile from 0 to 1: the mean over the matrices of o and the FFN, of the weights that the model computes
/// with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Quantiles(pub Vec<f32>);

impl Quantiles {
    /// Of a finished run.
    pub fn measure(gpu: &Gpu, folder: &Path) -> Result<Self, Failure> {
        let matrices = spectrum::of_checkpoint(gpu, folder, None)?.matrices;
        let chosen: Vec<&[f64]> = matrices
            .iter()
            .filter(|matrix| KINDS.contains(&matrix.place().1))
            .map(|matrix| &matrix.used().quantiles[..])
            .collect();
        let count = chosen.iter().map(|quantiles| quantiles.len()).min().unwrap_or(0);
        let at = |at: usize| mean(&chosen.iter().map(|quantiles| quantiles[at]).collect::<Vec<_>>()) as f32;
        Ok(Self((0..count).map(at).collect()))
    }

    /// (quantile, σ/σ₁)
    pub fn curve(&self) -> Vec<(f64, f64)> {
        let last = self.0.len().max(2) - 1;
        self.0.iter().enumerate().map(|(at, value)| (at as f64 / last as f64, f64::from(*value))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_goes_from_the_smallest_to_the_largest() {
        let curve = |values: &[f32]| Quantiles(values.to_vec()).curve();
        assert_eq!(curve(&[0.25, 0.5, 1.0]), [(0.0, 0.25), (0.5, 0.5), (1.0, 1.0)]);
        assert_eq!((curve(&[0.5]), curve(&[])), (vec![(0.0, 0.5)], vec![]));
    }
}
