//! Odd matrix polynomials, the streaming estimate of the largest singular value, and the PC layer built from the two.

mod kernels;
mod pc;
mod polynomial;
mod preconditioner;

pub use pc::{Norm, PcConfig, level_coefficients, pc_binding};
pub use polynomial::{NewtonSchulz, newton_schulz, newton_schulz_binding};
pub use preconditioner::{Effective, Preconditioner};
