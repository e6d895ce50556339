//! Singular values by one-sided Jacobi rotations: an oracle for small matrices that shares nothing with the polynomials.

use super::array::{Array, dot};

/// w `[r, c]` = u `[r, n]`·diag(sigma `[n]`)·vᵀ `[n, c]` with n = min(r, c) and sigma falling.
pub struct Svd {
    pub u: Array,
    pub sigma: Vec<f64>,
    pub v: Array,
}

pub fn svd(w: &Array) -> Svd {
    let (rows, cols) = w.rows_and_cols();
    if rows < cols {
        let Svd { u, sigma, v } = svd(&w.transpose());
        return Svd { u: v, sigma, v: u };
    }
    // Columns are kept as rows here. Rotating pairs of them until all are orthogonal leaves (w·v)ᵀ = diag(sigma)·uᵀ.
    let (mut wv, mut v) = (w.transpose(), Array::identity(cols));
    while sweep(&mut wv, &mut v) {}
    let mut order: Vec<(f64, usize)> = (0..cols).map(|j| (dot(wv.row(j), wv.row(j)).sqrt(), j)).collect();
    order.sort_by(|a, b| b.0.total_cmp(&a.0));
    let sorted = |x: &Array, scale: &dyn Fn(f64) -> f64| {
        let rows = order.iter().flat_map(|&(sigma, j)| x.row(j).iter().map(move |x| (sigma, *x)));
        Array::new(&x.shape, rows.map(|(sigma, x)| x * scale(sigma)).collect()).transpose()
    };
    Svd { u: sorted(&wv, &|sigma| 1.0 / sigma), v: sorted(&v, &|_| 1.0), sigma: order.iter().map(|&(sigma, _)| sigma).collect() }
}

/// Rotates every pair once; false when all pairs were orthogonal to rounding.
fn sweep(wv: &mut Array, v: &mut Array) -> bool {
    let mut rotated = false;
    for i in 0..wv.shape[0] {
        for j in i + 1..wv.shape[0] {
            let (a, b, c) = (dot(wv.row(i), wv.row(i)), dot(wv.row(j), wv.row(j)), dot(wv.row(i), wv.row(j)));
            if c.abs() <= 1e-14 * (a * b).sqrt() {
                continue;
            }
            rotated = true;
            // The smaller root of t² + 2·tau·t − 1 = 0 makes the pair orthogonal with the smaller rotation.
            let tau = (b - a) / (2.0 * c);
            let t = tau.signum() / (tau.abs() + (1.0 + tau * tau).sqrt());
            let cos = 1.0 / (1.0 + t * t).sqrt();
            rotate(wv, i, j, cos, cos * t);
            rotate(v, i, j, cos, cos * t);
        }
    }
    rotated
}

fn rotate(x: &mut Array, i: usize, j: usize, cos: f64, sin: f64) {
    for col in 0..x.shape[1] {
        let (a, b) = (x.row(i)[col], x.row(j)[col]);
        x.row_mut(i)[col] = cos * a - sin * b;
        x.row_mut(j)[col] = sin * a + cos * b;
    }
}

impl Svd {
    /// u·diag(f(sigma))·vᵀ
    pub fn with_values(&self, f: impl Fn(f64) -> f64) -> Array {
        let n = self.sigma.len();
        let scaled = Array::from_fn(&self.u.shape, |index| self.u.data[index] * f(self.sigma[index % n]));
        scaled.matmul(&self.v.transpose())
    }

    /// σ₁ over the mean of the smallest ⌈n/10⌉ singular values.
    pub fn modified_condition_number(&self) -> f64 {
        let smallest = &self.sigma[self.sigma.len() - self.sigma.len().div_ceil(10)..];
        self.sigma[0] * smallest.len() as f64 / smallest.iter().sum::<f64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::differences::{assert_near, random_arrays};

    #[test]
    fn the_factors_are_orthogonal_and_multiply_to_the_matrix() {
        for (rows, cols) in [(7, 7), (9, 4), (4, 9)] {
            let [w] = random_arrays(81, [&[rows, cols]]);
            let svd = svd(&w);
            assert_near("u·σ·vᵀ", &svd.with_values(|sigma| sigma), &w, 1e-13);
            let n = rows.min(cols);
            assert_near("uᵀu", &svd.u.transpose().matmul(&svd.u), &Array::identity(n), 1e-13);
            assert_near("vᵀv", &svd.v.transpose().matmul(&svd.v), &Array::identity(n), 1e-13);
            assert!(svd.sigma.is_sorted_by(|a, b| a >= b));
        }
    }

    #[test]
    fn the_modified_condition_number_averages_the_smallest_tenth() {
        let w = Array::from_fn(&[11, 11], |index| if index % 12 == 0 { 1.0 + index as f64 / 12.0 } else { 0.0 });
        assert!((svd(&w).modified_condition_number() - 11.0 / 1.5).abs() < 1e-13); // values 1 to 11, ⌈1.1⌉ = 2
    }
}
