//! Newton–Schulz: an odd quintic applied several times drives every singular value towards 1.

use super::array::Array;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Coefficients {
    Simple,
    Quintic,
    PolarExpress,
    Aol,
}

const SIMPLE: &[[f64; 3]] = &[[3.4445, -4.7750, 2.0315]];
const QUINTIC: &[[f64; 3]] = &[
    [4.0848, -6.8946, 2.9270],
    [3.9505, -6.3029, 2.6377],
    [3.7418, -5.5913, 2.3037],
    [2.8769, -3.1427, 1.2046],
    [2.8366, -3.0525, 1.2012],
];
const POLAR_EXPRESS: &[[f64; 3]] = &[
    [7.2086, -15.5131, 9.0178],
    [3.9623, -2.5813, 0.4542],
    [3.9466, -2.5765, 0.4544],
    [3.8991, -2.5671, 0.4566],
    [3.7186, -2.5308, 0.4653],
    [3.1390, -2.3073, 0.4733],
    [2.1715, -1.5246, 0.3885],
    [1.8648, -1.2224, 0.3577],
];
const AOL: &[[f64; 3]] =
    &[[4.0098, -7.0585, 2.4635], [3.4585, -5.5479, 2.5959], [2.7573, -3.2939, 1.4254], [2.7215, -3.0494, 1.3169]];

impl Coefficients {
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "simple" => Some(Self::Simple),
            "quintic" => Some(Self::Quintic),
            "polar_express" => Some(Self::PolarExpress),
            "aol" => Some(Self::Aol),
            _ => None,
        }
    }

    /// a, b, c of one step: the table is cycled, except that polar_express repeats its last row.
    pub fn at(self, step: usize) -> [f64; 3] {
        match self {
            Self::Simple => SIMPLE[0],
            Self::Quintic => QUINTIC[step % QUINTIC.len()],
            Self::PolarExpress => POLAR_EXPRESS[step.min(POLAR_EXPRESS.len() - 1)],
            Self::Aol => AOL[step % AOL.len()],
        }
    }

    pub fn default_steps(self) -> usize {
        if self == Self::PolarExpress { 8 } else { 5 }
    }
}

/// X = d/(‖d‖_F + 1e-7), then `steps` steps of the quintic.
pub fn newton_schulz(d: &Array, coefficients: Coefficients, steps: usize) -> Array {
    iterate(&d.times(1.0 / (d.norm() + 1e-7)), coefficients, steps)
}

/// A = XXᵀ of a wide X, X ← a·X + (b·A + c·A²)·X, `steps` times.
pub fn iterate(x: &Array, coefficients: Coefficients, steps: usize) -> Array {
    let (rows, cols) = x.rows_and_cols();
    if rows > cols {
        return iterate(&x.transpose(), coefficients, steps).transpose();
    }
    let mut x = x.clone();
    for step in 0..steps {
        let [a, b, c] = coefficients.at(step);
        let gram = x.matmul(&x.transpose());
        let quadratic = gram.times(b).plus(&gram.matmul(&gram).times(c));
        x = x.times(a).plus(&quadratic.matmul(&x));
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::differences::{assert_near, random_arrays};
    use crate::golden;
    use crate::svd::svd;

    #[test]
    fn golden_cases_are_reproduced() {
        for case in golden::newton_schulz() {
            let shape = [case.rows, case.cols];
            let coefficients = Coefficients::from_name(&case.coefficients).expect("a known set");
            let got = newton_schulz(&golden::f32_array(&shape, &case.x), coefficients, case.steps);
            let name = format!("{} {shape:?}", case.coefficients);
            // 12 printed digits
            assert_near(&name, &got, &Array::new(&shape, case.y), 1e-11);
        }
    }

    #[test]
    fn the_singular_values_go_through_the_quintics() {
        for (rows, cols) in [(5, 8), (8, 5)] {
            let [d] = random_arrays(91, [&[rows, cols]]);
            let scale = 1.0 / (d.norm() + 1e-7);
            let mapped = svd(&d).with_values(|sigma| {
                (0..7).fold(sigma * scale, |x, step| {
                    let [a, b, c] = Coefficients::Quintic.at(step);
                    x * (a + b * x.powi(2) + c * x.powi(4))
                })
            });
            assert_near("newton_schulz", &newton_schulz(&d, Coefficients::Quintic, 7), &mapped, 1e-11);
        }
    }

    #[test]
    fn polar_express_makes_a_matrix_orthogonal() {
        let [d] = random_arrays(92, [&[6, 10]]);
        let x = newton_schulz(&d, Coefficients::PolarExpress, 10);
        assert_near("XXᵀ", &x.matmul(&x.transpose()), &Array::identity(6), 0.02);
    }
}
