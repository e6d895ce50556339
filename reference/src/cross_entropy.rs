//! The output head with its loss: logits = x·weightᵀ, loss = mean over rows of log Σ exp(logits) − `logits[target]`.
//! x `[rows, dim]`, weight `[vocab, dim]`, targets `[rows]` → `[1]`

use super::array::Array;
use super::half::Operands;
use super::normalize::softmax;

pub fn cross_entropy_head(x: &Array, weight: &Array, targets: &[u32]) -> Array {
    rounded_head(Operands::Whole, x, weight, targets)
}

/// dlogits = (softmax − one_hot(target))·dy/rows; dx = dlogits·weight, dweight = dlogitsᵀ·x.
pub fn cross_entropy_head_vjp(x: &Array, weight: &Array, targets: &[u32], dy: &Array) -> [Array; 2] {
    rounded_head_vjp(Operands::Whole, x, weight, targets, dy)
}

/// [`cross_entropy_head`] with the operands of its product rounded.
pub fn rounded_head(operands: Operands, x: &Array, weight: &Array, targets: &[u32]) -> Array {
    let logits = operands.matmul(x, weight, false, true);
    let loss = |(row, &target): (usize, &u32)| {
        let logits = logits.row(row);
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = logits.iter().map(|x| (x - max).exp()).sum();
        max + sum.ln() - logits[target as usize]
    };
    let losses: f64 = targets.iter().enumerate().map(loss).sum();
    Array::scalar(losses / targets.len() as f64)
}

/// [`cross_entropy_head_vjp`] with the operands of its products rounded: softmax − one_hot as 2¹⁵ times itself, so that small
/// probabilities are not lost.
pub fn rounded_head_vjp(operands: Operands, x: &Array, weight: &Array, targets: &[u32], dy: &Array) -> [Array; 2] {
    const SCALE: f64 = 32_768.0;
    let mut dlogits = softmax(&operands.matmul(x, weight, false, true));
    for (row, &target) in targets.iter().enumerate() {
        dlogits.row_mut(row)[target as usize] -= 1.0;
    }
    let dlogits = dlogits.times(SCALE);
    let products = [operands.matmul(&dlogits, weight, false, false), operands.matmul(&dlogits, x, true, false)];
    products.map(|product| product.times(dy.item() / targets.len() as f64 / SCALE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::differences::{check_vjp, random_arrays};

    #[test]
    fn vjp_matches_finite_differences() {
        let targets = [4, 0, 4, 6];
        check_vjp(
            "cross_entropy_head",
            random_arrays(71, [&[4, 3], &[7, 3]]),
            |x| cross_entropy_head(&x[0], &x[1], &targets),
            |x, dy| cross_entropy_head_vjp(&x[0], &x[1], &targets, dy),
        );
    }

    #[test]
    fn equal_logits_cost_the_logarithm_of_the_vocabulary() {
        let [x] = random_arrays(72, [&[4, 3]]);
        let loss = cross_entropy_head(&x, &Array::zeros(&[7, 3]), &[1, 2, 3, 4]);
        assert!((loss.item() - 7f64.ln()).abs() < 1e-14);
    }
}
