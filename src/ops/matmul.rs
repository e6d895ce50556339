//! Matrix product: y = op(a)·op(b), op an optional transpose. a [m, k], b [k, n] → y [m, n]; with a leading batch dimension on
//! a, or on both. Saves a and b. da = dy·op(b)ᵀ, db = op(a)ᵀ·dy, without transposed copies; db is summed over the batch if b has
//! none. All three at the tape's precision.

use crate::error::Result;
use crate::gemm::{Gemm, Matrix};
use crate::params::Gradient;
use crate::precision::Precision;
use crate::tape::Var;
use crate::tensor::{Tensor, same_shape};

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

/// [batch, m, k] times one matrix is a single product with [batch·m, k].
fn flatten_batch(a: &Tensor, b: &Tensor, a_transposed: bool) -> Result<(Tensor, Tensor)> {
    match (a.shape(), b.shape()) {
        (&[batch, m, k], [_, _]) if !a_transposed => Ok((a.reshape(&[batch * m, k])?, b.clone())),
        _ => Ok((a.clone(), b.clone())),
    }
}

impl<'t> Var<'t> {
    /// `y = self·rhs`. self `[m, k]`, rhs `[k, n]` → `[m, n]`; self, or both, may have a leading batch dimension. Backward:
    /// `dself = dy·rhsᵀ`, `drhs = selfᵀ·dy`, summed over the batch where rhs has none. All products at the tape's
    /// [precision](crate::Tape::with_precision). An error unless the inner dimensions and the batches agree.
    ///
    /// ```
    /// # use polytape::*;
    /// # let gpu = Gpu::open(&Default::default())?;
    /// # let params = Params::new(&gpu);
    /// # let tape = Tape::new(&params);
    /// let a = tape.leaf(Tensor::from_slice(&gpu, &[1.0, 2.0, 3.0, 4.0], &[2, 2])?);
    /// let b = tape.constant(Tensor::from_slice(&gpu, &[1.0, 10.0], &[2, 1])?);
    /// let y = a.matmul(&b)?;
    /// assert_eq!(y.value().to_vec()?, [21.0, 43.0]);
    /// let gradients = tape.backward(&y.sum()?, &mut Gradients::new())?;
    /// assert_eq!(gradients.get(&a).unwrap().to_vec()?, [1.0, 10.0, 1.0, 10.0]); // every row is bᵀ
    /// # Ok::<(), Error>(())
    /// ```
    pub fn matmul(&self, rhs: &Var<'t>) -> Result<Var<'t>> {
        self.product(rhs, [false, false])
    }

    /// `y = self·rhsᵀ`: a linear layer with its weight stored `[out, in]`. self `[m, k]`, rhs `[n, k]` → `[m, n]`, batched like
    /// [`Var::matmul`]. Backward: `dself = dy·rhs`, `drhs = dyᵀ·self`, without a transposed copy. Errors: as [`Var::matmul`].
    ///
    /// ```
    /// # use polytape::*;
    /// # let gpu = Gpu::open(&Default::default())?;
    /// # let params = Params::new(&gpu);
    /// # let tape = Tape::new(&params);
    /// let x = tape.leaf(Tensor::from_slice(&gpu, &[1.0, 2.0], &[1, 2])?);
    /// let weight = tape.leaf(Tensor::from_slice(&gpu, &[1.0, 1.0, 0.0, 1.0, 3.0, 0.0], &[3, 2])?);
    /// let y = x.matmul_nt(&weight)?;
    /// assert_eq!(y.value().to_vec()?, [3.0, 2.0, 3.0]);
    /// let gradients = tape.backward(&y.sum()?, &mut Gradients::new())?;
    /// assert_eq!(gradients.get(&x).unwrap().to_vec()?, [4.0, 2.0]); // column sums of the weight
    /// # Ok::<(), Error>(())
    /// ```
    pub fn matmul_nt(&self, rhs: &Var<'t>) -> Result<Var<'t>> {
        self.product(rhs, [false, true])
    }

    /// `y = self·rhsᵀ + residual`, added in the product's epilogue. self `[m, k]`, rhs `[n, k]`, residual `[m, n]` → `[m, n]`.
    /// Backward: as [`Var::matmul_nt`], and `dresidual = dy`. Errors: as [`Var::matmul`], and a residual of another shape.
    ///
    /// ```
    /// # use polytape::*;
    /// # let gpu = Gpu::open(&Default::default())?;
    /// # let params = Params::new(&gpu);
    /// # let tape = Tape::new(&params);
    /// let x = tape.constant(Tensor::from_slice(&gpu, &[1.0, 2.0], &[1, 2])?);
    /// let weight = tape.constant(Tensor::from_slice(&gpu, &[1.0, 1.0, 0.0, 1.0], &[2, 2])?);
    /// let residual = tape.leaf(Tensor::from_slice(&gpu, &[10.0, 20.0], &[1, 2])?);
    /// let y = x.matmul_nt_add(&weight, &residual)?;
    /// assert_eq!(y.value().to_vec()?, [13.0, 22.0]);
    /// let gradients = tape.backward(&y.sum()?, &mut Gradients::new())?;
    /// assert_eq!(gradients.get(&residual).unwrap().to_vec()?, [1.0, 1.0]);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn matmul_nt_add(&self, rhs: &Var<'t>, residual: &Var<'t>) -> Result<Var<'t>> {
        let (a, b) = (self.value().clone(), rhs.value().clone());
        let addend = Some((Matrix::new(residual.value())?, 1.0));
        let precision = self.tape().precision();
        let y = Gemm { addend, precision, ..Gemm::new(Matrix::new(&a)?, Matrix::new(&b)?.t()) }.compute()?;
        same_shape("matmul", &y, residual.value())?;
        self.tape().record_accumulating("matmul", y, [self, rhs, residual], move |dy, [wants_a, wants_b, _]| {
            let da = wants_a.then(|| gradient_a(&dy, &a, &b, [false, true], precision));
            let db = wants_b.then(|| gradient_b(&dy, &a, &b, [false, true], precision)).transpose()?;
            Ok([da, db, Some(dy.into())])
        })
    }

    /// `y = selfᵀ·rhs`. self `[k, m]`, rhs `[k, n]` → `[m, n]`; both may have a batch dimension. Backward: `dself = rhs·dyᵀ`,
    /// `drhs = self·dy`. Errors: as [`Var::matmul`].
    ///
    /// ```
    /// # use polytape::*;
    /// # let gpu = Gpu::open(&Default::default())?;
    /// # let params = Params::new(&gpu);
    /// # let tape = Tape::new(&params);
    /// let x = tape.constant(Tensor::from_slice(&gpu, &[1.0, 2.0, 3.0, 4.0], &[2, 2])?);
    /// assert_eq!(x.matmul_tn(&x)?.value().to_vec()?, [10.0, 14.0, 14.0, 20.0]); // the Gram matrix
    /// # Ok::<(), Error>(())
    /// ```
    pub fn matmul_tn(&self, rhs: &Var<'t>) -> Result<Var<'t>> {
        self.product(rhs, [true, false])
    }

    /// `y = selfᵀ·rhsᵀ`. self `[k, m]`, rhs `[n, k]` → `[m, n]`; both may have a batch dimension. Backward: `dself = rhsᵀ·dyᵀ`,
    /// `drhs = dyᵀ·selfᵀ`. Errors: as [`Var::matmul`].
    ///
    /// ```
    /// # use polytape::*;
    /// # let gpu = Gpu::open(&Default::default())?;
    /// # let params = Params::new(&gpu);
    /// # let tape = Tape::new(&params);
    /// let x = tape.constant(Tensor::from_slice(&gpu, &[1.0, 2.0, 3.0, 4.0], &[2, 2])?);
    /// assert_eq!(x.matmul_tt(&x)?.value().to_vec()?, [7.0, 15.0, 10.0, 22.0]); // (x·x)ᵀ
    /// # Ok::<(), Error>(())
    /// ```
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
        // One product over the rows of the whole batch instead of a sum of products.
        let a = a.reshape(&[batch * m, k])?;
        let dy = dy.reshape(&[batch * m, dy.rows_and_columns().1])?;
        return gradient_b(&dy, &a, b, [ta, tb], precision);
    }
    Ok(if tb { gradient(dy, a, [true, ta], b, precision) } else { gradient(a, dy, [!ta, false], b, precision) })
}

/// left·right as the gradient of an operand, accumulated by the product's epilogue.
pub(super) fn gradient(left: &Tensor, right: &Tensor, transposed: [bool; 2], operand: &Tensor, precision: Precision) -> Gradient {
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

/// Sums over the batch if the operand, of this shape, has no batch dimension.
fn sum_over_batch(gradient: Tensor, shape: &[usize]) -> Result<Tensor> {
    match *gradient.shape() {
        [batch, rows, columns] if shape.len() == 2 => {
            gradient.reshape(&[batch, rows * columns])?.column_sum()?.reshape(&[rows, columns])
        }
        _ => Ok(gradient),
    }
}
