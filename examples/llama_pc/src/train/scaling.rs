//! A `[train] precision` below f32: what is said of it, and the loss scale between two steps.

use polytape::Precision;
use polytape::gpu::KernelTier;
use polytape::optim::LossScale;
use serde::{Deserialize, Serialize};

/// What a user should know of a precision before a run begins with these kernels.
pub fn warning(precision: Precision, kernels: KernelTier) -> Option<String> {
    let text =
        format!("warning: train.precision = \"{precision}\": products are rounded without matrix units, slower than at f32");
    (precision != Precision::F32 && kernels != KernelTier::Matrix).then_some(text)
}

/// What a checkpoint keeps of the loss scale. A power of two, which JSON holds exactly.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scaling {
    /// The factor of the next step.
    pub scale: f32,
    /// Finite steps since it last changed.
    pub good_steps: u64,
    /// Steps left out because their gradients overflowed.
    pub skipped: u64,
}

impl Scaling {
    /// After another step.
    pub fn after(earlier: Option<&Self>, loss_scale: &LossScale, is_skipped: bool) -> Self {
        Self {
            scale: loss_scale.scale,
            good_steps: loss_scale.good_steps,
            skipped: earlier.map_or(0, |earlier| earlier.skipped) + u64::from(is_skipped),
        }
    }

    /// What it was saved from.
    pub fn restored(&self) -> LossScale {
        LossScale { scale: self.scale, good_steps: self.good_steps, ..LossScale::default() }
    }
}
