//! The matrix-vector passes of the PC layer over small matrices: one workgroup runs all passes of a matrix, which is faster than a
//! dispatch per pass. Not used where a workgroup is one subgroup, which has too few invocations.

use super::Norm;
use super::pass::{Divisor, Gamma, Pass, R, SCALARS, SOURCE, Teams, W};
use crate::error::Result;
use crate::gpu::{Kernel, KernelTier, strides};
use crate::tensor::Tensor;

static ITERATE: Kernel = Kernel::trusted("spectral iterate", SOURCE, "iterate", &[R, R, R, W, W]);
static DIVIDE: Kernel = Kernel::trusted("spectral divide", SOURCE, "divide_whole", &[R, R, R, W, R]);
static GAMMA_GRADIENT: Kernel = Kernel::trusted("spectral dgamma", SOURCE, "gamma_gradient_whole", &[R, R, W, R]);
static PULL: Kernel = Kernel::trusted("spectral pull", SOURCE, "pull_whole", &[R, R, W, R]);

/// Maximum elements of a small matrix: reading them takes about as long as two dispatches.
const SMALL: usize = 1 << 18;
/// Elements of a row that all invocations of a team hold together: 8 KiB of shared memory.
const LONGEST_ROW: usize = 512;
/// Loop iterations of one invocation; software adapters' limit is 65,535.
const MOST_ITERATIONS: usize = 60_000;

/// Whether the matrices of a batch w [batch, rows, columns] are small. Depends on the shape of one alone.
pub(super) fn is_small(w: &Tensor) -> Result<bool> {
    let [_, rows, columns] = w.dims("pc")?;
    let (_, one_subgroup) = Teams::new(w.gpu(), columns).workgroup;
    // The host tier has twins of the passes instead.
    Ok(w.gpu().kernels() != KernelTier::Host && one_subgroup == 0 && rows * columns <= SMALL)
}

/// `iterations` of the power iteration → (u, v), [`Iteration`](super::kernels::Iteration)'s; `None` for matrices that are not small.
pub(super) fn iterate(w: &Tensor, u: &Tensor, v: &Tensor, iterations: usize, eps: f32) -> Result<Option<(Tensor, Tensor)>> {
    let [batch, rows, columns] = w.dims("pc")?;
    let teams = Teams::new(w.gpu(), columns);
    let per_row = 1 + teams.sum_iterations();
    let steps = rows.div_ceil(teams.count() as usize);
    let loops = (iterations + 1) * (steps * per_row + teams.sum_iterations() + 9 * teams.count() as usize) + steps;
    let is_short = (1..=LONGEST_ROW).contains(&(teams.team as usize * teams.held));
    if !is_small(w)? || !is_short || loops > MOST_ITERATIONS {
        return Ok(None);
    }
    let new_u = Tensor::uninitialized(w.gpu(), u.shape())?;
    let new_v = Tensor::uninitialized(w.gpu(), v.shape())?;
    let buffers = [w, u, v, &new_u, &new_v].map(Tensor::slice);
    let (kernel, buffers, workgroups) = (&ITERATE, &buffers, [batch as u32, 1, 1]);
    let (chunks, teams) = (iterations, Some(Teams { chunk: 1, ..teams }));
    Pass { rows, columns, chunks, teams, iterates: true, eps, buffers, workgroups, iterations: loops, ..Pass::of(kernel) }
        .launch(w)?;
    Ok(Some((new_u, new_v)))
}

/// The scalars of each matrix.
pub(super) fn divide(w: &Tensor, u: &Tensor, v: &Tensor, gamma: &Gamma, divisor: &Divisor) -> Result<Tensor> {
    let batch = w.shape()[0];
    let scalars = Tensor::uninitialized(w.gpu(), &[batch, SCALARS])?;
    let buffers = [w, u, &gamma.values, &scalars, v].map(Tensor::slice);
    let Divisor { norm, eps, recover } = *divisor;
    let (norm, gammas, buffers) = (norm as u32, [gamma.heads, gamma.stride], &buffers);
    of_matrices(w, Pass { eps, norm, recover, gammas, buffers, ..Pass::of(&DIVIDE) })?;
    Ok(scalars)
}

/// dγ, where γ is.
pub(super) fn gamma_gradient(p: &Tensor, r: &Tensor, scalars: &Tensor, gamma: &Gamma) -> Result<Tensor> {
    let dgamma = Tensor::uninitialized(p.gpu(), gamma.values.shape())?;
    let buffers = [p, scalars, &dgamma, r].map(Tensor::slice);
    of_matrices(p, Pass { gammas: [gamma.heads, gamma.stride], buffers: &buffers, ..Pass::of(&GAMMA_GRADIENT) })?;
    Ok(dgamma)
}

/// A copy of the scalars with PULL.
pub(super) fn pull(m: &Tensor, w: &Tensor, scalars: &Tensor, norm: Norm) -> Result<Tensor> {
    let factors = Tensor::uninitialized(w.gpu(), scalars.shape())?;
    let buffers = [m, scalars, &factors, w].map(Tensor::slice);
    of_matrices(w, Pass { norm: norm as u32, buffers: &buffers, ..Pass::of(&PULL) })?;
    Ok(factors)
}

/// A pass with a workgroup per matrix of `on`.
fn of_matrices(on: &Tensor, pass: Pass<'_>) -> Result<()> {
    let [batch, rows, columns] = on.dims("pc")?;
    let (workgroup, _) = Teams::new(on.gpu(), columns).workgroup;
    let iterations = rows * strides(columns, 1).div_ceil(workgroup as usize);
    Pass { rows, columns, workgroups: [batch as u32, 1, 1], iterations, ..pass }.launch(on)
}
