//! Odd matrix polynomials, streaming power iteration for the largest singular value, and the PC layer built on both.

mod kernels;
mod pass;
mod pc;
mod polynomial;
mod preconditioner;
mod small;

pub use pc::{PcConfig, level_coefficients, pc_binding, pc_stack};
pub use polynomial::{NewtonSchulz, newton_schulz, newton_schulz_binding};
pub use preconditioner::{Effective, PC_GAMMA, PC_U, PC_V, Preconditioner};

/// What W is divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Norm {
    /// The streaming estimate of the largest singular value.
    #[default]
    Spectral,
    /// ‖W‖_F + eps, with its full gradient.
    Frobenius,
    /// 1
    None,
}
