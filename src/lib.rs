//! polytape: automatic differentiation from scratch on [wgpu] and WGSL compute shaders. It trains Llama-shaped transformers with
//! **PC layers**, the polynomial weight preconditioning of [arXiv 2606.06470], on any Vulkan, Metal or DX12 adapter.
//!
//! A [`Gpu`] is a device. A [`Tensor`] is a shape and a buffer on it. A [`Tape`] borrows [`Params`] and records operations on
//! [`Var`]s; [`Tape::backward`] adds each parameter's gradient to [`Gradients`]. A [`Trainer`] joins the three with an
//! [`Optimizer`](optim::Optimizer) and a [`Preconditioner`](spectral::Preconditioner). Errors are values: no call panics on a
//! user's mistake.
//!
//! The README begins with a whole program that fits a line. Every operation has an example of its own.
//!
//! [wgpu]: https://wgpu.rs
//! [arXiv 2606.06470]: https://arxiv.org/abs/2606.06470
#![deny(missing_docs)]

mod error;
pub mod exchange;
mod files;
mod gemm;
pub mod gpu;
pub mod llama;
mod ops;
pub mod optim;
mod params;
mod precision;
mod random;
pub mod safetensors;
pub mod spectral;
mod tape;
mod tensor;
mod trainer;

pub use error::{Error, Result};
pub use gemm::{Factor, Gemm, Matrix};
pub use gpu::{AdapterChoice, Gpu, GpuOptions};
pub use ops::{AttentionShape, AttentionWindows, MAX_HEAD_DIM, RotaryTable, logit_rows, rms_and_abs_max};
pub use params::{Gradients, Param, ParamId, Params, Role};
pub use precision::Precision;
pub use tape::{Leaves, Tape, Var};
pub use tensor::{Indices, MAX_RANK, Stacks, Tensor, map, read_all, read_many};
pub use trainer::{EffectiveGradients, LoadRows, Skip, StepHook, StepOutput, Trainer};

/// The README's example, compiled and run with the other documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
