//! Several products of one input: yᵢ = x·wᵢᵀ, as q, k and v, or gate and up. x [rows, k], wᵢ [columnsᵢ, k] → yᵢ [rows, columnsᵢ]. Saves
//! x and the weights. dx = Σᵢ dyᵢ·wᵢ, dwᵢ = dyᵢᵀ·x.
//!
//! Weights of one shape that lie one after the other are one batch, forward and backward, and their outputs and gradients lie so,
//! too. How tensors lie changes no bit: a matrix of a batch has the sums that it has alone.

use std::ops::Range;

use super::matmul;
use crate::error::{Error, Result};
use crate::gemm::{Gemm, Matrix, sum_of_products};
use crate::params::Gradient;
use crate::precision::Precision;
use crate::tape::Var;
use crate::tensor::{Tensor, fits_a_stack, slot};

impl<'t> Var<'t> {
    /// `yᵢ = self·wᵢᵀ` for every weight: linear layers of one input, as [`Var::matmul_nt`], in as few dispatches as the places of the
    /// weights allow. self `[rows, k]`, weights `[columnsᵢ, k]` → `[rows, columnsᵢ]`. Backward: `dself = Σᵢ dyᵢ·wᵢ`, `dwᵢ = dyᵢᵀ·self`.
    /// Errors: as [`Var::matmul_nt`] of matrices, and no weights.
    ///
    /// ```
    /// # use polytape::*;
    /// # let gpu = Gpu::open(&Default::default())?;
    /// # let params = Params::new(&gpu);
    /// # let tape = Tape::new(&params);
    /// let x = tape.leaf(Tensor::from_slice(&gpu, &[1.0, 2.0], &[1, 2])?);
    /// let [a, b] = [[1.0, 1.0], [3.0, 0.0]].map(|row| Tensor::from_slice(&gpu, &row, &[1, 2]).map(|w| tape.constant(w)));
    /// let y = x.matmul_nt_each(&[&a?, &b?])?;
    /// assert_eq!([y[0].value().item()?, y[1].value().item()?], [3.0, 3.0]);
    /// let gradients = tape.backward(&y[0].add(&y[1])?, &mut Gradients::new())?;
    /// assert_eq!(gradients.get(&x).unwrap().to_vec()?, [4.0, 1.0]); // the sum of the weights
    /// # Ok::<(), Error>(())
    /// ```
    pub fn matmul_nt_each(&self, weights: &[&Var<'t>]) -> Result<Vec<Var<'t>>> {
        let (x, precision) = (self.value().clone(), self.tape().precision());
        let w: Vec<Tensor> = weights.iter().map(|weight| weight.value().clone()).collect();
        check(&x, &w)?;
        let values = forward(&x, &w, precision)?;
        let parents: Vec<&Var<'t>> = [self].into_iter().chain(weights.iter().copied()).collect();
        self.tape().record_several("matmul", values, &parents, move |dys, wanted| Ok(backward(x, w, dys, wanted, precision)))
    }
}

fn check(x: &Tensor, weights: &[Tensor]) -> Result<()> {
    let [_, inner] = x.dims("matmul")?;
    let columns = weights.iter().map(|w| w.dims("matmul").map(|[_, columns]| columns)).collect::<Result<Vec<_>>>()?;
    if !columns.is_empty() && columns.iter().all(|&columns| columns == inner) {
        return Ok(());
    }
    let shapes: Vec<&[usize]> = [x].into_iter().chain(weights).map(Tensor::shape).collect();
    let problem = format!("{:?} × {:?}ᵀ: weights with {inner} columns each expected", x.shape(), &shapes[1..]);
    Err(Error::shape("matmul", &shapes, problem))
}

/// Weights that are one batch, range by range.
fn runs(weights: &[Tensor]) -> Vec<Range<usize>> {
    let tensors: Vec<&Tensor> = weights.iter().collect();
    let is_batch = |run: &Range<usize>| run.len() == 1 || Tensor::batch(&tensors[run.clone()]).is_some();
    Tensor::runs(&tensors).into_iter().flat_map(|run| if is_batch(&run) { vec![run] } else { one_by_one(run) }).collect()
}

fn one_by_one(run: Range<usize>) -> Vec<Range<usize>> {
    run.map(|at| at..at + 1).collect()
}

fn forward(x: &Tensor, weights: &[Tensor], precision: Precision) -> Result<Vec<Tensor>> {
    let mut values = Vec::with_capacity(weights.len());
    for run in runs(weights) {
        let (rows, columns) = (x.shape()[0], weights[run.start].shape()[0]);
        let is_batch = slot(rows * columns) == rows * columns && fits_a_stack(x.gpu(), rows * columns, run.len());
        for run in if is_batch { vec![run] } else { one_by_one(run) } {
            let parts: Vec<&Tensor> = weights[run.clone()].iter().collect();
            let Some(batch) = Tensor::batch(&parts).filter(|_| run.len() > 1) else {
                let gemm = Gemm::new(Matrix::new(x)?, Matrix::new(parts[0])?.t());
                values.push(Gemm { precision, ..gemm }.compute()?);
                continue;
            };
            let gemm = Gemm::new(Matrix::new(x)?, Matrix::new(&batch)?.t());
            let y = Gemm { precision, as_alone: true, ..gemm }.compute()?;
            values.extend(y.into_parts(&[rows, columns])?);
        }
    }
    Ok(values)
}

/// The gradients of x and of each weight.
fn backward(
    x: Tensor,
    weights: Vec<Tensor>,
    dys: Vec<Option<Tensor>>,
    wanted: &[bool],
    precision: Precision,
) -> Vec<Option<Gradient>> {
    let mut gradients = Vec::with_capacity(1 + weights.len());
    gradients.push(None);
    for run in runs(&weights) {
        let is_complete = run.clone().all(|at| wanted[1 + at] && dys[at].is_some());
        if run.len() > 1 && is_complete {
            let dys: Vec<Tensor> = dys[run.clone()].iter().flatten().cloned().collect();
            gradients.push(Some(of_run(&x, &weights[run.start], dys, precision)));
            gradients.extend((1..run.len()).map(|_| None));
        } else {
            let one = |at: usize| {
                let dy = dys[at].as_ref().filter(|_| wanted[1 + at])?;
                Some(matmul::gradient(dy, &x, [true, false], &weights[at], precision))
            };
            gradients.extend(run.map(one));
        }
    }
    let wants_x = wanted[0];
    gradients[0] = wants_x.then(|| Gradient::accumulate(move |sum| of_input(&x, &weights, &dys, sum, precision)));
    gradients
}

/// The gradients of weights that are a batch, like `weight` each.
fn of_run(x: &Tensor, weight: &Tensor, dys: Vec<Tensor>, precision: Precision) -> Gradient {
    let (x, weight, count) = (x.clone(), weight.clone(), dys.len());
    let add = move |sums: Vec<Option<Tensor>>| {
        let one_by_one = |sums: Vec<Option<Tensor>>| -> Result<Vec<Tensor>> {
            let add = |(dy, mut sum): (&Tensor, Option<Tensor>)| {
                matmul::gradient(dy, &x, [true, false], &weight, precision).add_to(&mut sum)?;
                Ok(sum.expect("bug: a gradient leaves a sum"))
            };
            dys.iter().zip(sums).map(add).collect()
        };
        let Some(dy) = Tensor::batch(&dys.iter().collect::<Vec<_>>()) else { return one_by_one(sums) };
        let (out, beta) = if sums.iter().all(Option::is_none) {
            let [rows, columns] = weight.dims("matmul")?;
            (Tensor::uninitialized(x.gpu(), &[dys.len(), rows, columns])?, 0.0)
        } else if sums.iter().all(Option::is_some) {
            match Tensor::rejoined(sums.into_iter().flatten().collect()) {
                Ok(batch) => (batch, 1.0),
                Err(sums) => return one_by_one(sums.into_iter().map(Some).collect()),
            }
        } else {
            return one_by_one(sums);
        };
        let gemm = Gemm::new(Matrix::new(&dy)?.t(), Matrix::new(&x)?);
        Gemm { beta, precision, as_alone: true, ..gemm }.compute_into(Matrix::new(&out)?)?;
        out.into_parts(weight.shape())
    };
    Gradient::Together { count, add: Box::new(add) }
}

/// Σᵢ dyᵢ·wᵢ, from the last to the first, those of one shape together.
fn of_input(x: &Tensor, weights: &[Tensor], dys: &[Option<Tensor>], sum: Option<Tensor>, precision: Precision) -> Result<Tensor> {
    let mut beta = f32::from(u8::from(sum.is_some()));
    let dx = Tensor::sum_or_new(sum, x.gpu(), x.shape())?;
    let products: Vec<[&Tensor; 2]> = dys.iter().zip(weights).filter_map(|(dy, w)| Some([dy.as_ref()?, w])).collect();
    let mut alike: Vec<&[[&Tensor; 2]]> = products.chunk_by(|[_, a], [_, b]| a.shape() == b.shape()).collect();
    alike.reverse();
    for products in alike {
        sum_of_products(products, precision, beta, &dx)?;
        beta = 1.0;
    }
    Ok(dx)
}
