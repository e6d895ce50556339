//! Softmax over the last dimension, and RMSNorm.

use super::array::{Array, add_scaled, dot};

pub fn softmax(x: &Array) -> Array {
    let mut y = x.clone();
    for row in 0..x.rows_and_cols().0 {
        softmax_row(y.row_mut(row));
    }
    y
}

/// dx = y·(dy − ⟨dy, y⟩), row by row.
pub fn softmax_vjp(x: &Array, dy: &Array) -> [Array; 1] {
    let mut dx = softmax(x);
    for row in 0..x.rows_and_cols().0 {
        softmax_row_vjp(dx.row_mut(row), dy.row(row));
    }
    [dx]
}

pub fn softmax_row(x: &mut [f64]) {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    x.iter_mut().for_each(|x| *x = (*x - max).exp());
    let sum: f64 = x.iter().sum();
    x.iter_mut().for_each(|x| *x /= sum);
}

/// Turns the probabilities `y` of one row into the gradient of its logits.
pub fn softmax_row_vjp(y: &mut [f64], dy: &[f64]) {
    let mean = dot(y, dy);
    y.iter_mut().zip(dy).for_each(|(y, dy)| *y *= dy - mean);
}

/// y = w·x·r, r = 1/√(mean(x²) + eps). x `[rows, cols]`, w `[cols]`
pub fn rms_norm(x: &Array, w: &Array, eps: f64) -> Array {
    let (rows, cols) = x.rows_and_cols();
    assert_eq!(w.shape, [cols]);
    let r: Vec<f64> = (0..rows).map(|row| reciprocal_rms(x.row(row), eps)).collect();
    Array::from_fn(&x.shape, |index| x.data[index] * r[index / cols] * w.data[index % cols])
}

/// With g = w·dy: dx = r·(g − x·r²·⟨g, x⟩/cols), dw = Σ over rows of dy·x·r.
pub fn rms_norm_vjp(x: &Array, w: &Array, eps: f64, dy: &Array) -> [Array; 2] {
    let (rows, cols) = x.rows_and_cols();
    let (mut dx, mut dw) = (Array::zeros(&x.shape), Array::zeros(&w.shape));
    for row in 0..rows {
        let (x, dy) = (x.row(row), dy.row(row));
        let r = reciprocal_rms(x, eps);
        let g: Vec<f64> = dy.iter().zip(&w.data).map(|(dy, w)| dy * w).collect();
        add_scaled(dx.row_mut(row), r, &g);
        add_scaled(dx.row_mut(row), -r.powi(3) * dot(&g, x) / cols as f64, x);
        for col in 0..cols {
            dw.data[col] += dy[col] * x[col] * r;
        }
    }
    [dx, dw]
}

fn reciprocal_rms(x: &[f64], eps: f64) -> f64 {
    1.0 / (dot(x, x) / x.len() as f64 + eps).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::differences::{check_vjp, random_arrays};

    #[test]
    fn vjps_match_finite_differences() {
        let one = random_arrays(31, [&[2, 3, 5]]);
        check_vjp("softmax", one, |x| softmax(&x[0]), |x, dy| softmax_vjp(&x[0], dy));
        // An eps of the size of x² shows whether it enters the gradient.
        for eps in [1e-5, 0.5] {
            let inputs = random_arrays(32, [&[4, 6], &[6]]);
            let forward = |x: &[Array]| rms_norm(&x[0], &x[1], eps);
            check_vjp("rms_norm", inputs, forward, |x, dy| rms_norm_vjp(&x[0], &x[1], eps, dy));
        }
    }

    #[test]
    fn softmax_rows_sum_to_one_for_large_logits() {
        let [x] = random_arrays(33, [&[3, 7]]);
        let y = softmax(&x.times(1e4));
        for row in 0..3 {
            assert!((y.row(row).iter().sum::<f64>() - 1.0).abs() < 1e-14);
        }
    }
}
