//! Σᵢ Aᵢ·Bᵢ, as the gradient of an input that several products share.

use super::problem::DeviceCaps;
use super::{Gemm, Matrix, Plan};
use crate::error::Result;
use crate::precision::Precision;
use crate::tensor::Tensor;

/// `out ← Σᵢ Aᵢ·Bᵢ + β·out` over products of one shape, A `[rows, inner]` and B `[inner, columns]`.
///
/// Where each alone has too few results to fill the device, all of them are computed at once, as slices of one product along its inner
/// dimension are, and added up in their order; else one after the other, the last first, adds to the output. Which of the
/// two depends on shape, tier and kind of adapter only, as the rounding does, and not on whether operands lie one after the other: if so,
/// all slices are one dispatch.
pub(crate) fn sum_of_products(products: &[[&Tensor; 2]], precision: Precision, beta: f32, out: &Tensor) -> Result<()> {
    let gemm = |[a, b]: [&Tensor; 2], beta| -> Result<()> {
        Gemm { beta, precision, ..Gemm::new(Matrix::new(a)?, Matrix::new(b)?) }.compute_into(Matrix::new(out)?)
    };
    let Some(slices) = slices(products, precision, out)? else {
        let betas = [beta].into_iter().chain(std::iter::repeat(1.0));
        return products.iter().rev().zip(betas).try_for_each(|(&product, beta)| gemm(product, beta));
    };
    let (gpu, [rows, columns]) = (out.gpu(), out.dims("matmul")?);
    let count = slices.each * products.len();
    // Partial products are bound whole.
    let step = ((gpu.binding_limit() / 4) as usize / (count * columns)).clamp(1, rows);
    for first in (0..rows).step_by(step) {
        let rows = step.min(rows - first);
        let partials = Tensor::uninitialized(gpu, &[count, rows, columns])?;
        slices.compute(products, first, precision, &partials)?;
        let partials = Matrix::new(&partials)?;
        let out = Matrix::new(out)?.row_window(first, rows)?;
        let sum = Gemm { beta, ..Gemm::new(partials, partials) };
        sum.dispatch(gpu, out, [count, count], |problem| vec![Plan::sum(count, problem)])?;
    }
    Ok(())
}

/// How the inner dimension of each product is cut.
struct Slices {
    each: usize,
    depth: usize,
}

/// `None` where the whole sum, as one product, would be cut into fewer slices than it has terms.
fn slices(products: &[[&Tensor; 2]], precision: Precision, out: &Tensor) -> Result<Option<Slices>> {
    let [a, b] = products[0];
    let inner = a.rows_and_columns().1;
    let all = products.len() * inner;
    let gemm = Gemm { precision, ..Gemm::new(Matrix::new(a)?, Matrix::new(b)?) };
    let depth = gemm.problem(&Matrix::new(out)?, all).split_k_depth(DeviceCaps::of(out.gpu()));
    let each = all.div_ceil(depth) / products.len();
    if each == 0 || products.len() == 1 {
        return Ok(None);
    }
    let depth = inner.div_ceil(each).next_multiple_of(16);
    Ok(Some(Slices { each: inner.div_ceil(depth), depth }))
}

impl Slices {
    /// The partial products [count·each, rows, columns] of the rows from `first` on.
    fn compute(&self, products: &[[&Tensor; 2]], first: usize, precision: Precision, partials: &Tensor) -> Result<()> {
        let gpu = partials.gpu();
        let [_, rows, _] = partials.dims("matmul")?;
        let side = |side: usize| products.iter().map(|product| product[side]).collect::<Vec<_>>();
        let batches = [Tensor::batch(&side(0)), Tensor::batch(&side(1))];
        if let [Some(a), Some(b)] = &batches
            && [a, b].iter().all(|batch| batch.bytes() <= gpu.binding_limit())
        {
            let a = Matrix::new(a)?.row_window(first, rows)?;
            let all = Gemm { precision, ..Gemm::new(a, Matrix::new(b)?) };
            let caps = DeviceCaps::of(gpu);
            return all.dispatch(gpu, Matrix::new(partials)?, [self.each, self.depth], |problem| Plan::of(caps, problem));
        }
        for (at, &[a, b]) in products.iter().enumerate() {
            let inner = a.rows_and_columns().1;
            for slice in 0..self.each {
                let (start, partial) = (slice * self.depth, at * self.each + slice);
                let depth = self.depth.min(inner - start);
                let a = Matrix::new(a)?.row_window(first, rows)?.column_window(start, depth)?;
                let b = Matrix::new(b)?.row_window(start, depth)?;
                let product = Gemm { precision, whole_sums: true, ..Gemm::new(a, b) };
                product.compute_into(Matrix::new(partials)?.batch_window(partial, 1))?;
            }
        }
        Ok(())
    }
}
