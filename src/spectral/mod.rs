//! Odd matrix polynomials, streaming power iteration for the largest singular value, and the PC layer built on both.

mod kernels;
mod pc;
mod polynomial;
mod preconditioner;

pub use pc::{Norm, PcConfig, level_coefficients};
pub use polynomial::{NewtonSchulz, newton_schulz};
pub use preconditioner::{Effective, Preconditioner};
