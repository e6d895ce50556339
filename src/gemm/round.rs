//! Rounding of operands to f16 ahead of a product.

use crate::error::Result;
use crate::gpu::{Access, Gpu, Kernel, Launch, Slice, grid};
use crate::tensor::Tensor;

static ROUND: Kernel = Kernel::trusted(
    "round to f16",
    concat!(
        include_str!("../../shaders/half.wgsl"),
        include_str!("../../shaders/half_storage.wgsl"),
        include_str!("../../shaders/round_f16.wgsl")
    ),
    "main",
    &[Access::Read, Access::ReadWrite],
);

/// The values of a slice as f16, two in a float, at the same indices.
pub(super) fn round(gpu: &Gpu, slice: &Slice<'_>) -> Result<Tensor> {
    let vec4s = slice.size.div_ceil(16);
    let out = Tensor::uninitialized(gpu, &[2 * vec4s as usize])?;
    gpu.launch(&Launch {
        kernel: &ROUND,
        constants: &[("F16_TERMS", 1), ("HARDWARE_F16", gpu.matrices().is_some_and(|units| units.rounds_f16).into())],
        buffers: &[*slice, out.slice()],
        arguments: bytemuck::bytes_of(&(vec4s as u32)),
        workgroups: grid(vec4s, 256),
        iterations: 0,
        work: 0,
    })?;
    Ok(out)
}
