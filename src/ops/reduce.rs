//! sum and mean over all elements → [1]. Save nothing; dx is dy, or dy/numel, broadcast.

use crate::error::Result;
use crate::gpu::{Access, Gpu, Kernel, KernelTier, Launch, Slice, with_twin, workgroup};
use crate::tape::Var;
use crate::tensor::Tensor;

const SOURCE: &str = include_str!("../../shaders/reduce.wgsl");

static PARTIAL: Kernel =
    with_twin!(Kernel::trusted("reduce", SOURCE, "partial", &[Access::Read, Access::ReadWrite]), twins::partial);
static FINAL: Kernel =
    with_twin!(Kernel::trusted("reduce final", SOURCE, "final_sum", &[Access::Read, Access::ReadWrite]), twins::final_sum);

/// Most tensors per dispatch of [`partial_squares`]: with their partial sums, as many bindings as every adapter has.
const MOST_JOINED: usize = 7;
/// Tensors of at most this many elements share dispatches.
const JOINED: usize = 1 << 22;

const R: Access = Access::Read;
const BINDINGS: &[Access] = &[Access::ReadWrite, R, R, R, R, R, R, R];

/// The kernel for one tensor, for two, and so on.
static JOINING: [Kernel; MOST_JOINED] = [joining(1), joining(2), joining(3), joining(4), joining(5), joining(6), joining(7)];

const fn joining(tensors: usize) -> Kernel {
    Kernel::trusted("reduce", SOURCE, "joined", BINDINGS.split_at(1 + tensors).0)
}

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
    // A window is a whole number of chunks, at most one workgroup dimension.
    let step = ((gpu.binding_limit() / 4) as usize / CHUNK).clamp(1, 65_535) * CHUNK;
    for begin in (0..x.len()).step_by(step) {
        let count = step.min(x.len() - begin);
        let place = [count, first + begin / CHUNK];
        launch_partial(gpu, term, [x.window(begin, count), partials.slice()], place, [count.div_ceil(CHUNK), 1])?;
    }
    Ok(())
}

/// `[count, first]`: elements of each batch, and the place of the first partial sum.
fn launch_partial(
    gpu: &Gpu,
    term: Term,
    buffers: [Slice<'_>; 2],
    place: [usize; 2],
    [chunks, batches]: [usize; 2],
) -> Result<()> {
    let (workgroup, one_subgroup) = workgroup(gpu);
    let [count, first] = place.map(|number| number as u32);
    gpu.launch(&Launch {
        kernel: &PARTIAL,
        constants: &[("WORKGROUP", workgroup), ("ONE_SUBGROUP", one_subgroup), ("CHUNK", CHUNK as u32), ("TERM", term as u32)],
        buffers: &buffers,
        arguments: bytemuck::cast_slice(&[count, first, 0]),
        workgroups: [chunks as u32, batches as u32, 1],
        iterations: (CHUNK / 4).div_ceil(workgroup as usize) as u64,
        work: 0,
    })
}

/// Writes the partial sums of the squares of all tensors, one after the other.
pub(crate) fn partial_squares(tensors: &[&Tensor], partials: &Tensor) -> Result<()> {
    let gpu = partials.gpu();
    let is_joined =
        |tensor: &Tensor| gpu.kernels() != KernelTier::Host && tensor.len() <= JOINED && tensor.bytes() <= gpu.binding_limit();
    let mut waiting = Vec::with_capacity(MOST_JOINED);
    let mut first = 0;
    for tensor in tensors {
        if is_joined(tensor) {
            waiting.push((*tensor, first));
        } else {
            partial_sums(tensor, Term::Square, partials, first)?;
        }
        if waiting.len() == MOST_JOINED {
            launch_joined(gpu, &std::mem::take(&mut waiting), partials)?;
        }
        first += partial_count(tensor);
    }
    if waiting.is_empty() { Ok(()) } else { launch_joined(gpu, &waiting, partials) }
}

/// Tensors, each with the place of its first partial sum.
fn launch_joined(gpu: &Gpu, tensors: &[(&Tensor, usize)], partials: &Tensor) -> Result<()> {
    let (workgroup, one_subgroup) = workgroup(gpu);
    let buffers: Vec<Slice<'_>> = std::iter::once(partials).chain(tensors.iter().map(|(x, _)| *x)).map(Tensor::slice).collect();
    let arguments: Vec<u32> = tensors.iter().flat_map(|(x, first)| [x.len() as u32, *first as u32]).collect();
    let chunks = tensors.iter().map(|(x, _)| partial_count(x)).max().unwrap_or(0);
    gpu.launch(&Launch {
        kernel: &JOINING[tensors.len() - 1],
        constants: &[
            ("WORKGROUP", workgroup),
            ("ONE_SUBGROUP", one_subgroup),
            ("CHUNK", CHUNK as u32),
            ("JOINED", tensors.len() as u32),
        ],
        buffers: &buffers,
        arguments: bytemuck::cast_slice(&arguments),
        workgroups: [chunks as u32, tensors.len() as u32, 1],
        iterations: (CHUNK / 4).div_ceil(workgroup as usize) as u64,
        work: 0,
    })
}

/// Σ x² of each of `count` batches of equally many elements → `[count]`: whole vec4s each, if there are several.
pub(crate) fn sums_of_squares(x: &Tensor, count: usize) -> Result<Tensor> {
    let gpu = x.gpu();
    let numel = x.len() / count;
    let chunks = numel.div_ceil(CHUNK);
    let partials = Tensor::uninitialized(gpu, &[count, chunks])?;
    if count == 1 {
        partial_sums(x, Term::Square, &partials, 0)?;
    } else {
        launch_partial(gpu, Term::Square, [x.slice(), partials.slice()], [numel, 0], [chunks, count])?;
    }
    let sums = Tensor::uninitialized(gpu, &[count])?;
    final_sums(&partials, count, 1.0, &sums, 0)?;
    Ok(sums)
}

/// out[index] = alpha · Σ partials.
pub(crate) fn final_sum(partials: &Tensor, alpha: f32, out: &Tensor, index: usize) -> Result<()> {
    final_sums(partials, 1, alpha, out, index)
}

/// The same of each of `count` batches of equally many, from `out[index]` on.
pub(crate) fn final_sums(partials: &Tensor, count: usize, alpha: f32, out: &Tensor, index: usize) -> Result<()> {
    let gpu = partials.gpu();
    let each = partials.len() / count;
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
        arguments: bytemuck::cast_slice(&[each as u32, index as u32, alpha.to_bits()]),
        workgroups: [count as u32, 1, 1],
        iterations: each.div_ceil(workgroup as usize) as u64,
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
        let (x, count, [partials]) = (host.input(0), host.size(0), host.outputs());
        let squared = host.constant("TERM") == Term::Square as u32;
        let partials = &mut partials[host.size(1)..];
        let [chunks, batches, _] = host.workgroups().map(|groups| groups as usize);
        host.rows(
            batches * chunks,
            CHUNK,
            [(partials, 1)],
            #[inline(always)]
            |range, [partials]| {
                for (at, partial) in range.zip(partials) {
                    let first = at % chunks * CHUNK;
                    let x = &x[at / chunks * count..][first..count.min(first + CHUNK)];
                    *partial = if squared { simd::dot(x, x) } else { simd::sum_of([x], |[x]| x) };
                }
            },
        );
    }

    pub(super) fn final_sum(host: &Host<'_>) {
        let (each, [sums]) = (host.size(0), host.outputs());
        let batches = host.input(0).chunks_exact(each).take(host.workgroups()[0] as usize);
        for (sum, partials) in sums[host.size(1)..].iter_mut().zip(batches) {
            *sum = host.number(2) * simd::sum_of([partials], |[partial]| partial);
        }
    }
}
