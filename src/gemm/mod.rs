//! The general matrix product, [`Gemm`], on strided views, [`Matrix`]. Products too large for the bindings are split along the
//! batch, rows, columns or inner dimension. Not differentiable; [`Var::matmul`](crate::Var::matmul) is.

mod matrix;
mod matrix_tile;
#[cfg(feature = "host")]
pub(crate) mod native;
mod plan;
mod problem;
mod round;
mod sum;
#[cfg(feature = "host")]
mod twin;

use crate::error::{Error, Result};
use crate::gpu::{Gpu, Launch, Slice};
use crate::precision::Precision;
use crate::tensor::Tensor;
pub use matrix::Matrix;
use plan::Plan;
use problem::{DeviceCaps, Problem};
pub(crate) use sum::sum_of_products;

/// A scalar on the device: element `index + i·batch_stride` of `tensor` for matrix i of a batch.
#[derive(Clone, Copy)]
pub struct Factor<'a> {
    /// The tensor that holds it.
    pub tensor: &'a Tensor,
    /// The element for the first matrix.
    pub index: usize,
    /// Elements from one matrix's scalar to the next; 0 shares one.
    pub batch_stride: usize,
}

/// A matrix product with its epilogue: `out ← α·f·op(A)·op(B) + β·out + σ·C + δ·I`, where f is a scalar on the device. A
/// `[m, k]`, B `[k, n]`, C and out `[m, n]`, all with an optional batch dimension. Not differentiable;
/// [`Var::matmul`](crate::Var::matmul) is.
///
/// ```
/// # use polytape::*;
/// # let gpu = Gpu::open(&Default::default())?;
/// let x = Tensor::from_slice(&gpu, &[1.0, 2.0, 3.0, 4.0], &[2, 2])?;
/// let a = Matrix::new(&x)?;
/// let gram = Gemm { alpha: 0.5, delta: 1.0, symmetric: true, ..Gemm::new(a.t(), a) };
/// assert_eq!(gram.compute()?.to_vec()?, [6.0, 7.0, 7.0, 11.0]); // ½·xᵀx + I
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Copy)]
pub struct Gemm<'a> {
    /// A, the left operand.
    pub a: Matrix<'a>,
    /// B, the right operand.
    pub b: Matrix<'a>,
    /// α.
    pub alpha: f32,
    /// f, read on the device; 1 without.
    pub factor: Option<Factor<'a>>,
    /// C and its scale σ.
    pub addend: Option<(Matrix<'a>, f32)>,
    /// δ, added to the diagonal.
    pub delta: f32,
    /// β, the scale of the old contents of out; 0 never reads them.
    pub beta: f32,
    /// The result is known to be symmetric, as AᵀA is: only the lower triangle's tiles are computed, then mirrored.
    pub symmetric: bool,
    /// Every sum over the inner dimension is one sum from its first term to its last. Otherwise a product with too few results to fill the
    /// device is split along it, so that a matrix of a large batch may be rounded otherwise than alone.
    pub whole_sums: bool,
    /// Every matrix of a batch has the sums that it has alone. Otherwise it may be rounded otherwise than alone, as
    /// [`whole_sums`](Self::whole_sums) says.
    pub as_alone: bool,
    /// What A and B are rounded to; sums are f32.
    pub precision: Precision,
}

impl<'a> Gemm<'a> {
    /// op(A)·op(B): α = 1, everything else off, f32.
    pub fn new(a: Matrix<'a>, b: Matrix<'a>) -> Self {
        Self {
            a,
            b,
            alpha: 1.0,
            factor: None,
            addend: None,
            delta: 0.0,
            beta: 0.0,
            symmetric: false,
            whole_sums: false,
            as_alone: false,
            precision: Precision::F32,
        }
    }

    /// The product as a new tensor `[m, n]`, or `[batch, m, n]` where an operand is a batch. An error unless the inner dimensions,
    /// the batches and the shape of C agree.
    pub fn compute(&self) -> Result<Tensor> {
        let (rows, columns) = (self.a.size().0, self.b.size().1);
        let batch = self.a.count.max(self.b.count);
        let is_batch = self.a.tensor.shape().len() == 3 || self.b.tensor.shape().len() == 3;
        let shape: &[usize] = if is_batch { &[batch, rows, columns] } else { &[rows, columns] };
        let out = Tensor::uninitialized(self.a.tensor.gpu(), shape)?;
        self.compute_into(Matrix::new(&out)?)?;
        Ok(out)
    }

    /// Writes the product to an existing matrix, whose tensor is none of the operands. Errors: as [`Gemm::compute`], and an output
    /// of another shape.
    ///
    /// ```
    /// # use polytape::*;
    /// # let gpu = Gpu::open(&Default::default())?;
    /// let x = Tensor::from_slice(&gpu, &[1.0, 2.0, 3.0, 4.0], &[2, 2])?;
    /// let sum = Tensor::from_slice(&gpu, &[100.0; 4], &[2, 2])?;
    /// let a = Matrix::new(&x)?;
    /// Gemm { beta: 1.0, ..Gemm::new(a, a) }.compute_into(Matrix::new(&sum)?)?;
    /// assert_eq!(sum.to_vec()?, [107.0, 110.0, 115.0, 122.0]); // accumulated in place
    /// # Ok::<(), Error>(())
    /// ```
    pub fn compute_into(&self, out: Matrix<'_>) -> Result<()> {
        self.check(&out)?;
        let gpu = self.a.tensor.gpu();
        let inner = self.a.size().1;
        let mut problem = self.problem(&out, inner);
        problem.batch = if self.as_alone { 1 } else { problem.batch };
        let depth = if self.whole_sums { inner } else { problem.split_k_depth(DeviceCaps::of(gpu)) };
        let cut = Cut { limit: (gpu.twin_limit() / 4) as usize, depth };
        for (part, out) in split(self, out, cut)? {
            part.launch(gpu, out, depth)?;
        }
        Ok(())
    }

    /// Checks the shapes.
    fn check(&self, out: &Matrix<'_>) -> Result<()> {
        let ((rows, inner), (inner_b, columns)) = (self.a.size(), self.b.size());
        let fail = |problem: String| {
            Err(Error::shape("matmul", &[self.a.tensor.shape(), self.b.tensor.shape(), out.tensor.shape()], problem))
        };
        if inner != inner_b {
            return fail(format!("[{rows}, {inner}] × [{inner_b}, {columns}]: inner dimensions {inner} and {inner_b} differ"));
        }
        if out.size() != (rows, columns) || out.transposed {
            let (out_rows, out_columns) = out.size();
            return fail(format!("[{rows}, {inner}] × [{inner}, {columns}] does not give [{out_rows}, {out_columns}]"));
        }
        let (batch_a, batch_b) = (self.a.count, self.b.count);
        let are_batches = [&self.a, &self.b].map(|matrix| matrix.tensor.shape().len() == 3);
        if batch_a != batch_b && are_batches == [true, true] {
            let (a, b) = (self.a.tensor.shape(), self.b.tensor.shape());
            return fail(format!("{a:?} × {b:?}: batches {batch_a} and {batch_b} differ"));
        }
        let batch = batch_a.max(batch_b);
        if out.count != batch {
            return fail(format!("a batch of {batch} does not give {:?}", out.tensor.shape()));
        }
        if let Some((c, _)) = self.addend {
            if c.size() != (rows, columns) || c.transposed {
                return fail(format!("[{rows}, {columns}] + [{}, {}]: the shapes differ", c.size().0, c.size().1));
            }
            if c.tensor.shape().len() == 3 && c.count != batch {
                return fail(format!("a batch of {batch} + {:?}: the batches differ", c.tensor.shape()));
            }
        }
        if let Some(Factor { tensor, index, batch_stride }) = self.factor {
            let last = (batch - 1).checked_mul(batch_stride).and_then(|at| at.checked_add(index));
            if last.is_none_or(|last| last >= tensor.len()) {
                let shape = tensor.shape();
                return fail(format!(
                    "a batch of {batch} with factors from {index} of {shape:?}, {batch_stride} apart: out of bounds"
                ));
            }
        }
        if self.symmetric && rows != columns {
            return fail(format!("[{rows}, {inner}] × [{inner}, {columns}]: a symmetric result must be square"));
        }
        Ok(())
    }

    /// Runs a product whose operands each fit one binding. With too few output tiles for full occupancy it uses split-K: slices
    /// of the inner dimension, each of size `depth`, in parallel, then a reduction in fixed order. `depth` is that of the whole
    /// product, so that a split along its rows or columns changes no bit.
    fn launch(&self, gpu: &Gpu, out: Matrix<'_>, depth: usize) -> Result<()> {
        let ((rows, inner), (_, columns)) = (self.a.size(), self.b.size());
        let caps = DeviceCaps::of(gpu);
        let plans = |problem: &Problem| Plan::of(caps, problem);
        let split_k = inner.div_ceil(depth);
        let fits = 4 * (out.count * split_k * rows * columns) as u64 <= gpu.binding_limit();
        if split_k == 1 || !fits {
            return self.dispatch(gpu, out, [1, inner], plans);
        }
        let partials = Tensor::uninitialized(gpu, &[out.count * split_k, rows, columns])?;
        let partials = Matrix::new(&partials)?;
        let product = Gemm { symmetric: self.symmetric, precision: self.precision, ..Gemm::new(self.a, self.b) };
        product.dispatch(gpu, partials, [split_k, depth], plans)?;
        let reduction = Gemm { a: partials, b: partials, ..*self };
        reduction.dispatch(gpu, out, [split_k, split_k], |problem| vec![Plan::sum(split_k, problem)])
    }

    /// The input of kernel selection, with an inner size of `depth` per workgroup.
    fn problem(&self, out: &Matrix<'_>, depth: usize) -> Problem {
        let ((rows, inner), (_, columns)) = (self.a.size(), self.b.size());
        let (c, addend_scale) = self.addend.unwrap_or((self.a, 0.0));
        let vectors = [&self.a, &self.b, &c, out].iter().all(|matrix| matrix.is_multiple_of_four())
            && columns.is_multiple_of(4)
            && inner.is_multiple_of(4)
            && (!self.a.transposed || rows.is_multiple_of(4));
        Problem {
            rows,
            columns,
            inner: depth,
            batch: out.count,
            transpose_a: self.a.transposed,
            transpose_b: self.b.transposed,
            vectors,
            f16_terms: self.precision.f16_terms(),
            addend: addend_scale != 0.0,
            diagonal: self.delta != 0.0,
            beta: self.beta != 0.0,
            symmetric: self.symmetric,
            f16_operands: false,
        }
    }

    /// One dispatch with the best of the plans, over `split_k` slices of the inner dimension, each of size `depth`.
    fn dispatch(
        &self,
        gpu: &Gpu,
        out: Matrix<'_>,
        [split_k, depth]: [usize; 2],
        plans: impl Fn(&Problem) -> Vec<Plan>,
    ) -> Result<()> {
        let ((rows, inner), (_, columns)) = (self.a.size(), self.b.size());
        let (c, addend_scale) = self.addend.unwrap_or((self.a, 0.0));
        let (a_slice, a_offset) = self.a.binding();
        let (b_slice, b_offset) = self.b.binding();
        let (c_slice, c_offset) = c.binding();
        let (out_slice, out_offset) = out.binding();
        let (factor, factor_index, factor_batch) =
            self.factor.map_or((a_slice, 0, 0), |factor| (factor.tensor.slice(), factor.index, factor.batch_stride));
        let arguments = Arguments {
            sizes: [rows, columns, inner].map(|size| size as u32),
            strides: [self.a.stride, self.b.stride, c.stride, out.stride].map(|stride| stride as u32),
            offsets: [a_offset, b_offset, c_offset, out_offset].map(|offset| offset as u32),
            batches: [self.a.batch_stride, self.b.batch_stride, c.batch_stride, out.batch_stride].map(|stride| stride as u32),
            factor: [u32::from(self.factor.is_some()), factor_index as u32, factor_batch as u32],
            epilogue: [self.alpha, addend_scale, self.delta, self.beta],
            first_group: 0,
            split_k: [split_k as u32, depth as u32],
        };
        let mut problem = self.problem(&out, depth);
        problem.f16_operands = problem.f16_operands_pay(DeviceCaps::of(gpu)) && self.a.is_dense() && self.b.is_dense();
        let rounded =
            if problem.f16_operands { Some([round::round(gpu, &a_slice)?, round::round(gpu, &b_slice)?]) } else { None };
        let [a_slice, b_slice] = rounded.as_ref().map_or([a_slice, b_slice], |[a, b]| [a.slice(), b.slice()]);
        let plans = plans(&problem);
        let launch = |plan: &Plan, out_slice: Slice<'_>| {
            gpu.launch(&Launch {
                kernel: plan.kernel,
                constants: &plan.constants,
                buffers: &[a_slice, b_slice, c_slice, factor, out_slice],
                arguments: bytemuck::bytes_of(&arguments),
                workgroups: [columns.div_ceil(plan.tile_columns), rows.div_ceil(plan.tile_rows), out.count]
                    .map(|groups| groups as u32),
                iterations: plan.iterations as u64,
                work: problem.work(),
            })
        };
        let chosen = choose(gpu, &plans, &problem, |plan| {
            if self.beta == 0.0 {
                return launch(plan, out_slice);
            }
            // A trial must not accumulate into the output.
            let scratch = Tensor::uninitialized(gpu, &[out_slice.size as usize / 4])?;
            launch(plan, scratch.slice())
        })?;
        launch(&plans[chosen], out_slice)
    }
}

/// Index of the plan to use: the heuristic's, unless tuning is on and the product is large enough to be worth it.
fn choose(gpu: &Gpu, plans: &[Plan], problem: &Problem, run: impl Fn(&Plan) -> Result<()>) -> Result<usize> {
    if plans.len() == 1 || !gpu.tunes() || problem.work() < MIN_TUNED_FLOP {
        return Ok(0);
    }
    let names: Vec<String> = plans.iter().map(Plan::name).collect();
    gpu.tuned(&problem.class(), &names, |candidate| run(&plans[candidate]))
}

/// FLOP below which tuning costs more than it gains.
const MIN_TUNED_FLOP: u64 = 50_000_000;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Arguments {
    sizes: [u32; 3],
    strides: [u32; 4],
    offsets: [u32; 4],
    batches: [u32; 4],
    factor: [u32; 3],
    epilogue: [f32; 4],
    first_group: u32,
    split_k: [u32; 2],
}

const FIRST_GROUP: usize = std::mem::offset_of!(Arguments, first_group) / 4;

/// Maximum inner size per dispatch: keeps every kernel within the iteration limit of software adapters.
const MAX_INNER: usize = 3 * 65_535;

/// Limits of the parts that a product is split into.
#[derive(Clone, Copy)]
struct Cut {
    /// Elements per binding.
    limit: usize,
    /// Inner size of a split-K slice.
    depth: usize,
}

/// A product and its output.
type Part<'a> = (Gemm<'a>, Matrix<'a>);

/// Splits a product along batch, rows or columns until every operand fits a binding; along the inner dimension, which changes the
/// rounding, only if nothing else helps.
fn split<'a>(gemm: &Gemm<'a>, out: Matrix<'a>, cut: Cut) -> Result<Vec<Part<'a>>> {
    let over = |matrix: &Matrix<'_>| matrix.binding().0.size as usize / 4 > cut.limit;
    let ((rows, inner), (_, columns)) = (gemm.a.size(), gemm.b.size());
    let is_one_piece = gemm.symmetric || gemm.delta != 0.0;
    let split_k = inner.div_ceil(cut.depth);
    let partials_over = split_k > 1 && rows > 1 && !is_one_piece && out.count * split_k * rows * columns > cut.limit;
    let c_over = gemm.addend.is_some_and(|(c, _)| over(&c));
    let is_over = over(&gemm.a) || over(&gemm.b) || c_over || over(&out) || partials_over;
    if is_over && out.count > 1 {
        return split_batch(gemm, out, cut);
    }
    if !is_over {
        return if inner <= MAX_INNER { Ok(vec![(*gemm, out)]) } else { split_inner(gemm, out, cut) };
    }
    // Only a split along stored rows shrinks a binding.
    let by_rows = (over(&gemm.a) && !gemm.a.transposed) || over(&out) || c_over || partials_over;
    let by_columns = over(&gemm.b) && gemm.b.transposed;
    let parts = if by_rows && rows > 1 {
        let half = rows.div_ceil(2).next_multiple_of(64).min(rows - 1);
        [gemm.rows_part(out, 0, half)?, gemm.rows_part(out, half, rows - half)?]
    } else if by_columns && columns > 1 {
        let half = columns.div_ceil(2).next_multiple_of(64).min(columns - 1);
        [gemm.columns_part(out, 0, half)?, gemm.columns_part(out, half, columns - half)?]
    } else {
        return split_inner(gemm, out, cut);
    };
    if is_one_piece {
        return Err(gemm.too_large(&out, cut, "a symmetric product or one with a diagonal is not cut"));
    }
    split_each(parts, cut)
}

fn split_each<'a>(parts: [Part<'a>; 2], cut: Cut) -> Result<Vec<Part<'a>>> {
    let [(first, first_out), (second, second_out)] = parts;
    let mut all = split(&first, first_out, cut)?;
    all.extend(split(&second, second_out, cut)?);
    Ok(all)
}

/// Splits a batch in two.
fn split_batch<'a>(gemm: &Gemm<'a>, out: Matrix<'a>, cut: Cut) -> Result<Vec<Part<'a>>> {
    let half = out.count / 2;
    let part = |first, count| {
        let window = |matrix: Matrix<'a>| matrix.batch_window(first, count);
        let factor = gemm.factor.map(|factor| Factor { index: factor.index + first * factor.batch_stride, ..factor });
        let addend = gemm.addend.map(|(c, addend_scale)| (window(c), addend_scale));
        (Gemm { a: window(gemm.a), b: window(gemm.b), addend, factor, ..*gemm }, window(out))
    };
    split_each([part(0, half), part(half, out.count - half)], cut)
}

/// Splits the inner dimension in two; the second half accumulates.
fn split_inner<'a>(gemm: &Gemm<'a>, out: Matrix<'a>, cut: Cut) -> Result<Vec<Part<'a>>> {
    let inner = gemm.b.size().0;
    let half = inner.div_ceil(2).next_multiple_of(64).min(inner - 1);
    if half == 0 {
        return Err(gemm.too_large(&out, cut, "one row is not cut"));
    }
    let rest = Gemm { addend: None, delta: 0.0, beta: 1.0, ..gemm.inner_part(half, inner - half)? };
    split_each([(gemm.inner_part(0, half)?, out), (rest, out)], cut)
}

impl<'a> Gemm<'a> {
    /// Rows `first .. first + count` of the result.
    fn rows_part(&self, out: Matrix<'a>, first: usize, count: usize) -> Result<Part<'a>> {
        let a = if self.a.transposed { self.a.column_window(first, count) } else { self.a.row_window(first, count) };
        let addend = self.addend.map(|(c, addend_scale)| Ok((c.row_window(first, count)?, addend_scale))).transpose()?;
        Ok((Gemm { a: a?, addend, ..*self }, out.row_window(first, count)?))
    }

    /// Columns `first .. first + count` of the result, for a transposed B.
    fn columns_part(&self, out: Matrix<'a>, first: usize, count: usize) -> Result<Part<'a>> {
        let b = self.b.row_window(first, count)?;
        let addend = self.addend.map(|(c, addend_scale)| Ok((c.column_window(first, count)?, addend_scale))).transpose()?;
        Ok((Gemm { b, addend, ..*self }, out.column_window(first, count)?))
    }

    /// The product over the inner indices `first .. first + count`.
    fn inner_part(&self, first: usize, count: usize) -> Result<Self> {
        let a = if self.a.transposed { self.a.row_window(first, count) } else { self.a.column_window(first, count) };
        let b = if self.b.transposed { self.b.column_window(first, count) } else { self.b.row_window(first, count) };
        Ok(Gemm { a: a?, b: b?, ..*self })
    }

    fn too_large(&self, out: &Matrix<'_>, cut: Cut, why: &str) -> Error {
        let ((rows, inner), (_, columns)) = (self.a.size(), self.b.size());
        let c = self.addend.map_or(self.a, |(c, _)| c);
        let bytes = [self.a, self.b, c, *out].map(|matrix| matrix.binding().0.size).into_iter().max().unwrap_or(0);
        let limit = 4 * cut.limit;
        let problem =
            format!("[{rows}, {inner}] × [{inner}, {columns}]: a binding of {bytes} bytes, the limit is {limit}; {why}");
        Error::shape("matmul", &[&[rows, inner], &[inner, columns]], problem)
    }
}
