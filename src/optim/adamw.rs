//! AdamW in one pass over each parameter, small parameters together, and the auxiliary Adam rule that Muon uses for everything
//! that is not a matrix.

use super::{Clip, Optimizer};
use crate::error::{Error, Result};
use crate::gpu::{Access, Gpu, Kernel, KernelTier, Launch, Slice, grid};
use crate::params::{Gradients, Param, ParamId, Params, Role};
use crate::tensor::Tensor;

/// The most parameters of one dispatch: with 29 bindings, as many as Metal has.
const MOST_JOINED: usize = 7;
/// Parameters of at most so many values share dispatches. A larger one goes at once, so that its gradient's memory is free for
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
    Kernel::trusted("adam", include_str!("../../shaders/adam.wgsl"), "main", bindings)
}

/// Which parameters weight decay pulls towards zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WeightDecayScope {
    /// All, norm weights and gains included, as in the published runs.
    #[default]
    All,
    /// Matrices, the embedding and the head.
    Matrices,
}

/// Settings of Adam.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamConfig {
    /// WeightDecayScope rates of the two moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Weight decay per unit of learning rate.
    pub weight_decay: f64,
    /// What decays.
    pub decay: WeightDecayScope,
}

impl Default for AdamConfig {
    fn default() -> Self {
        Self { betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.1, decay: WeightDecayScope::All }
    }
}

impl AdamConfig {
    pub(super) fn decay_of(&self, role: Role) -> f32 {
        match (self.decay, role) {
            (WeightDecayScope::Matrices, Role::Vector | Role::State) => 0.0,
            _ => self.weight_decay as f32,
        }
    }
}

/// First and second moments of one parameter, zero until its first step.
#[derive(Debug, Default)]
pub(super) struct Moments {
    pub(super) m: Option<Tensor>,
    pub(super) v: Option<Tensor>,
}

/// An Adam step of many parameters, one after the other, of which it runs small ones together.
pub(super) struct Adam<'a> {
    config: &'a AdamConfig,
    /// Whether the rule is Muon's auxiliary one.
    auxiliary: bool,
    clip: &'a Clip,
    /// Counts from 1.
    step: u64,
    /// The learning rate.
    rate: f32,
    waiting: Vec<Update>,
}

/// What the update of one parameter needs.
struct Update {
    gradient: Tensor,
    /// The parameter and its moments.
    changed: [Tensor; 3],
    decay: f32,
}

impl<'a> Adam<'a> {
    pub(super) fn new(config: &'a AdamConfig, auxiliary: bool, clip: &'a Clip, step: u64, rate: f32) -> Self {
        Self { config, auxiliary, clip, step, rate, waiting: Vec::new() }
    }

    /// Updates a parameter, at the latest in [`Adam::finish`].
    pub(super) fn update(&mut self, params: &mut Params, id: ParamId, moments: &mut Moments, gradient: Tensor) -> Result<()> {
        let decay = self.config.decay_of(params.get(id).role);
        let w = params.make_mut(id)?;
        for moment in [&mut moments.m, &mut moments.v] {
            own(moment, w)?;
        }
        let (Some(m), Some(v)) = (&moments.m, &moments.v) else {
            unreachable!("bug: both moments were made just now");
        };
        let update = Update { gradient, changed: [w, m, v].map(Tensor::clone), decay };
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
        let shares = self.config.betas.map(|beta| (1.0 - beta) as f32);
        let numbers = [self.rate, shares[0], shares[1], self.config.eps as f32, correction[0], correction[1]];
        let places = starts.iter().zip(updates).flat_map(|(&start, update)| [start, update.decay.to_bits()]);
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

/// How many parameters share a dispatch: as many as the adapter has bindings for. On the CPU a dispatch costs next to nothing.
fn most_joined(gpu: &Gpu) -> usize {
    let bindings = gpu.adapter().limits.max_storage_buffers_per_shader_stage as usize;
    match gpu.kernels() {
        KernelTier::Fallback => 1,
        _ => ((bindings - 1) / 4).clamp(1, MOST_JOINED),
    }
}

impl Moments {
    /// Zeros for a parameter that no gradient has reached: a state has an entry for every trained parameter.
    pub(super) fn fill(&mut self, like: &Tensor, second: bool) -> Result<()> {
        for moment in [&mut self.m].into_iter().chain(second.then_some(&mut self.v)) {
            if moment.is_none() {
                *moment = Some(Tensor::zeros(like.gpu(), like.shape())?);
            }
        }
        Ok(())
    }

    /// The moments of a parameter from a saved state.
    pub(super) fn load(param: &Param, second: bool, state: &mut dyn FnMut(&str) -> Result<Tensor>) -> Result<Self> {
        let mut moment = |suffix: &str| {
            let tensor = state(&format!("{}.{suffix}", param.name))?;
            if tensor.shape() == param.tensor.shape() {
                return Ok(Some(tensor));
            }
            let (found, expected) = (tensor.shape(), param.tensor.shape());
            Err(Error::shape("load state", format!("`{}.{suffix}` has shape {found:?}, {expected:?} expected", param.name)))
        };
        Ok(Self { m: moment("m")?, v: if second { moment("v")? } else { None } })
    }
}

/// Makes a state tensor fit for changing in place: zeros at first, a copy where a snapshot shares it.
pub(super) fn own(slot: &mut Option<Tensor>, like: &Tensor) -> Result<()> {
    *slot = Some(match slot.take() {
        None => Tensor::zeros(like.gpu(), like.shape())?,
        Some(tensor) => tensor.into_unique()?,
    });
    Ok(())
}

/// AdamW: m ← lerp(m, g, 1-β1), v ← lerp(v, g², 1-β2), w ← w(1-lr·wd) − lr·(m/c1)/(√(v/c2)+eps), c = 1-βᵗ.
#[derive(Debug)]
pub struct AdamW {
    config: AdamConfig,
    moments: Vec<Moments>,
    steps: u64,
}

impl AdamW {
    /// No steps taken yet.
    pub fn new(config: AdamConfig) -> Self {
        Self { config, moments: Vec::new(), steps: 0 }
    }
}

impl Optimizer for AdamW {
    fn step(&mut self, params: &mut Params, mut gradients: Gradients, clip: &Clip, rate: f32) -> Result<()> {
        gradients.check(params)?;
        self.steps += 1;
        self.moments.resize_with(params.len(), Moments::default);
        let mut adam = Adam::new(&self.config, false, clip, self.steps, rate);
        for id in params.trainable() {
            let moments = &mut self.moments[id.0];
            match gradients.take(id) {
                Some(gradient) => adam.update(params, id, moments, gradient)?,
                None => moments.fill(&params.get(id).tensor, true)?,
            }
        }
        adam.finish()
    }

    fn steps(&self) -> u64 {
        self.steps
    }

    fn state(&self, params: &Params) -> Vec<(String, Tensor)> {
        named_state(&self.moments, params)
    }

    fn load_state(&mut self, params: &Params, steps: u64, state: &mut dyn FnMut(&str) -> Result<Tensor>) -> Result<()> {
        self.steps = steps;
        self.moments.clear();
        self.moments.resize_with(params.len(), Moments::default);
        if steps == 0 {
            return Ok(());
        }
        for id in params.trainable() {
            self.moments[id.0] = Moments::load(params.get(id), true, state)?;
        }
        Ok(())
    }
}

pub(super) fn named_state(moments: &[Moments], params: &Params) -> Vec<(String, Tensor)> {
    let named = |(moments, (_, param)): (&Moments, (ParamId, &Param))| {
        let with = |suffix, tensor: &Option<Tensor>| tensor.clone().map(|tensor| (format!("{}.{suffix}", param.name), tensor));
        [with("m", &moments.m), with("v", &moments.v)]
    };
    moments.iter().zip(params.iter()).flat_map(named).flatten().collect()
}
