//! NorMuon: Muon whose orthogonalized update is divided, row by row, by the root of a second moment.

use super::adamw::moments;
use super::{Clip, MuonConfig, Optimizer, OptimizerState, Slot};
use crate::error::Result;
use crate::gpu::{Access, Kernel, strides, vectors, with_twin, workgroup};
use crate::ops::final_sums;
use crate::params::{Gradients, Params, Role};
use crate::tensor::{Rows, Tensor};

const SOURCE: &str = include_str!("../../shaders/normuon.wgsl");

static SECOND_MOMENT: Kernel = with_twin!(
    Kernel::trusted("normuon second moment", SOURCE, "second_moment", &[Access::Read, Access::ReadWrite, Access::ReadWrite]),
    twins::second_moment
);
static UPDATE: Kernel = with_twin!(
    Kernel::trusted("normuon update", SOURCE, "update", &[Access::Read, Access::Read, Access::Read, Access::ReadWrite]),
    twins::update
);

/// NorMuon (arXiv 2510.05491): with the orthogonal direction o [r, c] of [`Muon`](super::Muon) and a second moment v `[r]` of its
/// rows, v ← β2·v + (1−β2)·mean_c(o²), ô = o / (√v + eps), w ← w·(1 − lr·λ) − lr·s·√min(r, c)/‖ô‖·ô. β2 and eps are those of the
/// auxiliary Adam rule; s is the [`LrScale`](super::LrScale). An exactly orthogonal o has the norm √min(r, c), so that s means what
/// it means for Muon; with `Moonlight` the factor is the paper's 0.2·√(r·c)/‖ô‖.
///
/// After the first step every row of the update has the same norm:
///
/// ```
/// use polytape::optim::{Clip, MuonConfig, NorMuon, Optimizer};
/// use polytape::{Gpu, Gradients, Params, Role, Tensor};
///
/// # fn main() -> polytape::Result<()> {
/// # let gpu = Gpu::open(&Default::default())?;
/// let mut params = Params::new(&gpu);
/// let w = params.add("w", Role::Matrix, Tensor::zeros(&gpu, &[2, 2])?)?;
/// let mut gradients = Gradients::new();
/// gradients.add(w, Tensor::from_slice(&gpu, &[5.0, 0.0, 0.0, 0.5], &[2, 2])?)?;
/// let clip = Clip::new(&gpu, &gradients, f32::INFINITY)?;
/// NorMuon::new(MuonConfig::default()).step(&mut params, gradients, &clip, 0.1)?;
/// let found = params.get(w)?.tensor.to_vec()?; // −lr·0.2·√(r·c)/‖ô‖·ô: 0.04/√2 each
/// assert!((found[0] + 0.028_284).abs() < 1e-5 && (found[3] + 0.028_284).abs() < 1e-5, "{found:?}");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct NorMuon {
    config: MuonConfig,
    state: OptimizerState,
}

impl NorMuon {
    /// No steps taken yet.
    pub fn new(config: MuonConfig) -> Self {
        Self { config, state: OptimizerState::default() }
    }

    /// Updates the second moments with the orthogonal directions o [count, rows, columns] and returns ‖ô‖² of each → `[count]`.
    fn normalize(&self, o: &Tensor, second_moments: &Tensor) -> Result<Tensor> {
        let [count, rows, columns] = o.dims("normuon")?;
        let (workgroup, one_subgroup) = workgroup(o.gpu());
        let squares = Tensor::uninitialized(o.gpu(), &[count * rows])?;
        let [_, beta2] = self.config.adam.betas;
        let launch = Rows {
            kernel: &SECOND_MOMENT,
            constants: &[("WORKGROUP", workgroup), ("ONE_SUBGROUP", one_subgroup), ("VECTORS", vectors(columns))],
            rows: count * rows,
            tensors: &[(o, columns), (second_moments, 1), (&squares, 1)],
            arguments: &[columns as u32, ((1.0 - beta2) as f32).to_bits(), (self.config.adam.eps as f32).to_bits()],
            invocations_per_row: f64::from(workgroup),
            workgroup,
            iterations: strides(columns, workgroup),
        };
        launch.launch(o.gpu())?;
        let totals = Tensor::uninitialized(o.gpu(), &[count])?;
        final_sums(&squares, count, 1.0, &totals, 0)?;
        Ok(totals)
    }

    /// Moves w, those matrices from the one at `first` on that lie one after the other.
    fn update(&self, o: &Tensor, second_moments: &Tensor, totals: &Tensor, first: usize, w: &Tensor, lr: f32) -> Result<()> {
        let [_, rows, columns] = o.dims("normuon")?;
        let count = w.len() / (rows * columns);
        let width = if columns.is_multiple_of(4) { 4 } else { 1 };
        let config = &self.config;
        let scale = lr * config.lr_scale.of(rows, columns) * (rows.min(columns) as f32).sqrt();
        let shrink = lr * config.adam.weight_decay_of(Role::Matrix);
        let o = o.view(first * rows * columns, &[count, rows, columns])?;
        let second_moments = second_moments.view(first * rows, &[count * rows])?;
        let numbers = [scale, shrink, config.adam.eps as f32].map(f32::to_bits);
        let launch = Rows {
            kernel: &UPDATE,
            constants: &[("VECTORS", vectors(columns))],
            rows: count * rows,
            tensors: &[(&o, columns), (&second_moments, 1), (totals, 0), (w, columns)],
            arguments: &[&[columns as u32], &numbers[..], &[rows as u32, first as u32]].concat(),
            invocations_per_row: (columns / width) as f64,
            workgroup: 64,
            iterations: 0,
        };
        launch.launch(o.gpu())
    }
}

impl Optimizer for NorMuon {
    fn step(&mut self, params: &mut Params, gradients: Gradients, clip: &Clip, lr: f32) -> Result<()> {
        let mut state = std::mem::take(&mut self.state);
        let done = self.config.step(&mut state, params, gradients, clip, lr, |state, params, ids, o| {
            let [_, rows, _] = o.dims("normuon")?;
            let second_moments = state.stack(o.gpu(), ids, "v", &[rows])?;
            let totals = self.normalize(&o, &second_moments)?;
            let mut runs = params.make_mut_runs(ids)?.into_iter();
            runs.try_for_each(|(run, w)| self.update(&o, &second_moments, &totals, run.start, &w, lr))
        });
        self.state = state;
        done
    }

    fn slots(&self, role: Role, shape: &[usize]) -> Vec<Slot> {
        if role == Role::Matrix { vec![Slot::new("m", shape), Slot::new("v", &shape[..1])] } else { moments(shape) }
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
    use crate::gpu::host::simd::dot;

    pub(super) fn second_moment(host: &Host<'_>) {
        let (o, [v, squares]) = (host.input(0), host.outputs());
        let (rows, columns, weight2, eps) = (host.size(0), host.size(2), host.number(3), host.number(4));
        host.rows(
            rows,
            columns,
            [(v, 1), (squares, 1)],
            #[inline(always)]
            |range, [v, squares]| {
                let o = &o[range.start * columns..range.end * columns];
                for ((v, squares), o) in v.iter_mut().zip(squares).zip(o.chunks_exact(columns)) {
                    let square = dot(o, o);
                    *v += weight2 * (square / columns as f32 - *v);
                    let divisor = v.sqrt() + eps;
                    *squares = square / (divisor * divisor);
                }
            },
        );
    }

    pub(super) fn update(host: &Host<'_>) {
        let (o, v, totals, [w]) = (host.input(0), host.input(1), host.input(2), host.outputs());
        let [rows, first, columns, matrix_rows, first_matrix] = [0, 1, 2, 6, 7].map(|at| host.size(at));
        let [scale, shrink, eps] = [3, 4, 5].map(|at| host.number(at));
        host.rows(
            rows,
            3 * columns,
            [(w, columns)],
            #[inline(always)]
            |range, [w]| {
                let o = &o[range.start * columns..range.end * columns];
                for (row, (w, o)) in range.zip(w.chunks_exact_mut(columns).zip(o.chunks_exact(columns))) {
                    let total = totals[first_matrix + (first + row) / matrix_rows];
                    // A zero direction has no norm, and stays zero.
                    let scale = if total == 0.0 { 0.0 } else { scale / total.sqrt() };
                    let scale = scale / (v[row].sqrt() + eps);
                    for (w, o) in w.iter_mut().zip(o) {
                        *w = w.mul_add(1.0 - shrink, -(scale * o));
                    }
                }
            },
        );
    }
}
