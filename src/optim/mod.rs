//! Optimizers as shader passes: [`AdamW`], [`Muon`], [`NorMuon`], global-norm clipping, learning-rate schedules, loss scaling.

mod adamw;
mod clip;
mod loss_scale;
mod muon;
mod normuon;
mod schedule;
mod state;

pub use adamw::{AdamConfig, AdamW, WeightDecayScope};
pub use clip::Clip;
pub use loss_scale::LossScale;
pub use muon::{LrScale, Muon, MuonConfig, muon_stack};
pub use normuon::NorMuon;
pub use schedule::{LrDecay, Schedule, ScheduleKind};
pub use state::{OptimizerState, Slot};

use crate::error::Result;
use crate::params::{Gradients, Params, Role};
use crate::tensor::Tensor;

/// A constructor of an optimizer at its default settings.
pub type Constructor = fn() -> Box<dyn Optimizer>;

/// The optimizers of this crate, by name.
pub const OPTIMIZERS: [(&str, Constructor); 3] = [
    ("adamw", || Box::new(AdamW::new(AdamConfig::default()))),
    ("muon", || Box::new(Muon::new(MuonConfig::default()))),
    ("normuon", || Box::new(NorMuon::new(MuonConfig::default()))),
];

/// An update rule with its state on the device. `examples/custom_optimizer.rs` writes one outside of this crate.
///
/// Implement `step` and the three accessors; saving and loading follow from [`Optimizer::slots`].
pub trait Optimizer: Send {
    /// Updates every parameter that has a gradient, scaled by `clip`'s factor, at the learning rate `lr`. Counts the step in its
    /// state, also when it keeps no tensors.
    fn step(&mut self, params: &mut Params, gradients: Gradients, clip: &Clip, lr: f32) -> Result<()>;

    /// The tensors that it keeps of a parameter of this role and shape.
    fn slots(&self, role: Role, shape: &[usize]) -> Vec<Slot>;

    /// Number of n×n products (n the smaller side) in the update of such a parameter; used to balance work between owners.
    fn products(&self, _role: Role) -> usize {
        0
    }

    /// Its state.
    fn state(&self) -> &OptimizerState;

    /// Its state, for [`Optimizer::load_state`].
    fn state_mut(&mut self) -> &mut OptimizerState;

    /// The state's tensors by name, `<parameter>.<slot>`, for a checkpoint. None before the first step.
    fn state_tensors(&self, params: &Params) -> Result<Vec<(String, Tensor)>> {
        self.state().named(params, |role, shape| self.slots(role, shape))
    }

    /// Takes over the state that [`Optimizer::state_tensors`] returned after `steps` steps. A tensor of another shape than its slot
    /// is an error.
    fn load_state(&mut self, params: &Params, steps: u64, load: &mut dyn FnMut(&str) -> Result<Tensor>) -> Result<()> {
        *self.state_mut() = OptimizerState::load(params, steps, |role, shape| self.slots(role, shape), load)?;
        Ok(())
    }
}
