//! The PC layer: W_eff = γ·stop(s)·N·P(NᵀN), N = W/s, s = uᵀ(Wv) + eps (for a tall W; mirrored for a wide one), and its
//! backward, after arXiv 2606.06470.
//!
//! Everything is a batch [matrices, rows, columns]: the row blocks of the matrices of a stack, one or one per head of each. N is never
//! materialized: 1/s, 1/s² and γ·stop(s)/s are factors in the products' epilogues. With R = NᵀE, D = ∂⟨R, P⟩/∂(NᵀN) and
//! M' = E·P + N·(D + Dᵀ):
//!     dγ = stop(s)·⟨P, R⟩,   dW = γ·stop(s)/s · (M' − ⟨M', N⟩·u·vᵀ)

use super::kernels::{self, INVERSE, INVERSE_SQUARE, Iteration, OUTPUT, factor};
use super::pass::{Divisor, Gamma};
use super::polynomial::{Form, Polynomial, gemm, gram_operands, multiply_on_smaller_side};
use super::{Norm, small};
use crate::error::{Error, Result};
use crate::gemm::{Gemm, Matrix};
use crate::tensor::{Stacks, Tensor, slot};

/// Configuration of a PC layer (arXiv 2606.06470): `W_eff = γ·stop(s)·N·P(NᵀN)`, `N = W/s`. The default is level 4 with the
/// spectral norm.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PcConfig {
    /// Coefficients a₀, a₁, … of `P(G) = a₀·I + a₁·G + a₂·G² + …`; see [`level_coefficients`].
    pub coefficients: Vec<f32>,
    /// The norm s.
    pub norm: Norm,
    /// Power iterations per refresh of u and v; 0 keeps them.
    pub power_iterations: usize,
    /// Added to s and to the norms of the power iteration: division stays finite for W = 0.
    pub eps: f32,
    /// Multiply by stop(s), so that W_eff has the norm of W; without, its norm is about γ.
    pub recover_norm: bool,
    /// Train a scale γ per matrix.
    pub learnable_gamma: bool,
    /// Initial γ; its constant value where it is not trained.
    pub gamma_init: f32,
}

impl Default for PcConfig {
    fn default() -> Self {
        Self {
            coefficients: LEVELS[4].to_vec(),
            norm: Norm::Spectral,
            power_iterations: 10,
            eps: 1e-7,
            recover_norm: true,
            learnable_gamma: true,
            gamma_init: 1.0,
        }
    }
}

impl PcConfig {
    /// Approximate number of n×n products (n the smaller side) of a layer in a step: forward, backward, and the recomputed forward.
    pub fn products(&self) -> usize {
        4 * self.coefficients.len()
    }
}

const LEVELS: [&[f32]; 5] = [
    &[1.0],
    &[1.507, -0.507],
    &[2.083, -1.643, 0.560],
    &[2.909, -4.649, 4.023, -1.283],
    &[3.625, -9.261, 14.097, -10.351, 2.890],
];

/// The coefficients of PC level 0 to 4 (arXiv 2606.06470), the polynomial's degree; an error for other levels. Each `g(σ) = σ·P(σ²)`
/// keeps the largest singular value, 1, and raises the small ones more with every level.
///
/// ```
/// # use polytape::{Error, spectral::level_coefficients};
/// let g = |level, s: f32| -> Result<f32, Error> {
///     Ok(level_coefficients(level)?.iter().rev().fold(0.0, |p, a| p * s * s + a) * s)
/// };
/// assert!((g(4, 1.0)? - 1.0).abs() < 1e-5);
/// assert!((g(1, 0.1)? - 0.150).abs() < 1e-3 && (g(4, 0.1)? - 0.353).abs() < 2e-3);
/// # Ok::<(), Error>(())
/// ```
pub fn level_coefficients(level: usize) -> Result<Vec<f32>> {
    let found = LEVELS.get(level).map(|coefficients| coefficients.to_vec());
    found.ok_or_else(|| Error::Value(format!("PC level {level}: 0 to 4 expected")))
}

/// Bytes that a PC layer of `heads` blocks [rows, columns] binds at once: its matrices are not cut.
pub fn pc_binding([heads, rows, columns]: [usize; 3]) -> u64 {
    4 * (heads * rows * columns) as u64
}

/// Maximum number of PC layers of `heads` blocks [rows, columns] that run together.
pub fn pc_stack(stacks: Stacks, [heads, rows, columns]: [usize; 3]) -> usize {
    // Batches have no gaps.
    let is_dense = [heads * rows * columns, heads * rows, heads * columns].iter().all(|&numel| slot(numel) == numel);
    if is_dense { stacks.count(heads * rows * columns) } else { 1 }
}

/// The tensors of a stack of layers: w [matrices, rows, columns], u [matrices, rows], v [matrices, columns].
pub(super) struct Layer {
    pub(super) w: Tensor,
    pub(super) u: Tensor,
    pub(super) v: Tensor,
    pub(super) gamma: Gamma,
}

impl Layer {
    /// Checks that the matrices fit one binding.
    fn check_binding(&self) -> Result<()> {
        let shape @ [heads, rows, columns] = self.w.dims("pc")?;
        let (bytes, limit) = (pc_binding(shape), self.w.gpu().twin_limit());
        if bytes <= limit {
            return Ok(());
        }
        let problem = format!("[{heads}, {rows}, {columns}] is bound whole: {bytes} bytes, the limit of a binding is {limit}");
        Err(Error::shape("pc", &[&[heads, rows, columns]], problem))
    }

    /// The new (u, v): `power_iterations` times v ← Wᵀu/(‖Wᵀu‖ + eps), u ← Wv/(‖Wv‖ + eps). A zero matrix keeps both.
    pub(super) fn refresh(&self, config: &PcConfig) -> Result<(Tensor, Tensor)> {
        if config.power_iterations == 0 {
            return Ok((self.u.clone(), self.v.clone()));
        }
        self.check_binding()?;
        if let Some(refreshed) = small::iterate(&self.w, &self.u, &self.v, config.power_iterations, config.eps)? {
            return Ok(refreshed);
        }
        let iteration = Iteration::new(&self.w, config.eps)?;
        let mut v = iteration.first(&self.u, &self.v)?;
        for _ in 1..config.power_iterations {
            v = iteration.next(&v)?;
        }
        Ok((iteration.left(&v, &self.u)?, v))
    }

    /// s and the scalars derived from it.
    fn scalars(&self, config: &PcConfig) -> Result<Tensor> {
        self.check_binding()?;
        let divisor = Divisor { norm: config.norm, eps: config.eps, recover: config.recover_norm };
        kernels::divide(&self.w, &self.u, &self.v, &self.gamma, &divisor)
    }

    /// (W_eff, the scalars for the backward).
    pub(super) fn forward(&self, config: &PcConfig) -> Result<(Tensor, Tensor)> {
        let scalars = self.scalars(config)?;
        let effective = match Form::new(&config.coefficients) {
            Some(form) => {
                let polynomial = Polynomial::of_gram(&self.w, Some(factor(&scalars, INVERSE_SQUARE)), &form)?;
                Gemm { factor: Some(factor(&scalars, OUTPUT)), ..multiply_on_smaller_side(&self.w, polynomial.value())? }
                    .compute()?
            }
            None => self.times_identity(config.coefficients[0], &scalars)?,
        };
        Ok((effective, scalars))
    }

    /// OUTPUT·a₀·W: the last pass of the backward without the norm's gradient.
    fn times_identity(&self, a0: f32, scalars: &Tensor) -> Result<Tensor> {
        kernels::finish(&self.w.scaled(a0)?, &self.w, scalars, &self.u, &self.v, Norm::None)
    }

    /// (dW, dγ) for E = ∂L/∂W_eff.
    pub(super) fn backward(&self, scalars: &Tensor, e: &Tensor, config: &PcConfig) -> Result<(Tensor, Tensor)> {
        let (m, dgamma) = match Form::new(&config.coefficients) {
            Some(form) => self.backward_of_polynomial(scalars, e, &form)?,
            None => self.backward_of_identity(scalars, e, config.coefficients[0])?,
        };
        let dw = kernels::finish(&m, &self.w, scalars, &self.u, &self.v, config.norm)?;
        Ok((dw, dgamma))
    }

    /// (M', dγ). The polynomial is recomputed: its intermediates would take more memory than the gradient.
    fn backward_of_polynomial(&self, scalars: &Tensor, e: &Tensor, form: &Form) -> Result<(Tensor, Tensor)> {
        let polynomial = Polynomial::of_gram(&self.w, Some(factor(scalars, INVERSE_SQUARE)), form)?;
        let inverse = Some(factor(scalars, INVERSE));
        let (left, right) = gram_operands(&self.w, e)?;
        let r = Gemm { factor: inverse, ..gemm(left, right) }.compute()?;
        let dgamma = kernels::gamma_gradient(polynomial.value(), &r, scalars, &self.gamma)?;
        let m = multiply_on_smaller_side(e, polynomial.value())?.compute()?;
        let d = polynomial.backward(&r)?;
        Gemm { alpha: form.scale, factor: inverse, beta: 1.0, ..multiply_on_smaller_side(&self.w, &d)? }
            .compute_into(Matrix::new(&m)?)?;
        Ok((m, dgamma))
    }

    /// Degree 0: M' = a0·E and ⟨E, N·P⟩ = a0·⟨E, W⟩/s.
    fn backward_of_identity(&self, scalars: &Tensor, e: &Tensor, a0: f32) -> Result<(Tensor, Tensor)> {
        let m = e.scaled(a0)?;
        let [matrices, rows] = self.u.dims("pc")?;
        let products = kernels::row_products(&m, &self.w)?.reshape(&[matrices, rows, 1])?;
        let ones = Tensor::from_slice(e.gpu(), &vec![1.0; matrices], &[matrices, 1, 1])?;
        let scaled = Gemm { factor: Some(factor(scalars, INVERSE)), ..gemm(Matrix::new(&products)?, Matrix::new(&ones)?) };
        let dgamma = kernels::gamma_sum(&scaled.compute()?.reshape(&[matrices, rows])?, scalars, &self.gamma)?;
        Ok((m, dgamma))
    }
}
