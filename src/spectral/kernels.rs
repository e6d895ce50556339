//! The matrix-vector passes of the PC layer, one function per entry point of `spectral.wgsl`, over a batch w [batch, rows, columns].

#[cfg(feature = "host")]
mod twins;

use super::pass::{Divisor, Gamma, Pass, R, SCALARS, SOURCE, Teams, W};
use super::{Norm, small};
use crate::error::Result;
use crate::gpu::{Kernel, Slice, grid, strides, with_twin, workgroup};
use crate::tensor::Tensor;

static MULTIPLY: Kernel = with_twin!(Kernel::trusted("spectral multiply", SOURCE, "multiply", &[R, R, W]), twins::multiply);
static APPLY: Kernel = with_twin!(Kernel::trusted("spectral apply", SOURCE, "apply", &[R, R, R, W, W]), twins::apply);
static ROW_PRODUCTS: Kernel =
    with_twin!(Kernel::trusted("spectral row products", SOURCE, "row_products", &[R, R, W]), twins::row_products);
static NORMALIZE: Kernel =
    with_twin!(Kernel::trusted("spectral normalize", SOURCE, "normalize", &[R, R, R, W, W]), twins::normalize);
static DIVIDE: Kernel = with_twin!(Kernel::trusted("spectral divide", SOURCE, "divide", &[R, R, R, W]), twins::divide);
static GAMMA_GRADIENT: Kernel =
    with_twin!(Kernel::trusted("spectral dgamma", SOURCE, "gamma_gradient", &[R, R, W]), twins::gamma_gradient);
static PULL: Kernel = with_twin!(Kernel::trusted("spectral pull", SOURCE, "pull", &[R, R, W]), twins::pull);
static FINISH: Kernel = with_twin!(Kernel::trusted("spectral finish", SOURCE, "finish", &[R, R, R, R, W]), twins::finish);

/// Indices of the scalars of a matrix.
pub(super) const INVERSE: usize = 1;
pub(super) const INVERSE_SQUARE: usize = 2;
pub(super) const OUTPUT: usize = 3;

/// A scalar of each matrix as a product's factor.
pub(super) fn factor(scalars: &Tensor, index: usize) -> crate::gemm::Factor<'_> {
    crate::gemm::Factor { tensor: scalars, index, batch_stride: SCALARS }
}

/// A kernel with a row per team.
fn row_sums(kernel: &'static Kernel, [batch, rows, columns]: [usize; 3], buffers: &[Slice<'_>], on: &Tensor) -> Result<()> {
    let teams = Teams::new(on.gpu(), columns).without_chunks();
    let workgroups = [teams.groups(rows), 1, batch as u32];
    let iterations = strides(columns, teams.team) + teams.sum_iterations();
    Pass { rows, columns, teams: Some(teams), buffers, workgroups, iterations, ..Pass::of(kernel) }.launch(on)
}

/// w·x: w [batch, rows, columns], x [batch, columns] → [batch, rows].
pub(super) fn multiply(w: &Tensor, x: &Tensor) -> Result<Tensor> {
    let [batch, rows, columns] = w.dims("pc")?;
    let y = Tensor::uninitialized(w.gpu(), &[batch, rows])?;
    let buffers = [w, x, &y].map(Tensor::slice);
    row_sums(&MULTIPLY, [batch, rows, columns], &buffers, w)?;
    Ok(y)
}

/// Power iteration for the singular vectors u and v of the largest singular value of w [batch, rows, columns].
pub(super) struct Iteration<'a> {
    w: &'a Tensor,
    eps: f32,
    /// About 1/s of each matrix, so that squares of w·v neither overflow nor underflow; updated by every normalization.
    inverses: Tensor,
    teams: Teams,
}

/// Partial sums of wᵀy, per chunk of rows.
struct Partials {
    parts: Tensor,
    /// Σ y² per chunk.
    squares: Tensor,
}

impl<'a> Iteration<'a> {
    pub(super) fn new(w: &'a Tensor, eps: f32) -> Result<Self> {
        let [batch, _, columns] = w.dims("pc")?;
        let inverses = Tensor::uninitialized(w.gpu(), &[batch])?;
        Ok(Self { w, eps, inverses, teams: Teams::new(w.gpu(), columns) })
    }

    /// wᵀu / (‖wᵀu‖ + eps), or `previous` if wᵀu is zero → [batch, columns].
    pub(super) fn first(&self, u: &Tensor, previous: &Tensor) -> Result<Tensor> {
        self.normalize(&self.apply(u, false)?, previous, false)
    }

    /// The next v: [`Iteration::first`] of u = w·v / (‖w·v‖ + eps), reading w once.
    pub(super) fn next(&self, v: &Tensor) -> Result<Tensor> {
        self.normalize(&self.apply(v, true)?, v, true)
    }

    /// w·v / (‖w·v‖ + eps), or `previous` if w·v is zero → [batch, rows].
    pub(super) fn left(&self, v: &Tensor, previous: &Tensor) -> Result<Tensor> {
        let [batch, rows, _] = self.w.dims("pc")?;
        let parts = multiply(self.w, v)?.reshape(&[batch, 1, rows])?;
        self.normalize(&Partials { squares: parts.clone(), parts }, previous, false)
    }

    fn apply(&self, x: &Tensor, product: bool) -> Result<Partials> {
        let (w, teams) = (self.w, self.teams);
        let [batch, rows, columns] = w.dims("pc")?;
        let chunks = rows.div_ceil(teams.chunk);
        let parts = Tensor::uninitialized(w.gpu(), &[batch, chunks, columns])?;
        let squares = Tensor::uninitialized(w.gpu(), &[batch, chunks])?;
        let buffers = [w, x, &self.inverses, &squares, &parts].map(Tensor::slice);
        let workgroups = [chunks as u32, 1, batch as u32];
        let iterations = match teams.held {
            0 => teams.chunk * 2 * (1 + strides(columns, teams.team)),
            held => teams.chunk * (1 + teams.sum_iterations()) + held * teams.count() as usize,
        };
        let kernel = &APPLY;
        let (teams, buffers) = (Some(teams), &buffers);
        Pass { rows, columns, chunks, teams, product, buffers, workgroups, iterations, ..Pass::of(kernel) }.launch(w)?;
        Ok(Partials { parts, squares })
    }

    fn normalize(&self, partials: &Partials, previous: &Tensor, product: bool) -> Result<Tensor> {
        let [batch, chunks, columns] = partials.parts.dims("pc")?;
        let gpu = self.w.gpu();
        let y = Tensor::uninitialized(gpu, &[batch, columns])?;
        let buffers = [&partials.parts, &partials.squares, previous, &self.inverses, &y].map(Tensor::slice);
        let iterations = strides(columns, workgroup(gpu).0) * (2 + chunks) + chunks;
        let workgroups = [batch as u32, 1, 1];
        let (kernel, eps) = (&NORMALIZE, self.eps);
        Pass { columns, chunks, product, eps, buffers: &buffers, workgroups, iterations, ..Pass::of(kernel) }.launch(self.w)?;
        Ok(y)
    }
}

/// Σ_c a[r, c]·b[r, c] per row → [batch, rows].
pub(super) fn row_products(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let [batch, rows, columns] = a.dims("pc")?;
    let y = Tensor::uninitialized(a.gpu(), &[batch, rows])?;
    let buffers = [a, b, &y].map(Tensor::slice);
    row_sums(&ROW_PRODUCTS, [batch, rows, columns], &buffers, a)?;
    Ok(y)
}

/// The scalars [batch, SCALARS] of each matrix from w [batch, rows, columns], u [batch, rows], v [batch, columns] and γ.
pub(super) fn divide(w: &Tensor, u: &Tensor, v: &Tensor, gamma: &Gamma, divisor: &Divisor) -> Result<Tensor> {
    let [batch, rows, _] = w.dims("pc")?;
    if divisor.norm != Norm::None && small::is_small(w)? {
        return small::divide(w, u, v, gamma, divisor);
    }
    let (numbers, others) = match divisor.norm {
        Norm::Spectral => (multiply(w, v)?, u.clone()),
        Norm::Frobenius => {
            let squares = row_products(w, w)?;
            (squares.clone(), squares)
        }
        Norm::None => (u.clone(), u.clone()),
    };
    let scalars = Tensor::uninitialized(w.gpu(), &[batch, SCALARS])?;
    let buffers = [&numbers, &others, &gamma.values, &scalars].map(Tensor::slice);
    let workgroups = [batch as u32, 1, 1];
    let (kernel, gammas) = (&DIVIDE, [gamma.heads, gamma.stride]);
    let Divisor { norm, eps, recover } = *divisor;
    let norm = norm as u32;
    Pass { rows, eps, norm, recover, gammas, buffers: &buffers, workgroups, iterations: rows, ..Pass::of(kernel) }.launch(w)?;
    Ok(scalars)
}

/// dγ, where γ is: the inner products of P and NᵀE [batch, n, n], times what γ is multiplied by.
pub(super) fn gamma_gradient(p: &Tensor, r: &Tensor, scalars: &Tensor, gamma: &Gamma) -> Result<Tensor> {
    if small::is_small(p)? {
        small::gamma_gradient(p, r, scalars, gamma)
    } else {
        gamma_sum(&row_products(p, r)?, scalars, gamma)
    }
}

/// dγ from the row sums [batch, rows] of P∘(NᵀE).
pub(super) fn gamma_sum(numbers: &Tensor, scalars: &Tensor, gamma: &Gamma) -> Result<Tensor> {
    let [batch, rows] = numbers.dims("pc")?;
    let dgamma = Tensor::uninitialized(numbers.gpu(), gamma.values.shape())?;
    let buffers = [numbers, scalars, &dgamma].map(Tensor::slice);
    let workgroups = [batch as u32, 1, 1];
    let gammas = [gamma.heads, gamma.stride];
    Pass { rows, gammas, buffers: &buffers, workgroups, iterations: rows, ..Pass::of(&GAMMA_GRADIENT) }.launch(numbers)?;
    Ok(dgamma)
}

/// A copy of the scalars with PULL, from ⟨m, w⟩.
fn pull(m: &Tensor, w: &Tensor, scalars: &Tensor, norm: Norm) -> Result<Tensor> {
    if small::is_small(w)? {
        return small::pull(m, w, scalars, norm);
    }
    let [batch, rows, _] = w.dims("pc")?;
    let numbers = row_products(m, w)?;
    let factors = Tensor::uninitialized(w.gpu(), scalars.shape())?;
    let buffers = [&numbers, scalars, &factors].map(Tensor::slice);
    let (workgroups, norm) = ([batch as u32, 1, 1], norm as u32);
    Pass { rows, norm, buffers: &buffers, workgroups, iterations: rows, ..Pass::of(&PULL) }.launch(w)?;
    Ok(factors)
}

/// dw = OUTPUT·(m − PULL·direction), PULL from ⟨m, w⟩, direction u·vᵀ or w.
pub(super) fn finish(m: &Tensor, w: &Tensor, scalars: &Tensor, u: &Tensor, v: &Tensor, norm: Norm) -> Result<Tensor> {
    let [batch, rows, columns] = w.dims("pc")?;
    let factors = pull(m, w, scalars, norm)?;
    let dw = Tensor::uninitialized(w.gpu(), w.shape())?;
    let right = if norm == Norm::Frobenius { w } else { v };
    let buffers = [m, &factors, u, right, &dw].map(Tensor::slice);
    let width = if columns.is_multiple_of(4) { 4 } else { 1 };
    let workgroups = grid((w.len() / width) as u64, 64);
    let norm = norm as u32;
    Pass { rows, columns, chunks: batch, norm, buffers: &buffers, workgroups, ..Pass::of(&FINISH) }.launch(w)?;
    Ok(dw)
}
