//! How kernels divide rows among vectors and workgroups.

use super::adapter::KernelTier;
use super::device::Gpu;

/// Whether rows of `columns` floats can be read in vec4.
pub(crate) fn vectors(columns: usize) -> u32 {
    u32::from(columns.is_multiple_of(4))
}

/// Steps that a workgroup takes along a row of `columns` floats.
pub(crate) fn strides(columns: usize, workgroup: u32) -> usize {
    let width = if columns.is_multiple_of(4) { 4 } else { 1 };
    (columns / width).div_ceil(workgroup as usize)
}

/// The workgroup of a reducing kernel: (`WORKGROUP`, `ONE_SUBGROUP`).
pub(crate) fn workgroup(gpu: &Gpu) -> (u32, u32) {
    match gpu.kernels() {
        KernelTier::Fallback => (gpu.lanes(), 1),
        _ => (256, 0),
    }
}
