//! Vector width and workgroup size of row kernels.

use super::adapter::KernelTier;
use super::device::Gpu;

/// Whether rows of `columns` floats can be accessed as vec4.
pub(crate) fn vectors(columns: usize) -> u32 {
    u32::from(columns.is_multiple_of(4))
}

/// Iterations of a workgroup-stride loop over a row of `columns` floats.
pub(crate) fn strides(columns: usize, workgroup: u32) -> usize {
    let width = if columns.is_multiple_of(4) { 4 } else { 1 };
    (columns / width).div_ceil(workgroup as usize)
}

/// The workgroup size of a reduction, and whether that is one subgroup: (`WORKGROUP`, `ONE_SUBGROUP`).
pub(crate) fn workgroup(gpu: &Gpu) -> (u32, u32) {
    match gpu.shader_tier() {
        KernelTier::Fallback => (gpu.lanes(), 1),
        _ => (256, 0),
    }
}
