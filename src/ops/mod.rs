//! Differentiable operations, one file each: forward, backward, errors and documentation in one place.

mod activation;
mod attention;
mod broadcast;
mod cross_entropy;
mod elementwise;
mod embedding;
mod layout;
mod matmul;
mod matmul_each;
mod reduce;
mod rms_and_abs_max;
mod rms_norm;
mod rotary;
mod softmax;
mod swiglu;

pub use attention::{AttentionShape, AttentionWindows, MAX_HEAD_DIM};
pub use cross_entropy::logit_rows;
pub(crate) use reduce::{CHUNK, final_sum, final_sums, partial_count, partial_squares, sums_of_squares};
pub use rms_and_abs_max::rms_and_abs_max;
pub use rotary::RotaryTable;
pub(crate) use rotary::frequencies;
