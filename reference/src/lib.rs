//! The float64 reference: every operation the library differentiates, its training rules and a whole Llama, written as plain
//! loops over `Array`, with gradients derived by hand. It shares no code with the library. The library's tests compare the device with it,
//! and so does `llama_pc selftest` on a user's machine; both take their tolerances from here.
//!
//! A forward takes its operands and returns the result; its `_vjp` takes the same operands and `dy`, the gradient of the
//! result, and returns one gradient per differentiable operand, in their order. A scalar result has the shape `[1]`.

pub mod array;
pub mod attention;
pub mod cross_entropy;
pub mod differences;
pub mod elementwise;
pub mod embedding;
pub mod golden;
pub mod half;
pub mod layout;
pub mod llama;
pub mod matmul;
pub mod newton_schulz;
pub mod normalize;
pub mod optimizer;
pub mod pc;
pub mod rotary;
pub mod schedule;
pub mod svd;
pub mod tolerance;
pub mod training;

pub use array::Array;
