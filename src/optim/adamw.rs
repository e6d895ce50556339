//! AdamW in one pass over each parameter, small parameters together, and the auxiliary Adam rule that Muon uses for everything
//! that is not a matrix.

use super::{Clip, Optimizer, OptimizerState, Slot};
use crate::error::Result;
use crate::gpu::{Access, Gpu, Kernel, KernelTier, Launch, Slice, grid, with_twin};
use crate::params::{Gradients, ParamId, Params, Role};
use crate::tensor::Tensor;

/// Maximum number of parameters per dispatch: with 29 bindings, as many as Metal has.
const MOST_JOINED: usize = 7;
/// Parameters of at most this many values share dispatches. A larger one is updated at once, so that its gradient's memory is free for
/// the moments of the next.
const SMALL: usize = 1 << 18;

const R: Access = Access::Read;
const W: Access = Access::ReadWrite;
#[rustfmt::skip]
const BINDINGS: &[Access] = &[
    R,
    R, W, W, W,  R, W, W, W,  R, W, W, W,  R, W, W, W,  R, W, W, W,  R, W, W, W,  R, W, W, W,
];

/// The kernel for one parameter, for two, and so on.
static ADAM: [Kernel; MOST_JOINED] = [joining(1), joining(2), joining(3), joining(4), joining(5), joining(6), joining(7)];

const fn joining(parameters: usize) -> Kernel {
    let bindings: &'static [Access] = BINDINGS.split_at(1 + 4 * parameters).0;
    with_twin!(Kernel::trusted("adam", include_str!("../../shaders/adam.wgsl"), "main", bindings), twins::adam)
}

/// Which parameters weight decay pulls towards zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum WeightDecayScope {
    /// All, norm weights and gains included, as in the published runs.
    #[default]
    All,
    /// Matrices, the embedding and the head.
    Matrices,
}

/// Settings of Adam.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct AdamConfig {
    /// Decay rates of the two moments.
    pub betas: [f64; 2],
    /// Added to the denominator for numerical stability.
    pub eps: f64,
    /// Decoupled weight decay λ: a step multiplies a weight by 1 − lr·λ.
    pub weight_decay: f64,
    /// Which parameters decay.
    pub weight_decay_scope: WeightDecayScope,
}

impl Default for AdamConfig {
    fn default() -> Self {
        Self { betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.1, weight_decay_scope: WeightDecayScope::All }
    }
}

impl AdamConfig {
    pub(super) fn weight_decay_of(&self, role: Role) -> f32 {
        match (self.weight_decay_scope, role) {
            (WeightDecayScope::Matrices, Role::Vector | Role::State) => 0.0,
            _ => self.weight_decay as f32,
        }
    }
}

/// An Adam step of many parameters, one after the other, of which it runs small ones together.
pub(super) struct Adam<'a> {
    config: &'a AdamConfig,
    /// Whether the rule is Muon's auxiliary one.
    auxiliary: bool,
    clip: &'a Clip,
    /// Counts from 1.
    step: u64,
    lr: f32,
    waiting: Vec<Update>,
}

/// What the update of one parameter needs.
struct Update {
    gradient: Tensor,
    /// The parameter and its moments.
    changed: [Tensor; 3],
    weight_decay: f32,
}

impl<'a> Adam<'a> {
    pub(super) fn new(config: &'a AdamConfig, auxiliary: bool, clip: &'a Clip, step: u64, lr: f32) -> Self {
        Self { config, auxiliary, clip, step, lr, waiting: Vec::new() }
    }

    /// Updates a parameter, at the latest in [`Adam::finish`].
    pub(super) fn update(
        &mut self,
        params: &mut Params,
        id: ParamId,
        state: &mut OptimizerState,
        gradient: Tensor,
    ) -> Result<()> {
        let weight_decay = self.config.weight_decay_of(params.get(id)?.role);
        let w = params.make_mut(id)?;
        let mut moment = |name| state.slot(w.gpu(), id, name, w.shape()).cloned();
        let update = Update { gradient, changed: [w.clone(), moment("m")?, moment("v")?], weight_decay };
        if w.len() > SMALL || w.bytes() > w.gpu().binding_limit() {
            return self.launch(&[update]);
        }
        let most = most_joined(w.gpu());
        self.waiting.push(update);
        if self.waiting.len() < most { Ok(()) } else { self.finish() }
    }

    /// Runs what is left.
    pub(super) fn finish(&mut self) -> Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        if waiting.is_empty() { Ok(()) } else { self.launch(&waiting) }
    }

    /// One dispatch, or for a parameter above the binding limit one for each window of it.
    fn launch(&self, updates: &[Update]) -> Result<()> {
        let gpu = self.clip.values().gpu();
        let longest = updates.iter().map(|update| update.gradient.len()).max().unwrap_or(0);
        let window = ((gpu.binding_limit() / 4) as usize / 64 * 64).max(64);
        for first in (0..longest).step_by(longest.min(window)) {
            let mut buffers = vec![self.clip.values().slice()];
            let mut starts = Vec::with_capacity(updates.len());
            let mut invocations = 0;
            for update in updates {
                let count = window.min(update.gradient.len() - first);
                buffers.extend([&update.gradient].into_iter().chain(&update.changed).map(|tensor| tensor.window(first, count)));
                starts.push(invocations as u32);
                invocations += count.div_ceil(4);
            }
            self.dispatch(gpu, &buffers, &starts, updates, invocations as u64)?;
        }
        Ok(())
    }

    fn dispatch(&self, gpu: &Gpu, buffers: &[Slice<'_>], starts: &[u32], updates: &[Update], invocations: u64) -> Result<()> {
        let correction = self.config.betas.map(|beta| (1.0 - beta.powf(self.step as f64)) as f32);
        let weights = self.config.betas.map(|beta| (1.0 - beta) as f32);
        let numbers = [self.lr, weights[0], weights[1], self.config.eps as f32, correction[0], correction[1]];
        let places = starts.iter().zip(updates).flat_map(|(&start, update)| [start, update.weight_decay.to_bits()]);
        let arguments: Vec<u32> = numbers.map(f32::to_bits).into_iter().chain(places).collect();
        gpu.launch(&Launch {
            kernel: &ADAM[updates.len() - 1],
            constants: &[("AUXILIARY", u32::from(self.auxiliary)), ("JOINED", updates.len() as u32)],
            buffers,
            arguments: bytemuck::cast_slice(&arguments),
            workgroups: grid(invocations, 64),
            iterations: 0,
            work: 0,
        })
    }
}

/// How many parameters share a dispatch: as many as the adapter has bindings for. On the CPU a dispatch costs next to nothing, and the
/// twin takes one.
fn most_joined(gpu: &Gpu) -> usize {
    let bindings = gpu.adapter().limits.max_storage_buffers_per_shader_stage as usize;
    match gpu.kernels() {
        KernelTier::Fallback | KernelTier::Host => 1,
        _ => ((bindings - 1) / 4).clamp(1, MOST_JOINED),
    }
}

/// The slots of a parameter that Adam updates: both moments.
pub(super) fn moments(shape: &[usize]) -> Vec<Slot> {
    vec![Slot::new("m", shape), Slot::new("v", shape)]
}

/// AdamW (Loshchilov and Hutter, arXiv 1711.05101):
/// m ← β₁·m + (1−β₁)·g, v ← β₂·v + (1−β₂)·g², w ← w·(1 − lr·λ) − lr·(m/c₁) / (√(v/c₂) + eps), where cᵢ = 1 − βᵢᵗ and λ is the
/// weight decay.
///
/// The first step moves a weight by lr, whatever the size of its gradient:
///
/// ```
/// use polytape::optim::{AdamConfig, AdamW, Clip, Optimizer};
/// use polytape::{Gpu, Gradients, Params, Role, Tensor};
///
/// # fn main() -> polytape::Result<()> {
/// # let gpu = Gpu::open(&Default::default())?;
/// let mut params = Params::new(&gpu);
/// let w = params.add("w", Role::Vector, Tensor::from_slice(&gpu, &[1.0, 1.0], &[2])?)?;
/// let mut gradients = Gradients::new();
/// gradients.add(w, Tensor::from_slice(&gpu, &[0.5, -20.0], &[2])?)?;
/// let clip = Clip::new(&gpu, &gradients, f32::INFINITY)?;
/// let mut adamw = AdamW::new(AdamConfig { weight_decay: 0.1, ..Default::default() });
/// adamw.step(&mut params, gradients, &clip, 0.01)?;
/// let found = params.get(w)?.tensor.to_vec()?;
/// assert!((found[0] - (0.999 - 0.01)).abs() < 1e-6 && (found[1] - (0.999 + 0.01)).abs() < 1e-6);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct AdamW {
    config: AdamConfig,
    state: OptimizerState,
}

impl AdamW {
    /// No steps taken yet.
    pub fn new(config: AdamConfig) -> Self {
        Self { config, state: OptimizerState::default() }
    }
}

impl Optimizer for AdamW {
    fn step(&mut self, params: &mut Params, gradients: Gradients, clip: &Clip, lr: f32) -> Result<()> {
        let gradients = gradients.into_checked(params)?;
        let mut adam = Adam::new(&self.config, false, clip, self.state.count_step(), lr);
        for (id, gradient) in gradients {
            adam.update(params, id, &mut self.state, gradient)?;
        }
        adam.finish()
    }

    fn slots(&self, _: Role, shape: &[usize]) -> Vec<Slot> {
        moments(shape)
    }

    fn state(&self) -> &OptimizerState {
        &self.state
    }

    fn state_mut(&mut self) -> &mut OptimizerState {
        &mut self.state
    }
}

#[cfg(feature = "host")]
mod twins {
    use crate::gpu::host::Host;

    pub(super) fn adam(host: &Host<'_>) {
        assert_eq!(host.constant("JOINED"), 1, "bug: the twin takes one parameter");
        let (clip, g, [w, m, v]) = (host.input(0)[1], host.input(1), host.outputs());
        let [lr, weight1, weight2, eps, correction1, correction2] = [0, 1, 2, 3, 4, 5].map(|at| host.number(at));
        let keep = 1.0 - lr * host.number(7);
        // Both rules are w·keep − scale·m / (√(v·inverse) + eps).
        let (scale, inverse) = if host.flag("AUXILIARY") {
            (lr * correction2.sqrt() / correction1, 1.0)
        } else {
            (lr / correction1, 1.0 / correction2)
        };
        host.rows(
            w.len(),
            8,
            [(w, 1), (m, 1), (v, 1)],
            #[inline(always)]
            |range, [w, m, v]| {
                for (((w, m), v), g) in w.iter_mut().zip(m).zip(v).zip(&g[range]) {
                    let gradient = g * clip;
                    *m = weight1.mul_add(gradient - *m, *m);
                    *v = weight2.mul_add(gradient.mul_add(gradient, -*v), *v);
                    *w = w.mul_add(keep, -(scale * *m / ((*v * inverse).sqrt() + eps)));
                }
            },
        );
    }
}
