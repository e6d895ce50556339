//! Root mean square and largest absolute value of whole tensors → [tensors, 2], in two passes. Not differentiable: for looking at
//! weights, gradients and activations without reading them back. A NaN shows in the root mean square.

use super::reduce::{CHUNK, partial_count};
use crate::error::{Error, Result};
use crate::gpu::{Access, Gpu, Kernel, Launch, Slice, workgroup};
use crate::tensor::Tensor;

const SOURCE: &str = include_str!("../../shaders/rms_and_abs_max.wgsl");

static PARTIAL: Kernel = Kernel::trusted("rms_and_abs_max", SOURCE, "partial", &[Access::Read, Access::ReadWrite]);
static FINAL: Kernel = Kernel::trusted("rms_and_abs_max final", SOURCE, "final_pair", &[Access::Read, Access::ReadWrite]);

/// The root mean square and the largest absolute value of each tensor → `[tensors, 2]`, still on the device.
pub fn rms_and_abs_max(tensors: &[&Tensor]) -> Result<Tensor> {
    let Some(gpu) = tensors.first().map(|tensor| tensor.gpu()) else {
        return Err(Error::shape("rms_and_abs_max", "no tensors given"));
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

/// Writes the pairs of `x`'s chunks from pair `first` on.
fn partial_pairs(x: &Tensor, pairs: &Tensor, first: usize) -> Result<()> {
    let gpu = x.gpu();
    let iterations = (CHUNK / 4).div_ceil(workgroup(gpu).0 as usize);
    // A window is a whole number of chunks, and few enough for one dimension of workgroups.
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
