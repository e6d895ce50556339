//! polytape: autodiff on WGSL compute shaders.
#![deny(missing_docs)]

pub mod error;
pub mod gpu;
mod ops;
mod params;
mod tape;
mod tensor;

pub use error::{Error, Result};
pub use gpu::{AdapterChoice, Gpu, GpuOptions};
pub use ops::{AttentionShape, Gemm, Matrix, RotaryTable};
pub use params::{Gradients, Param, ParamId, Params, Role};
pub use tape::{Leaves, Tape, Var};
pub use tensor::{Indices, MAX_RANK, Tensor, read_all};
