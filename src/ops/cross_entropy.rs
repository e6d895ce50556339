//! Cross-entropy fused with the head: loss = mean over rows of (log Σ exp(x·wᵀ) - (x·wᵀ)[target]). x [rows, dim], w [vocab, dim]
//! → [1]. Processes the rows in chunks, so that only one chunk of logits exists at a time, and computes the gradients in the
//! forward: saves dx and dw, which the backward only scales. The three products are at the tape's precision.

use super::embedding::check_ids;
use crate::error::{Error, Result};
use crate::gemm::{Gemm, Matrix};
use crate::gpu::{Access, Kernel, Launch, strides, vectors, with_twin, workgroup};
use crate::params::Gradient;
use crate::precision::Precision;
use crate::tape::Var;
use crate::tensor::{ALIGNMENT, Indices, Tensor};

use super::reduce::Term;

static CROSS_ENTROPY: Kernel = with_twin!(
    Kernel::trusted(
        "cross_entropy",
        include_str!("../../shaders/cross_entropy.wgsl"),
        "main",
        &[Access::Read, Access::ReadWrite, Access::ReadWrite],
    ),
    twins::cross_entropy
);

/// Size of a chunk of logits, in bytes; at least 64 rows.
const LOGIT_BYTES: usize = 32 << 20;
/// Scale of the logits' gradient before it is rounded to f16: it lies within ±1, most of it below the normal range of f16.
const F16_SCALE: f32 = 32_768.0;
/// Maximum rows per chunk: one workgroup each, and a dimension is limited to 65,535.
const MAX_ROWS: usize = 65_535 / 64 * 64;

impl<'t> Var<'t> {
    /// Mean cross-entropy of the logits `z = self·weightᵀ`, in nats: `y = mean_r(log Σ_v exp(z[r, v]) - z[r, targets[r]])`. self
    /// `[rows, dim]`, weight `[vocabulary, dim]`, targets `[rows]` → `[1]`. Backward, with
    /// `dz = (softmax(z) - onehot(targets))/rows`: `dself = dy·dz·weight`, `dweight = dy·dzᵀ·self`. Only one chunk of logits exists
    /// at a time, 32 MiB by default; all products at the tape's precision. Errors: shapes, a target that is not below vocabulary.
    ///
    /// ```
    /// # use polytape::*;
    /// # let gpu = Gpu::open(&Default::default())?;
    /// # let params = Params::new(&gpu);
    /// # let tape = Tape::new(&params);
    /// let x = tape.leaf(Tensor::zeros(&gpu, &[2, 3])?);
    /// let head = tape.leaf(Tensor::zeros(&gpu, &[8, 3])?);
    /// let loss = x.head_cross_entropy(&head, &Indices::from_slice(&gpu, &[0, 7])?)?;
    /// assert!((loss.value().item()? - 8f32.ln()).abs() < 1e-6); // uniform over 8 classes
    /// # Ok::<(), Error>(())
    /// ```
    pub fn head_cross_entropy(&self, weight: &Var<'t>, targets: &Indices) -> Result<Var<'t>> {
        let (x, w) = (self.value(), weight.value());
        let ([rows, dim], [vocabulary, w_dim]) = (x.dims("cross_entropy")?, w.dims("cross_entropy")?);
        if dim != w_dim || targets.len() != rows {
            let problem = format!(
                "{:?} × {:?}ᵀ with {} targets: [rows, dim], [vocabulary, dim] and one target per row expected",
                x.shape(),
                w.shape(),
                targets.len()
            );
            return Err(Error::shape("cross_entropy", &[x.shape(), w.shape(), &[targets.len()]], problem));
        }
        check_ids("cross_entropy", targets, vocabulary)?;
        let wanted = [self, weight].map(Var::wants_gradient);
        let (loss, gradients) = forward(x, w, targets, wanted, self.tape().precision())?;
        self.tape().record_accumulating("cross_entropy", loss, [self, weight], move |dy, _| {
            let scaled = |gradient: Tensor| {
                let dy = dy.clone();
                Gradient::accumulate(move |sum| match sum {
                    Some(sum) => sum.plus_scaled_by(&gradient, &dy),
                    None => gradient.scaled_by(&dy, 1.0),
                })
            };
            Ok(gradients.map(|gradient| gradient.map(scaled)))
        })
    }
}

/// Rows of logits that [`Var::head_cross_entropy`] holds at a time, of `rows` in all: the same on every device, as the sums over the
/// rows round differently in other chunks.
pub fn logit_rows(rows: usize, vocabulary: usize) -> usize {
    (LOGIT_BYTES / 4 / vocabulary / 64 * 64).clamp(64, MAX_ROWS).min(rows)
}

fn forward(
    x: &Tensor,
    w: &Tensor,
    targets: &Indices,
    [wants_x, wants_w]: [bool; 2],
    precision: Precision,
) -> Result<(Tensor, [Option<Tensor>; 2])> {
    let gpu = x.gpu();
    let ([rows, _], [vocabulary, _]) = (x.dims("cross_entropy")?, w.dims("cross_entropy")?);
    let step = logit_rows(rows, vocabulary);
    let mean = 1.0 / rows as f32;
    // Scale of the logits' gradient, and α of its products, which makes them gradients of the mean.
    let (scale, alpha) = if precision == Precision::F32 { (mean, 1.0) } else { (F16_SCALE, mean / F16_SCALE) };
    let losses = Tensor::uninitialized(gpu, &[rows])?;
    let dx = wants_x.then(|| Tensor::uninitialized(gpu, x.shape())).transpose()?;
    let dw = wants_w.then(|| Tensor::uninitialized(gpu, w.shape())).transpose()?;
    for first in (0..rows).step_by(step) {
        let count = step.min(rows - first);
        let x_chunk = Matrix::new(x)?.row_window(first, count)?;
        let logits = Gemm { precision, ..Gemm::new(x_chunk, Matrix::new(w)?.t()) }.compute()?;
        softmax_gradient(&logits, targets, &losses, first, (wants_x || wants_w).then_some(scale))?;
        let dlogits = Matrix::new(&logits)?;
        if let Some(dx) = &dx {
            let rows = Matrix::new(dx)?.row_window(first, count)?;
            Gemm { alpha, precision, ..Gemm::new(dlogits, Matrix::new(w)?) }.compute_into(rows)?;
        }
        if let Some(dw) = &dw {
            let beta = if first == 0 { 0.0 } else { 1.0 };
            Gemm { alpha, beta, precision, ..Gemm::new(dlogits.t(), x_chunk) }.compute_into(Matrix::new(dw)?)?;
        }
    }
    Ok((losses.total(Term::Plain, mean)?, [dx, dw]))
}

/// Writes the losses of a chunk of rows. With a scale, also overwrites the logits with scale times the gradient of the summed
/// losses. The chunk begins at row `first` of the targets; its logits are bound in windows of rows.
fn softmax_gradient(logits: &Tensor, targets: &Indices, losses: &Tensor, first: usize, scale: Option<f32>) -> Result<()> {
    let gpu = logits.gpu();
    let [count, vocabulary] = logits.dims("cross_entropy")?;
    let (workgroup, one_subgroup) = workgroup(gpu);
    let limit = (gpu.binding_limit() / 4) as usize;
    // A window's first row need not be aligned.
    let step = if logits.len() <= limit { count } else { (limit.saturating_sub(ALIGNMENT - 1) / vocabulary).max(1) };
    for begin in (0..count).step_by(step) {
        let rows = step.min(count - begin);
        let (targets, targets_start) = targets.window_around(first + begin, rows);
        let (logits, logits_start) = logits.window_around(begin * vocabulary, rows * vocabulary);
        let (losses, losses_start) = losses.window_around(first + begin, rows);
        let starts = [targets_start, logits_start, losses_start].map(|start| start as u32);
        let arguments = [&[vocabulary as u32, scale.unwrap_or_default().to_bits()], &starts[..]].concat();
        gpu.launch(&Launch {
            kernel: &CROSS_ENTROPY,
            constants: &[
                ("WORKGROUP", workgroup),
                ("ONE_SUBGROUP", one_subgroup),
                ("VECTORS", vectors(vocabulary)),
                ("GRADIENT", u32::from(scale.is_some())),
            ],
            buffers: &[targets, logits, losses],
            arguments: bytemuck::cast_slice(&arguments),
            workgroups: [rows as u32, 1, 1],
            iterations: 2 * strides(vocabulary, workgroup) as u64,
            work: 0,
        })?;
    }
    Ok(())
}

#[cfg(feature = "host")]
mod twins {
    use crate::gpu::host::{Host, simd};
    use crate::ops::softmax::twins::exponentials;

    pub(super) fn cross_entropy(host: &Host<'_>) {
        let (columns, scale, gradient) = (host.size(0), host.number(1), host.flag("GRADIENT"));
        let (targets, [logits, losses]) = (&host.indices(0)[host.size(2)..], host.outputs());
        let (logits, losses) = (&mut logits[host.size(3)..], &mut losses[host.size(4)..]);
        host.rows(
            losses.len(),
            12 * columns,
            [(logits, columns), (losses, 1)],
            #[inline(always)]
            |range, [logits, losses]| {
                let rows = logits.chunks_exact_mut(columns).zip(&targets[range]);
                let (mut copy, mut tops) = ([0.0; BLOCK], Vec::new());
                for ((x, &target), loss) in rows.zip(losses) {
                    let logit = x[target as usize];
                    if gradient {
                        let (top, sum) = exponentials_by_blocks(x, &mut copy, &mut tops);
                        *loss = top + sum.ln() - logit;
                        for (block, block_top) in x.chunks_mut(BLOCK).zip(&tops) {
                            let factor = scale / sum * simd::exp(block_top - top);
                            block.iter_mut().for_each(|x| *x *= factor);
                        }
                        x[target as usize] -= scale;
                    } else {
                        let top = simd::maximum(x);
                        *loss = top + sum_of_exponentials(x, top).ln() - logit;
                    }
                }
            },
        );
    }

    /// Columns at a time: they stay in the first-level cache while the next are fetched.
    const BLOCK: usize = 2048;

    /// x ← exp(x - top) per block, where top is the running maximum, stored in `tops` → (the row's maximum, Σ exp(x - maximum)).
    #[inline(always)]
    fn exponentials_by_blocks(x: &mut [f32], copy: &mut [f32; BLOCK], tops: &mut Vec<f32>) -> (f32, f32) {
        let (mut top, mut sum) = (f32::MIN, 0.0);
        tops.clear();
        for block in x.chunks_mut(BLOCK) {
            let (next, x) = (block.as_ptr().wrapping_add(BLOCK), &mut copy[..block.len()]);
            x.copy_from_slice(block);
            let highest = simd::maximum(x).max(top);
            sum = sum * simd::exp(top - highest) + exponentials(x, block, highest, next);
            top = highest;
            tops.push(top);
        }
        (top, sum)
    }

    /// Σ exp(x - top).
    #[inline(always)]
    fn sum_of_exponentials(values: &[f32], top: f32) -> f32 {
        simd::sum_of(
            [values],
            #[inline(always)]
            |[x]| simd::exp(x - top),
        )
    }
}
