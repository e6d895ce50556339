//! Where a run stands, as `state.json` records it.

use polytape::optim::LossScale;
use serde::{Deserialize, Serialize};

/// Where a run stands: `state.json` of a checkpoint. No float64 is in it, as JSON readers may round one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Optimizer steps done, skipped ones included.
    pub step: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Windows taken from the training data.
    pub position: u64,
    /// Windows that the training data holds.
    pub windows: u64,
    /// Checksum of the first and the last of them.
    pub data: u32,
    /// The run's seed.
    pub seed: u64,
    /// Training time so far.
    pub milliseconds: u64,
    /// What the spike guard knows.
    pub spikes: Spikes,
    /// The loss scale, where the precision needs one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<Scaling>,
}

impl State {
    /// Steps left out, for whatever reason: the optimizer has done so many less.
    pub fn skipped(&self) -> u64 {
        self.spikes.skipped + self.loss_scale.as_ref().map_or(0, |scaling| scaling.skipped)
    }
}

/// Mean and variance of the gradient norms so far, of which the newest count most. Part of a checkpoint's state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spikes {
    /// Norms seen.
    pub seen: u64,
    /// Steps left out.
    pub skipped: u64,
    pub mean: f32,
    pub variance: f32,
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
