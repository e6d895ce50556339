//! Odd matrix polynomials, the streaming estimate of the largest singular value, and the PC layer built from the two.

mod kernels;
mod pc;
mod polynomial;
mod preconditioner;

pub use pc::{Norm, PcConfig, level_coefficients};
pub use polynomial::{NewtonSchulz, newton_schulz};
pub use preconditioner::{Effective, PC_GAMMA, PC_U, PC_V, Preconditioner};
