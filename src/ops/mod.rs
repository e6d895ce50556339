//! Differentiable operations, one file each: forward, backward, error text and documentation in one place.

mod activation;
mod attention;
mod cross_entropy;
mod elementwise;
mod embedding;
mod gemm;
mod layout;
mod magnitude;
mod matmul;
mod reduce;
mod rms_norm;
mod rotary;
mod rows;
mod softmax;
mod swiglu;

pub use attention::AttentionShape;
pub(crate) use elementwise::map;
pub use gemm::{Factor, Gemm, Matrix};
pub use magnitude::magnitudes;
pub(crate) use reduce::{Term, final_sum, partial_count, partial_sums};
pub use rotary::RotaryTable;

use crate::gpu::{Gpu, Profile};

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
        Profile::Fallback => (gpu.lanes(), 1),
        _ => (256, 0),
    }
}
