//! RMS and maximum absolute value of whole tensors → [tensors, 2], in two passes of fixed order. Not differentiable.

use super::reduce::{CHUNK, partial_count};
use crate::error::{Error, Result};
use crate::gpu::{Access, Gpu, Kernel, Launch, Slice, with_twin, workgroup};
use crate::tensor::Tensor;

const SOURCE: &str = include_str!("../../shaders/rms_and_abs_max.wgsl");

static PARTIAL: Kernel =
    with_twin!(Kernel::trusted("rms_and_abs_max", SOURCE, "partial", &[Access::Read, Access::ReadWrite]), twins::partial);
static FINAL: Kernel = with_twin!(
    Kernel::trusted("rms_and_abs_max final", SOURCE, "final_pair", &[Access::Read, Access::ReadWrite]),
    twins::final_pair
);

/// `[√mean(x²), max |x|]` of each tensor x → `[tensors, 2]`, on the device. Not differentiable: for metrics of weights,
/// gradients and activations without reading them back. A NaN shows in the RMS. An error without tensors.
///
/// ```
/// # use polytape::*;
/// # let gpu = Gpu::open(&Default::default())?;
/// let x = Tensor::from_slice(&gpu, &[1.0, -7.0], &[2])?;
/// let y = Tensor::from_slice(&gpu, &[0.5; 9], &[3, 3])?;
/// let found = rms_and_abs_max(&[&x, &y])?.to_vec()?;
/// assert!((found[0] - 5.0).abs() < 1e-5 && (found[2] - 0.5).abs() < 1e-6);
/// assert_eq!([found[1], found[3]], [7.0, 0.5]);
/// # Ok::<(), Error>(())
/// ```
pub fn rms_and_abs_max(tensors: &[&Tensor]) -> Result<Tensor> {
    let Some(gpu) = tensors.first().map(|tensor| tensor.gpu()) else {
        return Err(Error::shape("rms_and_abs_max", &[], "no tensors given"));
    };
    let chunks: usize = tensors.iter().map(|tensor| partial_count(tensor)).sum();
    let pairs = Tensor::uninitialized(gpu, &[chunks, 2])?;
    let out = Tensor::uninitialized(gpu, &[tensors.len(), 2])?;
    let mut first = 0;
    for (index, tensor) in tensors.iter().enumerate() {
        partial_pairs(tensor, &pairs, first)?;
        let chunks = partial_count(tensor);
        let arguments = [tensor.len(), first, index, chunks];
        launch(gpu, &FINAL, &[pairs.slice(), out.slice()], arguments, 1, chunks.div_ceil(workgroup(gpu).0 as usize))?;
        first += chunks;
    }
    Ok(out)
}

/// Writes one pair per chunk of `x`, from pair `first` on.
fn partial_pairs(x: &Tensor, pairs: &Tensor, first: usize) -> Result<()> {
    let gpu = x.gpu();
    let iterations = (CHUNK / 4).div_ceil(workgroup(gpu).0 as usize);
    // A window is a whole number of chunks, at most one workgroup dimension.
    let step = ((gpu.binding_limit() / 4) as usize / CHUNK).clamp(1, 65_535) * CHUNK;
    for begin in (0..x.len()).step_by(step) {
        let count = step.min(x.len() - begin);
        let chunks = count.div_ceil(CHUNK);
        let arguments = [count, first + begin / CHUNK, 0, chunks];
        launch(gpu, &PARTIAL, &[x.window(begin, count), pairs.slice()], arguments, chunks, iterations)?;
    }
    Ok(())
}

fn launch(
    gpu: &Gpu,
    kernel: &Kernel,
    buffers: &[Slice<'_>],
    arguments: [usize; 4],
    workgroups: usize,
    iterations: usize,
) -> Result<()> {
    let (workgroup, one_subgroup) = workgroup(gpu);
    gpu.launch(&Launch {
        kernel,
        constants: &[("WORKGROUP", workgroup), ("ONE_SUBGROUP", one_subgroup), ("CHUNK", CHUNK as u32)],
        buffers,
        arguments: bytemuck::cast_slice(&arguments.map(|argument| argument as u32)),
        workgroups: [workgroups as u32, 1, 1],
        iterations: iterations as u64,
        work: 0,
    })
}

#[cfg(feature = "host")]
mod twins {
    use super::CHUNK;
    use crate::gpu::host::{Host, simd};

    pub(super) fn partial(host: &Host<'_>) {
        let (x, [out]) = (&host.input(0)[..host.size(0)], host.outputs());
        let pairs = &mut out[2 * host.size(1)..];
        host.rows(
            x.len().div_ceil(CHUNK),
            2 * CHUNK,
            [(pairs, 2)],
            #[inline(always)]
            |range, [pairs]| {
                let chunks = x[range.start * CHUNK..].chunks(CHUNK);
                for (pair, x) in pairs.as_chunks_mut().0.iter_mut().zip(chunks) {
                    *pair = [simd::dot(x, x), abs_max(x)];
                }
            },
        );
    }

    pub(super) fn final_pair(host: &Host<'_>) {
        let (pairs, [out]) = (host.input(0), host.outputs());
        let [count, first, index, chunks] = [0, 1, 2, 3].map(|at| host.size(at));
        let pairs = &pairs.as_chunks::<2>().0[first..][..chunks];
        let squares: f32 = pairs.iter().map(|[sum, _]| sum).sum();
        let most = pairs.iter().fold(0.0f32, |most, [_, top]| most.max(*top));
        out[2 * index..][..2].copy_from_slice(&[(squares / count as f32).sqrt(), most]);
    }

    /// The largest magnitude, NaNs passed over: magnitudes are in the order of their bits, and a maximum of integers is vectorised.
    #[inline(always)]
    fn abs_max(values: &[f32]) -> f32 {
        let mut most = 0;
        for value in values {
            let bits = value.abs().to_bits();
            let bits = if bits > f32::INFINITY.to_bits() { 0 } else { bits };
            most = if bits > most { bits } else { most };
        }
        f32::from_bits(most)
    }
}
