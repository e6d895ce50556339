//! polytape: autodiff on WGSL compute shaders.
#![deny(missing_docs)]

pub mod checkpoint;
mod error;
pub mod gpu;
pub mod llama;
mod ops;
pub mod optim;
mod params;
mod random;
pub mod spectral;
mod tape;
mod tensor;
mod trainer;

pub use error::{Error, Result};
pub use gpu::{AdapterChoice, Gpu, GpuOptions};
pub use ops::{AttentionShape, Factor, Gemm, Matrix, RotaryTable};
pub use params::{Gradients, Param, ParamId, Params, Role};
pub use tape::{Leaves, Tape, Var};
pub use tensor::{Indices, MAX_RANK, Tensor, read_all};
pub use trainer::{StepOutcome, Trainer};
