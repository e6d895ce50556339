//! The PC layer: W_eff = γ·stop(s)·N·P(NᵀN), N = W/s, s = uᵀ(Wv) + eps (for a tall W; mirrored for a wide one), and its
//! backward, after arXiv 2606.06470.
//!
//! Everything is a batch [heads, rows, columns]: one matrix, or the blocks of a matrix that is preconditioned per head. N is
//! never formed: 1/s, 1/s² and γ·stop(s)/s multiply inside the products. With M' = E·P + N·(D + Dᵀ), where D is the
//! polynomial's backward of R = NᵀE:
//!     dγ = stop(s)·⟨P, R⟩,   dW = γ·stop(s)/s · (M' − ⟨M', N⟩·u·vᵀ)

use super::Norm;
use super::kernels::{self, INVERSE, INVERSE_SQUARE, Iteration, OUTPUT, factor};
use super::polynomial::{Form, Polynomial, gram_operands, multiply_on_smaller_side};
use crate::error::{Error, Result};
use crate::gemm::{Gemm, Matrix};
use crate::tensor::Tensor;

/// Settings of a PC layer.
#[derive(Debug, Clone, PartialEq)]
pub struct PcConfig {
    /// a0, a1, … of P(G) = a0·I + a1·G + …
    pub coefficients: Vec<f32>,
    /// What W is divided by.
    pub norm: Norm,
    /// Iterations of a refresh of u and v.
    pub power_iterations: usize,
    /// Added to s and to norms.
    pub eps: f32,
    /// Multiply by stop(s), so that the scale of W is kept.
    pub recover_norm: bool,
    /// A trained factor γ per matrix.
    pub learnable_gamma: bool,
    /// γ at the start, and throughout where it is not trained.
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

const LEVELS: [&[f32]; 5] = [
    &[1.0],
    &[1.507, -0.507],
    &[2.083, -1.643, 0.560],
    &[2.909, -4.649, 4.023, -1.283],
    &[3.625, -9.261, 14.097, -10.351, 2.890],
];

/// The published coefficients of a level from 0 to 4.
pub fn level_coefficients(level: usize) -> Result<Vec<f32>> {
    let found = LEVELS.get(level).map(|coefficients| coefficients.to_vec());
    found.ok_or_else(|| Error::Value(format!("PC level {level}: 0 to 4 expected")))
}

/// Bytes that a PC layer of `heads` blocks [rows, columns] binds at once: its matrices are not cut.
pub fn pc_binding([heads, rows, columns]: [usize; 3]) -> u64 {
    4 * (heads * rows * columns) as u64
}

/// The tensors of one layer: w [heads, rows, columns], u [heads, rows], v [heads, columns], gamma [heads].
pub(super) struct Layer {
    pub(super) w: Tensor,
    pub(super) u: Tensor,
    pub(super) v: Tensor,
    pub(super) gamma: Tensor,
}

impl Layer {
    /// That the matrices fit one binding.
    fn check_binding(&self) -> Result<()> {
        let shape @ [heads, rows, columns] = self.w.dims("pc")?;
        let (bytes, limit) = (pc_binding(shape), self.w.gpu().binding_limit());
        if bytes <= limit {
            return Ok(());
        }
        let problem = format!("[{heads}, {rows}, {columns}] is bound whole: {bytes} bytes, the limit of a binding is {limit}");
        Err(Error::shape("pc", problem))
    }

    /// `power_iterations` times v ← Wᵀu/(‖Wᵀu‖+eps), u ← Wv/(‖Wv‖+eps), where a zero matrix leaves
    /// both: the new u and v.
    pub(super) fn refresh(&self, config: &PcConfig) -> Result<(Tensor, Tensor)> {
        if config.power_iterations == 0 {
            return Ok((self.u.clone(), self.v.clone()));
        }
        self.check_binding()?;
        let iteration = Iteration::new(&self.w, config.eps)?;
        let mut v = iteration.first(&self.u, &self.v)?;
        for _ in 1..config.power_iterations {
            v = iteration.next(&v)?;
        }
        Ok((iteration.left(&v, &self.u)?, v))
    }

    /// s and what is made of it.
    fn scalars(&self, config: &PcConfig) -> Result<Tensor> {
        self.check_binding()?;
        let (numbers, others) = match config.norm {
            Norm::Spectral => (kernels::multiply(&self.w, &self.v)?, self.u.clone()),
            Norm::Frobenius => {
                let squares = kernels::row_products(&self.w, &self.w)?;
                (squares.clone(), squares)
            }
            Norm::None => (self.u.clone(), self.u.clone()),
        };
        kernels::divide(&numbers, &others, &self.gamma, config.norm, config.eps, config.recover_norm)
    }

    /// W_eff, and the scalars that the backward needs.
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

    /// OUTPUT·a0·W: the same pass as a backward's end, with nothing to pull.
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

    /// (M', dγ). The polynomial is computed again: what a forward would beta of it is larger than the gradient.
    fn backward_of_polynomial(&self, scalars: &Tensor, e: &Tensor, form: &Form) -> Result<(Tensor, Tensor)> {
        let polynomial = Polynomial::of_gram(&self.w, Some(factor(scalars, INVERSE_SQUARE)), form)?;
        let inverse = Some(factor(scalars, INVERSE));
        let (left, right) = gram_operands(&self.w, e)?;
        let r = Gemm { factor: inverse, ..Gemm::new(left, right) }.compute()?;
        let dgamma = kernels::gamma_gradient(&kernels::row_products(polynomial.value(), &r)?, scalars)?;
        let m = multiply_on_smaller_side(e, polynomial.value())?.compute()?;
        let d = polynomial.backward(&r)?;
        Gemm { alpha: form.scale, factor: inverse, beta: 1.0, ..multiply_on_smaller_side(&self.w, &d)? }
            .compute_into(Matrix::new(&m)?)?;
        Ok((m, dgamma))
    }

    /// Degree 0: M' = a0·E and ⟨E, N·P⟩ = a0·⟨E, W⟩/s.
    fn backward_of_identity(&self, scalars: &Tensor, e: &Tensor, a0: f32) -> Result<(Tensor, Tensor)> {
        let m = e.scaled(a0)?;
        let [heads, rows] = self.u.dims("pc")?;
        let products = kernels::row_products(&m, &self.w)?.reshape(&[heads, rows, 1])?;
        let ones = Tensor::from_slice(e.gpu(), &vec![1.0; heads], &[heads, 1, 1])?;
        let scaled = Gemm { factor: Some(factor(scalars, INVERSE)), ..Gemm::new(Matrix::new(&products)?, Matrix::new(&ones)?) };
        let dgamma = kernels::gamma_gradient(&scaled.compute()?.reshape(&[heads, rows])?, scalars)?;
        Ok((m, dgamma))
    }
}
