//! polytape: automatic differentiation from scratch on [wgpu] and WGSL compute shaders. It trains Llama-shaped transformers with
//! **PC layers**, the polynomial weight preconditioning of [arXiv 2606.06470], on any Vulkan, Metal or DX12 adapter.
//!
//! A [`Gpu`] is a device. A [`Tensor`] is a shape and a buffer on it. A [`Tape`] borrows [`Params`] and records operations on
//! [`Var`]s; [`Tape::backward`] adds each parameter's gradient to [`Gradients`]. A [`Trainer`] joins the three with an
//! [`Optimizer`](optim::Optimizer) and a [`Preconditioner`](spectral::Preconditioner). Errors are values: no call panics on a
//! user's mistake.
//!
//! ```
//! use polytape::optim::{AdamConfig, AdamW};
//! use polytape::{Gpu, Params, Role, Tensor, Trainer};
//!
//! # fn main() -> polytape::Result<()> {
//! let gpu = Gpu::open(&Default::default())?; // the best adapter of this machine
//! let x = Tensor::from_slice(&gpu, &[0.0, 1.0, 2.0, 3.0], &[4, 1])?;
//! let y = Tensor::from_slice(&gpu, &[1.0, 3.0, 5.0, 7.0], &[4, 1])?;
//! let mut params = Params::new(&gpu);
//! let w = params.add("w", Role::Matrix, Tensor::zeros(&gpu, &[1, 1])?)?;
//! let b = params.add("b", Role::Vector, Tensor::zeros(&gpu, &[1])?)?;
//! let rule = AdamW::new(AdamConfig { weight_decay: 0.0, ..Default::default() });
//! let mut trainer = Trainer::new(params, None, Box::new(rule), f32::INFINITY)?;
//! for _ in 0..300 {
//!     trainer.step(1, 0.1, |tape, _| {
//!         let guess = tape.constant(x.clone()).matmul_nt(&tape.param(w)?)?.add_row(&tape.param(b)?)?;
//!         let miss = guess.sub(&tape.constant(y.clone()))?;
//!         miss.mul(&miss)?.mean()
//!     })?;
//! }
//! assert!((trainer.params.get(w)?.tensor.item()? - 2.0).abs() < 1e-2);
//! assert!((trainer.params.get(b)?.tensor.item()? - 1.0).abs() < 1e-2);
//! # Ok(())
//! # }
//! ```
//!
//! [wgpu]: https://wgpu.rs
//! [arXiv 2606.06470]: https://arxiv.org/abs/2606.06470
#![deny(missing_docs)]

mod error;
pub mod exchange;
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
pub use tensor::{Indices, MAX_RANK, STACK_BYTES, Tensor, map, read_all, read_many};
pub use trainer::{EffectiveGradients, LoadRows, Skip, StepHook, StepOutput, Trainer};

/// The README's example, compiled and run with the other documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
