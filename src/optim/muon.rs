//! Muon for matrices that are neither the embedding nor the head; the auxiliary Adam rule for everything else.

use super::adamw::{Adam, Moments, named_state, own};
use super::clip::inverse_norm;
use super::{AdamConfig, Clip, Optimizer};
use crate::error::Result;
use crate::gpu::{Access, Kernel};
use crate::params::{Gradients, ParamId, Params, Role};
use crate::spectral::{NewtonSchulz, newton_schulz};
use crate::tensor::{Tensor, map};

const SOURCE: &str = include_str!("../../shaders/muon.wgsl");

static MOMENTUM: Kernel =
    Kernel::trusted("muon momentum", SOURCE, "momentum", &[Access::Read, Access::Read, Access::ReadWrite, Access::ReadWrite]);
static UPDATE: Kernel = Kernel::trusted("muon update", SOURCE, "update", &[Access::Read, Access::ReadWrite]);

/// How the step of a matrix [r, c] relates to the learning rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LrScale {
    /// 0.2·√max(r, c): the root mean square of AdamW's steps.
    #[default]
    Moonlight,
    /// √(r/c)
    SpectralMup,
    /// √max(1, r/c)
    KellerJordan,
}

impl LrScale {
    fn of(self, rows: usize, columns: usize) -> f32 {
        let (r, c) = (rows as f64, columns as f64);
        let ratio = match self {
            Self::Moonlight => 0.2 * r.max(c).sqrt(),
            Self::SpectralMup => (r / c).sqrt(),
            Self::KellerJordan => (r / c).max(1.0).sqrt(),
        };
        ratio as f32
    }
}

/// Settings of Muon.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MuonConfig {
    /// μ of m ← μ·m + g.
    pub momentum: f64,
    /// Coefficients of the orthogonalisation.
    pub coefficients: NewtonSchulz,
    /// Its number of steps; `None` takes the coefficient set's own.
    pub newton_schulz_steps: Option<usize>,
    /// Step length against the learning rate.
    pub ratio: LrScale,
    /// The rule for everything that is not a matrix; its weight decay is that of the matrices, too.
    pub adam: AdamConfig,
}

impl Default for MuonConfig {
    fn default() -> Self {
        Self {
            momentum: 0.95,
            coefficients: NewtonSchulz::Simple,
            newton_schulz_steps: None,
            ratio: LrScale::Moonlight,
            adam: AdamConfig::default(),
        }
    }
}

/// Muon: m ← μ·m + g, d = g + μ·m, w ← w(1−lr·wd) − lr·ratio·orthogonal(d).
#[derive(Debug)]
pub struct Muon {
    config: MuonConfig,
    moments: Vec<Moments>,
    steps: u64,
}

impl Muon {
    /// No steps taken yet.
    pub fn new(config: MuonConfig) -> Self {
        Self { config, moments: Vec::new(), steps: 0 }
    }

    fn step_matrix(&mut self, params: &mut Params, id: ParamId, gradient: Tensor, clip: &Clip, rate: f32) -> Result<()> {
        let config = &self.config;
        let decay = config.adam.decay_of(Role::Matrix);
        let momentum = &mut self.moments[id.0].m;
        own(momentum, &gradient)?;
        let m = momentum.as_ref().expect("bug: the momentum was made just now");
        let [rows, columns] = gradient.dims("muon")?;
        let direction = Tensor::uninitialized(gradient.gpu(), gradient.shape())?;
        let numbers = [config.momentum as f32, rate, decay, config.ratio.of(rows, columns)];
        map(&MOMENTUM, &[], &[&gradient, clip.values(), m, &direction], Some(1), &numbers)?;
        drop(gradient);
        let x = direction.scaled_by(&inverse_norm(&direction)?, 1.0)?;
        drop(direction);
        let steps = config.newton_schulz_steps.unwrap_or(config.coefficients.default_steps());
        let x = newton_schulz(x, config.coefficients, steps)?;
        map(&UPDATE, &[], &[&x, params.make_mut(id)?], None, &numbers)
    }
}

impl Optimizer for Muon {
    fn step(&mut self, params: &mut Params, mut gradients: Gradients, clip: &Clip, rate: f32) -> Result<()> {
        gradients.check(params)?;
        self.steps += 1;
        self.moments.resize_with(params.len(), Moments::default);
        let config = self.config.adam;
        let mut adam = Adam::new(&config, true, clip, self.steps, rate);
        for id in params.trainable() {
            let is_matrix = params.get(id).role == Role::Matrix;
            let moments = &mut self.moments[id.0];
            match gradients.take(id) {
                None => moments.fill(&params.get(id).tensor, !is_matrix)?,
                Some(gradient) if is_matrix => self.step_matrix(params, id, gradient, clip, rate)?,
                Some(gradient) => adam.update(params, id, moments, gradient)?,
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
            let param = params.get(id);
            self.moments[id.0] = Moments::load(param, param.role != Role::Matrix, state)?;
        }
        Ok(())
    }
}
