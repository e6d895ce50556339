//! sum and mean over all elements → [1]. Save nothing; dx is dy, or dy/numel, broadcast.

use crate::error::Result;
use crate::gpu::{Access, Kernel, Launch, with_twin, workgroup};
use crate::tape::Var;
use crate::tensor::Tensor;

const SOURCE: &str = include_str!("../../shaders/reduce.wgsl");

static PARTIAL: Kernel =
    with_twin!(Kernel::trusted("reduce", SOURCE, "partial", &[Access::Read, Access::ReadWrite]), twins::partial);
static FINAL: Kernel =
    with_twin!(Kernel::trusted("reduce final", SOURCE, "final_sum", &[Access::Read, Access::ReadWrite]), twins::final_sum);

/// Elements per workgroup, reduced to one partial sum.
pub(crate) const CHUNK: usize = 16_384;

/// The summand: values of the shader's TERM constant.
#[derive(Clone, Copy)]
pub(crate) enum Term {
    /// x
    Plain,
    /// x²
    Square,
}

/// Number of partial sums of a tensor.
pub(crate) fn partial_count(tensor: &Tensor) -> usize {
    tensor.len().div_ceil(CHUNK)
}

/// Writes the partial sums of `x` to `partials` from index `first`.
pub(crate) fn partial_sums(x: &Tensor, term: Term, partials: &Tensor, first: usize) -> Result<()> {
    let gpu = x.gpu();
    let (workgroup, one_subgroup) = workgroup(gpu);
    // A window is a whole number of chunks, at most one workgroup dimension.
    let step = ((gpu.binding_limit() / 4) as usize / CHUNK).clamp(1, 65_535) * CHUNK;
    for begin in (0..x.len()).step_by(step) {
        let count = step.min(x.len() - begin);
        let window = x.window(begin, count);
        gpu.launch(&Launch {
            kernel: &PARTIAL,
            constants: &[
                ("WORKGROUP", workgroup),
                ("ONE_SUBGROUP", one_subgroup),
                ("CHUNK", CHUNK as u32),
                ("TERM", term as u32),
            ],
            buffers: &[window, partials.slice()],
            arguments: bytemuck::cast_slice(&[count as u32, (first + begin / CHUNK) as u32, 0]),
            workgroups: [count.div_ceil(CHUNK) as u32, 1, 1],
            iterations: (CHUNK / 4).div_ceil(workgroup as usize) as u64,
            work: 0,
        })?;
    }
    Ok(())
}

/// out[index] = alpha · Σ partials.
pub(crate) fn final_sum(partials: &Tensor, alpha: f32, out: &Tensor, index: usize) -> Result<()> {
    let gpu = partials.gpu();
    let (workgroup, one_subgroup) = workgroup(gpu);
    gpu.launch(&Launch {
        kernel: &FINAL,
        constants: &[
            ("WORKGROUP", workgroup),
            ("ONE_SUBGROUP", one_subgroup),
            ("CHUNK", CHUNK as u32),
            ("TERM", Term::Plain as u32),
        ],
        buffers: &[partials.slice(), out.slice()],
        arguments: bytemuck::cast_slice(&[partials.len() as u32, index as u32, alpha.to_bits()]),
        workgroups: [1, 1, 1],
        iterations: partials.len().div_ceil(workgroup as usize) as u64,
        work: 0,
    })
}

impl Tensor {
    /// alpha · Σ over all elements → [1].
    pub(crate) fn total(&self, term: Term, alpha: f32) -> Result<Tensor> {
        let partials = Tensor::uninitialized(self.gpu(), &[partial_count(self)])?;
        partial_sums(self, term, &partials, 0)?;
        let sum = Tensor::uninitialized(self.gpu(), &[1])?;
        final_sum(&partials, alpha, &sum, 0)?;
        Ok(sum)
    }
}

impl<'t> Var<'t> {
    /// Sum of all elements: self `[..]` → `[1]`, in a fixed order. Backward: `dself = dy`, broadcast. Errors: only the device's.
    ///
    /// ```
    /// # use polytape::*;
    /// # let gpu = Gpu::open(&Default::default())?;
    /// # let params = Params::new(&gpu);
    /// # let tape = Tape::new(&params);
    /// let x = tape.leaf(Tensor::from_slice(&gpu, &[1.0, 2.0, 3.0, 4.0], &[2, 2])?);
    /// let y = x.sum()?;
    /// assert_eq!(y.value().item()?, 10.0);
    /// let gradients = tape.backward(&y, &mut Gradients::new())?;
    /// assert_eq!(gradients.get(&x).unwrap().to_vec()?, [1.0; 4]);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn sum(&self) -> Result<Var<'t>> {
        self.reduce("sum", 1.0)
    }

    /// Mean of all elements: self `[..]` → `[1]`. Backward: `dself = dy/numel`, broadcast. Errors: only the device's.
    ///
    /// ```
    /// # use polytape::*;
    /// # let gpu = Gpu::open(&Default::default())?;
    /// # let params = Params::new(&gpu);
    /// # let tape = Tape::new(&params);
    /// let x = tape.leaf(Tensor::from_slice(&gpu, &[1.0, 2.0, 3.0, 4.0], &[2, 2])?);
    /// let y = x.mean()?;
    /// assert_eq!(y.value().item()?, 2.5);
    /// let gradients = tape.backward(&y, &mut Gradients::new())?;
    /// assert_eq!(gradients.get(&x).unwrap().to_vec()?, [0.25; 4]);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn mean(&self) -> Result<Var<'t>> {
        self.reduce("mean", 1.0 / self.value().len() as f32)
    }

    fn reduce(&self, op: &'static str, alpha: f32) -> Result<Var<'t>> {
        let y = self.value().total(Term::Plain, alpha)?;
        let shape = self.shape().to_vec();
        self.tape().record(op, y, [self], move |dy, _| Ok([Some(dy.spread(&shape, alpha)?)]))
    }
}

#[cfg(feature = "host")]
mod twins {
    use super::{CHUNK, Term};
    use crate::gpu::host::{Host, simd};

    pub(super) fn partial(host: &Host<'_>) {
        let (x, [partials]) = (&host.input(0)[..host.size(0)], host.outputs());
        let squared = host.constant("TERM") == Term::Square as u32;
        let partials = &mut partials[host.size(1)..];
        host.rows(
            x.len().div_ceil(CHUNK),
            CHUNK,
            [(partials, 1)],
            #[inline(always)]
            |range, [partials]| {
                for (partial, x) in partials.iter_mut().zip(x[range.start * CHUNK..].chunks(CHUNK)) {
                    *partial = if squared { simd::dot(x, x) } else { simd::sum_of([x], |[x]| x) };
                }
            },
        );
    }

    pub(super) fn final_sum(host: &Host<'_>) {
        let (partials, [sums]) = (&host.input(0)[..host.size(0)], host.outputs());
        sums[host.size(1)] = host.number(2) * simd::sum_of([partials], |[partial]| partial);
    }
}
