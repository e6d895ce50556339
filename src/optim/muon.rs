//! Muon for matrices that are neither the embedding nor the head; the auxiliary Adam rule for everything else.

use super::adamw::{Adam, moments};
use super::{AdamConfig, Clip, Optimizer, OptimizerState, Slot};
use crate::error::Result;
use crate::gpu::{Access, Kernel, with_twin};
use crate::ops::sums_of_squares;
use crate::params::{Gradients, ParamId, Params, Role};
use crate::spectral::{NewtonSchulz, newton_schulz};
use crate::tensor::{Rows, Stacks, Tensor, map, slot};

const SOURCE: &str = include_str!("../../shaders/muon.wgsl");

static MOMENTUM: Kernel = with_twin!(
    Kernel::trusted("muon momentum", SOURCE, "momentum", &[Access::Read, Access::Read, Access::ReadWrite, Access::ReadWrite]),
    twins::momentum
);
static NORMALIZE: Kernel =
    with_twin!(Kernel::trusted("muon normalize", SOURCE, "normalize", &[Access::Read, Access::ReadWrite]), twins::normalize);
static UPDATE: Kernel =
    with_twin!(Kernel::trusted("muon update", SOURCE, "update", &[Access::Read, Access::ReadWrite]), twins::update);

/// How the update of a matrix [r, c] scales the learning rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum LrScale {
    /// 0.2·√max(r, c): updates with the RMS of AdamW's (arXiv 2502.16982).
    #[default]
    Moonlight,
    /// √(r/c)
    SpectralMup,
    /// √max(1, r/c)
    KellerJordan,
}

impl LrScale {
    pub(super) fn of(self, rows: usize, columns: usize) -> f32 {
        let (r, c) = (rows as f64, columns as f64);
        let scale = match self {
            Self::Moonlight => 0.2 * r.max(c).sqrt(),
            Self::SpectralMup => (r / c).sqrt(),
            Self::KellerJordan => (r / c).max(1.0).sqrt(),
        };
        scale as f32
    }
}

/// Settings of Muon and of the rules built on it.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MuonConfig {
    /// μ of m ← μ·m + g.
    pub momentum: f64,
    /// Coefficients of the orthogonalization.
    pub coefficients: NewtonSchulz,
    /// Number of Newton–Schulz steps; `None` takes the coefficient set's own.
    pub newton_schulz_steps: Option<usize>,
    /// Scale of the learning rate by the matrix's shape.
    pub lr_scale: LrScale,
    /// The rule for everything that is not a matrix. Its weight decay holds for the matrices, too.
    pub adam: AdamConfig,
}

impl Default for MuonConfig {
    fn default() -> Self {
        Self {
            momentum: 0.95,
            coefficients: NewtonSchulz::Simple,
            newton_schulz_steps: None,
            lr_scale: LrScale::Moonlight,
            adam: AdamConfig::default(),
        }
    }
}

/// Elements of matrices of one shape that are updated together on the host tier: small ones would leave most threads idle.
const STACKED_ON_HOST: usize = 1 << 20;

/// Matrices of one shape that wait for their update.
struct Stack {
    shape: [usize; 2],
    /// The stack that they are parts of, if any, so that they may lie one after the other; on the host tier it does not matter.
    of: Option<usize>,
    ids: Vec<ParamId>,
    gradients: Vec<Tensor>,
}

/// Maximum number of matrices [rows, columns] that [`Muon`] and the rules built on it update together.
pub fn muon_stack(stacks: Stacks, [rows, columns]: [usize; 2]) -> usize {
    let numel = rows * columns;
    // Batches have no gaps, neither of matrices nor of moments per row.
    if slot(numel) != numel || slot(rows) != rows {
        1
    } else if stacks.is_host() {
        (STACKED_ON_HOST / numel).max(1)
    } else {
        stacks.count(numel)
    }
}

impl MuonConfig {
    /// Number of Newton–Schulz steps.
    fn steps(&self) -> usize {
        self.newton_schulz_steps.unwrap_or(self.coefficients.default_steps())
    }

    /// [`Optimizer::products`]: each step takes a Gram matrix, its square, and a product with the matrix.
    pub(super) fn products(&self, role: Role) -> usize {
        if role == Role::Matrix { 3 * self.steps() } else { 0 }
    }

    /// Updates the momentum of matrices of one shape: m ← μ·m + g → d/‖d‖ [count, rows, columns], d = g + μ·m.
    fn direction(&self, state: &mut OptimizerState, stack: &mut Stack, clip: &Clip) -> Result<Tensor> {
        let ([rows, columns], count, gpu) = (stack.shape, stack.ids.len(), clip.values().gpu());
        let m = state.stack(gpu, &stack.ids, "m", &stack.shape)?;
        let gradients = std::mem::take(&mut stack.gradients);
        let g = match &gradients[..] {
            [one] => one.clone(),
            several => Tensor::stacked(&several.iter().collect::<Vec<_>>())?,
        };
        drop(gradients);
        let d = Tensor::uninitialized(gpu, &[count, rows, columns])?;
        let momentum = self.momentum as f32;
        map(&MOMENTUM, &[], &[&g, clip.values(), &m, &d], Some(1), &[momentum, 0.0, 0.0, 0.0, 0.0])?;
        drop(g);
        let squares = sums_of_squares(&d, count)?;
        let normalize = Rows {
            kernel: &NORMALIZE,
            constants: &[],
            rows: d.len(),
            tensors: &[(&squares, 0), (&d, 1)],
            arguments: &[0, 0, 0, 0, (rows * columns) as u32],
            invocations_per_row: 0.25,
            workgroup: 64,
            iterations: 0,
        };
        normalize.launch(gpu)?;
        Ok(d)
    }

    /// A step in which `update` moves matrices of one shape along their orthogonal directions [count, rows, columns], and the auxiliary
    /// Adam rule everything else.
    pub(super) fn step(
        &self,
        state: &mut OptimizerState,
        params: &mut Params,
        gradients: Gradients,
        clip: &Clip,
        lr: f32,
        update: impl Fn(&mut OptimizerState, &mut Params, &[ParamId], Tensor) -> Result<()>,
    ) -> Result<()> {
        let gradients = gradients.into_checked(params)?;
        let mut adam = Adam::new(&self.adam, true, clip, state.count_step(), lr);
        let run = |stack: &mut Stack, state: &mut OptimizerState, params: &mut Params| {
            let d = self.direction(state, stack, clip)?;
            let orthogonal = newton_schulz(d, self.coefficients, self.steps())?;
            update(state, params, &std::mem::take(&mut stack.ids), orthogonal)
        };
        let mut stacks: Vec<Stack> = Vec::new();
        for (id, gradient) in gradients {
            if params.get(id)?.role != Role::Matrix {
                adam.update(params, id, state, gradient)?;
                continue;
            }
            let shape = gradient.dims("muon")?;
            let of = if Stacks::of(params.gpu()).is_host() { None } else { params.get(id)?.tensor.stack_of() };
            let at = stacks.iter().position(|stack| (stack.shape, stack.of) == (shape, of)).unwrap_or_else(|| {
                stacks.push(Stack { shape, of, ids: Vec::new(), gradients: Vec::new() });
                stacks.len() - 1
            });
            let stack = &mut stacks[at];
            stack.ids.push(id);
            stack.gradients.push(gradient);
            if stack.ids.len() == muon_stack(Stacks::of(params.gpu()), shape) {
                run(stack, state, params)?;
            }
        }
        for stack in stacks.iter_mut().filter(|stack| !stack.ids.is_empty()) {
            run(stack, state, params)?;
        }
        adam.finish()
    }
}

/// Muon ([Keller Jordan and others, 2024](https://kellerjordan.github.io/posts/muon/)): m ← μ·m + g, d = g + μ·m,
/// w ← w·(1 − lr·λ) − lr·s·newton_schulz(d / ‖d‖), where s is the [`LrScale`] and λ the weight decay. Other parameters:
/// w ← w·(1 − lr·λ) − lr·(√c₂/c₁)·m/(√v + eps), with the moments and corrections of [`AdamW`](super::AdamW).
///
/// Newton–Schulz drives the singular values of d towards 1, so that an update has about the size lr·s in every direction, however
/// small its singular value:
///
/// ```
/// use polytape::optim::{AdamConfig, Clip, LrScale, Muon, MuonConfig, Optimizer};
/// use polytape::{Gpu, Gradients, Params, Role, Tensor};
///
/// # fn main() -> polytape::Result<()> {
/// # let gpu = Gpu::open(&Default::default())?;
/// let mut params = Params::new(&gpu);
/// let w = params.add("w", Role::Matrix, Tensor::zeros(&gpu, &[2, 2])?)?;
/// let mut gradients = Gradients::new();
/// gradients.add(w, Tensor::from_slice(&gpu, &[5.0, 0.0, 0.0, 0.5], &[2, 2])?)?;
/// let clip = Clip::new(&gpu, &gradients, f32::INFINITY)?;
/// let config = MuonConfig { lr_scale: LrScale::SpectralMup, ..Default::default() };
/// Muon::new(config).step(&mut params, gradients, &clip, 0.1)?;
/// let found = params.get(w)?.tensor.to_vec()?;
/// assert!((found[0] + 0.070_201).abs() < 1e-5 && (found[3] + 0.070_869).abs() < 1e-5, "{found:?}");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Muon {
    config: MuonConfig,
    state: OptimizerState,
}

impl Muon {
    /// No steps taken yet.
    pub fn new(config: MuonConfig) -> Self {
        Self { config, state: OptimizerState::default() }
    }
}

impl Optimizer for Muon {
    fn step(&mut self, params: &mut Params, gradients: Gradients, clip: &Clip, lr: f32) -> Result<()> {
        let config = self.config;
        let weight_decay = config.adam.weight_decay_of(Role::Matrix);
        config.step(&mut self.state, params, gradients, clip, lr, |_, params, ids, o| {
            let [_, rows, columns] = o.dims("muon")?;
            let numbers = [0.0, lr, weight_decay, config.lr_scale.of(rows, columns), 0.0];
            params.make_mut_runs(ids)?.into_iter().try_for_each(|(run, w)| {
                let o = o.view(run.start * rows * columns, &[run.len(), rows, columns])?;
                map(&UPDATE, &[], &[&o, &w], None, &numbers)
            })
        })
    }

    fn slots(&self, role: Role, shape: &[usize]) -> Vec<Slot> {
        if role == Role::Matrix { vec![Slot::new("m", shape)] } else { moments(shape) }
    }

    fn products(&self, role: Role) -> usize {
        self.config.products(role)
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

    pub(super) fn momentum(host: &Host<'_>) {
        let (g, clip, [m, d]) = (host.input(0), host.input(1)[1], host.outputs());
        let momentum = host.number(2);
        host.map(
            5,
            [m, d],
            #[inline(always)]
            |range, [m, d]| {
                for ((m, d), g) in m.iter_mut().zip(d).zip(&g[range]) {
                    let gradient = g * clip;
                    *m = momentum.mul_add(*m, gradient);
                    *d = momentum.mul_add(*m, gradient);
                }
            },
        );
    }

    pub(super) fn normalize(host: &Host<'_>) {
        let (squares, [y]) = (host.input(0), host.outputs());
        let (first, numel) = (host.size(1), host.size(6));
        host.map(
            1,
            [y],
            #[inline(always)]
            |range, [y]| {
                let mut at = first + range.start;
                let mut rest = y;
                while !rest.is_empty() {
                    let length = (numel - at % numel).min(rest.len());
                    let (own, others) = std::mem::take(&mut rest).split_at_mut(length);
                    let factor = 1.0 / (squares[at / numel].sqrt() + 1e-7);
                    own.iter_mut().for_each(|y| *y *= factor);
                    at += own.len();
                    rest = others;
                }
            },
        );
    }

    pub(super) fn update(host: &Host<'_>) {
        let (x, [w]) = (host.input(0), host.outputs());
        let [lr, weight_decay, lr_scale] = [3, 4, 5].map(|at| host.number(at));
        let (keep, scale) = (1.0 - lr * weight_decay, lr * lr_scale);
        host.map(
            3,
            [w],
            #[inline(always)]
            |range, [w]| {
                for (w, x) in w.iter_mut().zip(&x[range]) {
                    *w = w.mul_add(keep, -(scale * x));
                }
            },
        );
    }
}
