//! The state of a run, as recorded in `state.json`.

use std::collections::BTreeMap;

use polytape::optim::LossScale;
use serde::{Deserialize, Serialize};

use crate::config::Keys;

/// The state of a run. It has no float64, which JSON readers may round.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Optimizer steps done, skipped ones included.
    pub step: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Windows of training data consumed.
    pub position: u64,
    /// Windows in the training data.
    pub windows: u64,
    /// Checksum of the first and the last of them.
    pub data: u32,
    /// The run's seed.
    pub seed: u64,
    /// Training time so far.
    pub milliseconds: u64,
    /// Statistics of the spike guard.
    pub spikes: Spikes,
    /// The keys of `[model]` and `[pc]`, with which alone the weights mean what they do; older checkpoints have none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub configuration: Keys,
    /// The loss scale, where the precision needs one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<Scaling>,
}

impl State {
    /// Steps skipped for any reason: `step` minus the optimizer's own count.
    pub fn skipped(&self) -> u64 {
        self.spikes.skipped + self.loss_scale.as_ref().map_or(0, |scaling| scaling.skipped)
    }
}

/// Exponential moving mean and variance of the gradient norms.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spikes {
    /// Norms seen.
    pub seen: u64,
    /// Steps skipped.
    pub skipped: u64,
    pub mean: f32,
    pub variance: f32,
}

/// State of the loss scale. A power of two, which JSON represents exactly.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scaling {
    /// The scale of the next step.
    pub scale: f32,
    /// Finite steps since it last changed.
    pub good_steps: u64,
    /// Steps skipped because their gradients overflowed.
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

    /// The loss scale that was saved.
    pub fn restored(&self) -> LossScale {
        LossScale { scale: self.scale, good_steps: self.good_steps, ..LossScale::default() }
    }
}
