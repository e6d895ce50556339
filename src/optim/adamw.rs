//! AdamW in one pass per parameter, and the auxiliary Adam rule that Muon uses for everything that is not a matrix.

use super::{Clip, Optimizer};
use crate::error::{Error, Result};
use crate::gpu::{Access, Kernel};
use crate::ops::map;
use crate::params::{Gradients, Param, ParamId, Params, Role};
use crate::tensor::Tensor;

static ADAM: Kernel = Kernel::trusted(
    "adam",
    include_str!("../../shaders/adam.wgsl"),
    "main",
    &[Access::Read, Access::Read, Access::ReadWrite, Access::ReadWrite, Access::ReadWrite],
);

/// Which parameters weight decay pulls towards zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Decay {
    /// All, norm weights and gains included, as in the published runs.
    #[default]
    All,
    /// Matrices, the embedding and the head.
    Matrices,
}

/// Settings of Adam.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamConfig {
    /// Decay rates of the two moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Weight decay per unit of learning rate.
    pub weight_decay: f64,
    /// What decays.
    pub decay: Decay,
}

impl Default for AdamConfig {
    fn default() -> Self {
        Self { betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.1, decay: Decay::All }
    }
}

impl AdamConfig {
    pub(super) fn decay_of(&self, role: Role) -> f32 {
        match (self.decay, role) {
            (Decay::Matrices, Role::Vector | Role::State) => 0.0,
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

/// One Adam step of one parameter; `step` counts from 1.
pub(super) fn adam(
    config: &AdamConfig,
    auxiliary: bool,
    (params, id): (&mut Params, ParamId),
    moments: &mut Moments,
    gradient: &Tensor,
    clip: &Clip,
    (step, rate): (u64, f32),
) -> Result<()> {
    let decay = config.decay_of(params.get(id).role);
    let w = params.exclusive(id)?;
    for moment in [&mut moments.m, &mut moments.v] {
        own(moment, w)?;
    }
    let (Some(m), Some(v)) = (&moments.m, &moments.v) else {
        unreachable!("bug: both moments were made just now");
    };
    let correction = config.betas.map(|beta| (1.0 - beta.powf(step as f64)) as f32);
    let shares = config.betas.map(|beta| (1.0 - beta) as f32);
    let numbers = [rate, decay, shares[0], shares[1], config.eps as f32, correction[0], correction[1]];
    map(&ADAM, &[("AUXILIARY", u32::from(auxiliary))], &[gradient, clip.values(), w, m, v], Some(1), &numbers)
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
        self.steps += 1;
        self.moments.resize_with(params.len(), Moments::default);
        for id in params.trained() {
            let moments = &mut self.moments[id.0];
            match gradients.take(id) {
                Some(gradient) => adam(&self.config, false, (params, id), moments, &gradient, clip, (self.steps, rate))?,
                None => moments.fill(&params.get(id).tensor, true)?,
            }
        }
        Ok(())
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
        for id in params.trained() {
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
