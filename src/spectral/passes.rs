//! The vector passes of the PC layer, one function per entry point of `spectral.wgsl`, over a batch w [batch, rows, columns].

use crate::error::Result;
use crate::gpu::{Access, Kernel, Launch, Slice, grid};
use crate::ops::{vectors, workgroup};
use crate::tensor::Tensor;

use super::pc::Norm;

const SOURCE: &str = include_str!("../../shaders/spectral.wgsl");
const R: Access = Access::Read;
const W: Access = Access::ReadWrite;

static MULTIPLY: Kernel = Kernel::trusted("spectral multiply", SOURCE, "multiply", &[R, R, W]);
static MULTIPLY_TRANSPOSED: Kernel = Kernel::trusted("spectral multiply t", SOURCE, "multiply_transposed", &[R, R, W]);
static ROW_PRODUCTS: Kernel = Kernel::trusted("spectral row products", SOURCE, "row_products", &[R, R, W]);
static NORMALIZE: Kernel = Kernel::trusted("spectral normalize", SOURCE, "normalize", &[R, R, W]);
static DIVIDE: Kernel = Kernel::trusted("spectral divide", SOURCE, "divide", &[R, R, R, W]);
static GAMMA_GRADIENT: Kernel = Kernel::trusted("spectral dgamma", SOURCE, "gamma_gradient", &[R, R, W]);
static PULL: Kernel = Kernel::trusted("spectral pull", SOURCE, "pull", &[R, R, W]);
static FINISH: Kernel = Kernel::trusted("spectral finish", SOURCE, "finish", &[R, R, R, R, W]);

/// Rows that one invocation of the transposed product adds; `CHUNK` of the shader.
const CHUNK: usize = 64;
/// Floats per matrix in the scalars; `SCALARS` of the shader.
const SCALARS: usize = 8;

/// Places in the scalars of a matrix.
pub(super) const INVERSE: usize = 1;
pub(super) const INVERSE_SQUARE: usize = 2;
pub(super) const OUTPUT: usize = 3;

/// One element of each matrix's scalars as a product's factor.
pub(super) fn factor(scalars: &Tensor, index: usize) -> crate::ops::Factor<'_> {
    crate::ops::Factor { tensor: scalars, index, batch_stride: SCALARS }
}

/// What the entry points share.
struct Pass<'a> {
    kernel: &'static Kernel,
    rows: usize,
    columns: usize,
    chunks: usize,
    eps: f32,
    norm: u32,
    recover: bool,
    buffers: &'a [Slice<'a>],
    workgroups: [u32; 3],
    iterations: usize,
}

impl Pass<'_> {
    fn launch(self, on: &Tensor) -> Result<()> {
        let (workgroup, one_subgroup) = workgroup(on.gpu());
        let arguments =
            [self.rows as u32, self.columns as u32, self.chunks as u32, self.eps.to_bits(), self.norm, u32::from(self.recover)];
        on.gpu().launch(&Launch {
            kernel: self.kernel,
            constants: &[("WORKGROUP", workgroup), ("ONE_SUBGROUP", one_subgroup), ("VECTORS", vectors(self.columns))],
            buffers: self.buffers,
            arguments: bytemuck::cast_slice(&arguments),
            workgroups: self.workgroups,
            iterations: self.iterations as u64,
            work: 0,
        })
    }
}

const NEUTRAL: Pass<'static> = Pass {
    kernel: &MULTIPLY,
    rows: 0,
    columns: 0,
    chunks: 1,
    eps: 0.0,
    norm: 0,
    recover: false,
    buffers: &[],
    workgroups: [1, 1, 1],
    iterations: 0,
};

/// w·x: w [batch, rows, columns], x [batch, columns] → [batch, rows].
pub(super) fn multiply(w: &Tensor, x: &Tensor) -> Result<Tensor> {
    let [batch, rows, columns] = w.dims("pc")?;
    let y = Tensor::uninitialized(w.gpu(), &[batch, rows])?;
    let buffers = [w, x, &y].map(Tensor::slice);
    let workgroups = [rows as u32, 1, batch as u32];
    Pass { kernel: &MULTIPLY, rows, columns, buffers: &buffers, workgroups, iterations: columns, ..NEUTRAL }.launch(w)?;
    Ok(y)
}

/// wᵀ·x / (its norm + eps), or `previous` where that is zero: w [batch, rows, columns], x [batch, rows] → [batch, columns].
pub(super) fn multiply_transposed(w: &Tensor, x: &Tensor, previous: &Tensor, eps: f32) -> Result<Tensor> {
    let [batch, rows, columns] = w.dims("pc")?;
    let chunks = rows.div_ceil(CHUNK);
    let parts = Tensor::uninitialized(w.gpu(), &[batch, chunks, columns])?;
    let width = if columns.is_multiple_of(4) { 4 } else { 1 };
    let buffers = [w, x, &parts].map(Tensor::slice);
    let workgroups = [(columns / width).div_ceil(16) as u32, chunks as u32, batch as u32];
    let kernel = &MULTIPLY_TRANSPOSED;
    Pass { kernel, rows, columns, chunks, buffers: &buffers, workgroups, iterations: CHUNK, ..NEUTRAL }.launch(w)?;
    normalize(&parts, previous, eps)
}

/// Σ over the chunks of parts [batch, chunks, n], divided by (its norm + eps), or `previous` where that is zero → [batch, n].
pub(super) fn normalize(parts: &Tensor, previous: &Tensor, eps: f32) -> Result<Tensor> {
    let [batch, chunks, columns] = parts.dims("pc")?;
    let y = Tensor::uninitialized(parts.gpu(), &[batch, columns])?;
    let buffers = [parts, previous, &y].map(Tensor::slice);
    let iterations = columns.div_ceil(workgroup(parts.gpu()).0 as usize) * (2 + chunks);
    let workgroups = [batch as u32, 1, 1];
    Pass { kernel: &NORMALIZE, columns, chunks, eps, buffers: &buffers, workgroups, iterations, ..NEUTRAL }.launch(parts)?;
    Ok(y)
}

/// Σ_c a[r, c]·b[r, c] for each row → [batch, rows].
pub(super) fn row_products(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let [batch, rows, columns] = a.dims("pc")?;
    let y = Tensor::uninitialized(a.gpu(), &[batch, rows])?;
    let buffers = [a, b, &y].map(Tensor::slice);
    let workgroups = [rows as u32, 1, batch as u32];
    Pass { kernel: &ROW_PRODUCTS, rows, columns, buffers: &buffers, workgroups, iterations: columns, ..NEUTRAL }.launch(a)?;
    Ok(y)
}

/// The scalars [batch, 8] of each matrix from `numbers` and `others` [batch, rows] and γ [batch].
pub(super) fn divide(numbers: &Tensor, others: &Tensor, gamma: &Tensor, norm: Norm, eps: f32, recover: bool) -> Result<Tensor> {
    let [batch, rows] = numbers.dims("pc")?;
    let scalars = Tensor::uninitialized(numbers.gpu(), &[batch, SCALARS])?;
    let buffers = [numbers, others, gamma, &scalars].map(Tensor::slice);
    let workgroups = [batch as u32, 1, 1];
    let norm = norm as u32;
    Pass { kernel: &DIVIDE, rows, eps, norm, recover, buffers: &buffers, workgroups, iterations: rows, ..NEUTRAL }
        .launch(numbers)?;
    Ok(scalars)
}

/// dγ [batch] from the row sums [batch, rows] of P∘(NᵀE).
pub(super) fn gamma_gradient(numbers: &Tensor, scalars: &Tensor) -> Result<Tensor> {
    let [batch, rows] = numbers.dims("pc")?;
    let dgamma = Tensor::uninitialized(numbers.gpu(), &[batch])?;
    let buffers = [numbers, scalars, &dgamma].map(Tensor::slice);
    let workgroups = [batch as u32, 1, 1];
    Pass { kernel: &GAMMA_GRADIENT, rows, buffers: &buffers, workgroups, iterations: rows, ..NEUTRAL }.launch(numbers)?;
    Ok(dgamma)
}

/// dw = OUTPUT·(m − PULL·direction), where PULL comes from ⟨m, w⟩ and the direction is u·vᵀ or w.
pub(super) fn finish(m: &Tensor, w: &Tensor, scalars: &Tensor, u: &Tensor, v: &Tensor, norm: Norm) -> Result<Tensor> {
    let [batch, rows, columns] = w.dims("pc")?;
    let numbers = row_products(m, w)?;
    let factors = Tensor::uninitialized(w.gpu(), scalars.shape())?;
    let buffers = [&numbers, scalars, &factors].map(Tensor::slice);
    let workgroups = [batch as u32, 1, 1];
    let norm_code = norm as u32;
    Pass { kernel: &PULL, rows, norm: norm_code, buffers: &buffers, workgroups, iterations: rows, ..NEUTRAL }.launch(w)?;
    let dw = Tensor::uninitialized(w.gpu(), w.shape())?;
    let right = if norm == Norm::Frobenius { w } else { v };
    let buffers = [m, &factors, u, right, &dw].map(Tensor::slice);
    let width = if columns.is_multiple_of(4) { 4 } else { 1 };
    let workgroups = grid((w.len() / width) as u64, 64);
    Pass { kernel: &FINISH, rows, columns, chunks: batch, norm: norm_code, buffers: &buffers, workgroups, ..NEUTRAL }
        .launch(w)?;
    Ok(dw)
}
