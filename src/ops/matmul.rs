//! Matrix product: y = op(a)·op(b), where op transposes or not. a [m, k], b [k, n] → y [m, n]; with a leading batch dimension on
//! a, or on both. Saves a and b. da = dy·op(b)ᵀ, db = op(a)ᵀ·dy, without a transposed copy; a b shared by the batch gets the sum.
//! All three at the tape's precision.

use crate::error::Result;
use crate::gemm::{Gemm, Matrix};
use crate::params::Gradient;
use crate::precision::Precision;
use crate::tape::Var;
use crate::tensor::Tensor;

impl Tensor {
    /// op(self)·op(rhs), where the flags transpose the last two dimensions.
    fn product(&self, rhs: &Tensor, transposed: [bool; 2], precision: Precision) -> Result<Tensor> {
        let (a, b) = flatten_batch(self, rhs, transposed[0])?;
        let gemm = Gemm { precision, ..Gemm::new(oriented(&a, transposed[0])?, oriented(&b, transposed[1])?) };
        let y = Gemm { precision, ..gemm }.compute()?;
        match *self.shape() {
            [batch, ..] if a.shape().len() < self.shape().len() => {
                let (rows, columns) = y.rows_and_columns();
                y.reshape(&[batch, rows / batch, columns])
            }
            _ => Ok(y),
        }
    }
}

fn oriented(tensor: &Tensor, transposed: bool) -> Result<Matrix<'_>> {
    let matrix = Matrix::new(tensor)?;
    Ok(if transposed { matrix.t() } else { matrix })
}

/// A batch [batch, m, k] times one matrix is one product [batch·m, k].
fn flatten_batch(a: &Tensor, b: &Tensor, a_transposed: bool) -> Result<(Tensor, Tensor)> {
    match (a.shape(), b.shape()) {
        (&[batch, m, k], [_, _]) if !a_transposed => Ok((a.reshape(&[batch * m, k])?, b.clone())),
        _ => Ok((a.clone(), b.clone())),
    }
}

impl<'t> Var<'t> {
    /// self · rhs. self [m, k] or [batch, m, k], rhs [k, n] or [batch, k, n] → [m, n] or [batch, m, n].
    pub fn matmul(&self, rhs: &Var<'t>) -> Result<Var<'t>> {
        self.product(rhs, [false, false])
    }

    /// self · rhsᵀ. self [m, k], rhs [n, k] → [m, n]: a linear layer with its weight stored [out, in].
    pub fn matmul_nt(&self, rhs: &Var<'t>) -> Result<Var<'t>> {
        self.product(rhs, [false, true])
    }

    /// self · rhsᵀ + residual, in one pass. self [m, k], rhs [n, k], residual [m, n] → [m, n].
    pub fn matmul_nt_add(&self, rhs: &Var<'t>, residual: &Var<'t>) -> Result<Var<'t>> {
        let (a, b) = (self.value().clone(), rhs.value().clone());
        let addend = Some((Matrix::new(residual.value())?, 1.0));
        let precision = self.tape().precision();
        let y = Gemm { addend, precision, ..Gemm::new(Matrix::new(&a)?, Matrix::new(&b)?.t()) }.compute()?;
        self.tape().record_accumulating("matmul", y, [self, rhs, residual], move |dy, [wants_a, wants_b, _]| {
            let da = wants_a.then(|| gradient_a(&dy, &a, &b, [false, true], precision));
            let db = wants_b.then(|| gradient_b(&dy, &a, &b, [false, true], precision)).transpose()?;
            Ok([da, db, Some(dy.into())])
        })
    }

    /// selfᵀ · rhs. self [k, m], rhs [k, n] → [m, n].
    pub fn matmul_tn(&self, rhs: &Var<'t>) -> Result<Var<'t>> {
        self.product(rhs, [true, false])
    }

    /// selfᵀ · rhsᵀ. self [k, m], rhs [n, k] → [m, n].
    pub fn matmul_tt(&self, rhs: &Var<'t>) -> Result<Var<'t>> {
        self.product(rhs, [true, true])
    }

    fn product(&self, rhs: &Var<'t>, transposed: [bool; 2]) -> Result<Var<'t>> {
        let (a, b) = (self.value().clone(), rhs.value().clone());
        let precision = self.tape().precision();
        let y = a.product(&b, transposed, precision)?;
        self.tape().record_accumulating("matmul", y, [self, rhs], move |dy, [wants_a, wants_b]| {
            let da = wants_a.then(|| gradient_a(&dy, &a, &b, transposed, precision));
            let db = wants_b.then(|| gradient_b(&dy, &a, &b, transposed, precision)).transpose()?;
            Ok([da, db])
        })
    }
}

fn gradient_a(dy: &Tensor, a: &Tensor, b: &Tensor, [ta, tb]: [bool; 2], precision: Precision) -> Gradient {
    if ta { gradient(b, dy, [tb, true], a, precision) } else { gradient(dy, b, [false, !tb], a, precision) }
}

fn gradient_b(dy: &Tensor, a: &Tensor, b: &Tensor, [ta, tb]: [bool; 2], precision: Precision) -> Result<Gradient> {
    if let (&[batch, m, k], [_, _], false) = (a.shape(), b.shape(), ta) {
        // One product over all rows of the batch instead of a sum of products.
        let a = a.reshape(&[batch * m, k])?;
        let dy = dy.reshape(&[batch * m, dy.rows_and_columns().1])?;
        return gradient_b(&dy, &a, b, [ta, tb], precision);
    }
    Ok(if tb { gradient(dy, a, [true, ta], b, precision) } else { gradient(a, dy, [!ta, false], b, precision) })
}

/// left·right as the gradient of an operand, added to a sum by the product's own epilogue.
fn gradient(left: &Tensor, right: &Tensor, transposed: [bool; 2], operand: &Tensor, precision: Precision) -> Gradient {
    let (left, right, shape) = (left.clone(), right.clone(), operand.shape().to_vec());
    Gradient::accumulate(move |sum| {
        let Some(sum) = sum else {
            return sum_over_batch(left.product(&right, transposed, precision)?, &shape);
        };
        let (a, b) = flatten_batch(&left, &right, transposed[0])?;
        let is_batch = |tensor: &Tensor| tensor.shape().len() == 3;
        if shape.len() == 2 && (is_batch(&a) || is_batch(&b)) {
            return sum.accumulate(sum_over_batch(left.product(&right, transposed, precision)?, &shape)?);
        }
        let gemm = Gemm { precision, ..Gemm::new(oriented(&a, transposed[0])?, oriented(&b, transposed[1])?) };
        let is_unique = sum.is_unique();
        let (rows, columns) = sum.rows_and_columns();
        let view = if is_batch(&a) || is_batch(&b) { sum.clone() } else { sum.reshape(&[rows, columns])? };
        if is_unique {
            Gemm { beta: 1.0, ..gemm }.compute_into(Matrix::new(&view)?)?;
            return Ok(sum);
        }
        Gemm { addend: Some((Matrix::new(&view)?, 1.0)), ..gemm }.compute()?.reshape(&shape)
    })
}

/// Sums the gradient of an operand of this shape that the batch shared.
fn sum_over_batch(gradient: Tensor, shape: &[usize]) -> Result<Tensor> {
    match *gradient.shape() {
        [batch, rows, columns] if shape.len() == 2 => {
            gradient.reshape(&[batch, rows * columns])?.column_sum()?.reshape(&[rows, columns])
        }
        _ => Ok(gradient),
    }
}
