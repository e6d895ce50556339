//! Optimizers as shader passes: [`AdamW`], [`Muon`], global-norm clipping, learning-rate schedules, loss scaling. Nothing is read
//! back.

mod adamw;
mod clip;
mod loss_scale;
mod muon;
mod schedule;

pub use adamw::{AdamConfig, AdamW, WeightDecayScope};
pub use clip::Clip;
pub use loss_scale::LossScale;
pub use muon::{LrScale, Muon, MuonConfig};
pub use schedule::{LrDecay, Schedule, ScheduleKind};

use crate::error::Result;
use crate::params::{Gradients, Params};
use crate::tensor::Tensor;

/// An update rule with its state on the device.
pub trait Optimizer {
    /// Updates every parameter that has a gradient, scaled by `clip`'s factor, at the learning rate `rate`.
    fn step(&mut self, params: &mut Params, gradients: Gradients, clip: &Clip, rate: f32) -> Result<()>;

    /// Steps taken so far. A rule that depends on nothing but the gradient counts none and keeps no state.
    fn steps(&self) -> u64 {
        0
    }

    /// The state by name, `<parameter>.m` and `<parameter>.v`, for a checkpoint.
    fn state(&self, _params: &Params) -> Vec<(String, Tensor)> {
        Vec::new()
    }

    /// Takes over a state that [`Optimizer::state`] returned after `steps` steps.
    fn load_state(&mut self, _params: &Params, _steps: u64, _state: &mut dyn FnMut(&str) -> Result<Tensor>) -> Result<()> {
        Ok(())
    }
}
