//! Rotary position embedding in half-split order: within each head, element i and element i + head_dim/2 are rotated by
//! position·theta^(−2i/head_dim), stretched by `scaling`. x `[batch·seq, heads·head_dim]`; the position of a row is row % seq +
//! offset.

use std::f64::consts::TAU;

use super::array::Array;

#[derive(Clone, Copy, Debug)]
pub struct Rotary {
    pub seq: usize,
    pub head_dim: usize,
    pub offset: usize,
    pub theta: f64,
    pub scaling: Scaling,
}

/// How frequencies are stretched for sequences beyond the `original` length: published formulas in terms of wavelengths.
#[derive(Clone, Copy, Debug)]
pub enum Scaling {
    None,
    Linear {
        factor: f64,
    },
    /// Llama 3.1's report: `low` and `high` divide the original length to the wavelengths between which it interpolates.
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        original: f64,
    },
    /// YaRN's paper, with corrections rounded to whole indices; `attention` multiplies queries and keys.
    Yarn {
        factor: f64,
        fast: f64,
        slow: f64,
        original: f64,
        attention: f64,
    },
}

impl Rotary {
    /// Radians per position of pair i.
    pub fn frequency(&self, i: usize) -> f64 {
        let (width, theta) = (self.head_dim as f64, self.theta);
        let wavelength = TAU * theta.powf(2.0 * i as f64 / width);
        match self.scaling {
            Scaling::None => theta.powf(-2.0 * i as f64 / width),
            Scaling::Linear { factor } => TAU / (factor * wavelength),
            Scaling::Llama3 { factor, low, high, original } => {
                let (longest, shortest) = (original / low, original / high);
                if wavelength > longest {
                    TAU / (factor * wavelength)
                } else if wavelength < shortest {
                    TAU / wavelength
                } else {
                    let smooth = (original / wavelength - low) / (high - low);
                    TAU * ((1.0 - smooth) / (factor * wavelength) + smooth / wavelength)
                }
            }
            Scaling::Yarn { factor, fast, slow, original, .. } => {
                let correction = |rotations: f64| width * (original / (rotations * TAU)).ln() / (2.0 * theta.ln());
                let (first, last) = (correction(fast).floor().max(0.0), correction(slow).ceil().min(width - 1.0));
                let last = if first == last { last + 0.001 } else { last };
                let ramp = f64::clamp((i as f64 - first) / (last - first), 0.0, 1.0);
                (TAU / wavelength) * (1.0 - ramp) + TAU / (factor * wavelength) * ramp
            }
        }
    }

    /// What cosines and sines are multiplied by.
    fn attention(&self) -> f64 {
        if let Scaling::Yarn { attention, .. } = self.scaling { attention } else { 1.0 }
    }
}

pub fn rotary(x: &Array, rotary: Rotary) -> Array {
    rotate(x, rotary, 1.0)
}

/// A rotation's transpose is the rotation back; a factor stays.
pub fn rotary_vjp(rotary: Rotary, dy: &Array) -> [Array; 1] {
    [rotate(dy, rotary, -1.0)]
}

fn rotate(x: &Array, rotary: Rotary, direction: f64) -> Array {
    let Rotary { seq, head_dim, offset, .. } = rotary;
    let (rows, cols) = x.rows_and_cols();
    assert_eq!((cols % head_dim, head_dim % 2, rows % seq), (0, 0, 0));
    let half = head_dim / 2;
    let mut y = x.clone();
    for row in 0..rows {
        let position = (row % seq + offset) as f64;
        for first in (0..cols).filter(|col| col % head_dim < half) {
            let (sin, cos) = (direction * position * rotary.frequency(first % head_dim)).sin_cos();
            let (sin, cos) = (rotary.attention() * sin, rotary.attention() * cos);
            let (a, b) = (x.row(row)[first], x.row(row)[first + half]);
            y.row_mut(row)[first] = a * cos - b * sin;
            y.row_mut(row)[first + half] = a * sin + b * cos;
        }
    }
    y
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::array::dot;
    use crate::differences::{check_vjp, random_arrays};

    #[test]
    fn vjp_matches_finite_differences() {
        let settings = Rotary { seq: 3, head_dim: 4, offset: 5, theta: 100.0, scaling: Scaling::None };
        let yarn = Scaling::Yarn { factor: 4.0, fast: 32.0, slow: 1.0, original: 16.0, attention: 1.2 };
        for scaling in [Scaling::None, yarn] {
            let settings = Rotary { scaling, ..settings };
            let inputs = random_arrays(41, [&[6, 8]]);
            check_vjp("rotary", inputs, |x| rotary(&x[0], settings), |_, dy| rotary_vjp(settings, dy));
        }
    }

    #[test]
    fn inner_products_depend_on_the_distance_only() {
        let [q, k] = random_arrays(42, [&[1, 8], &[1, 8]]);
        let at = |x: &Array, offset| rotary(x, Rotary { seq: 1, head_dim: 8, offset, theta: 100.0, scaling: Scaling::None });
        let product = |i, j| dot(&at(&q, i).data, &at(&k, j).data);
        assert!((product(5, 3) - product(9, 7)).abs() < 1e-13);
        assert_eq!(at(&q, 0), q);
    }

    #[test]
    fn a_row_is_rotated_by_its_position_in_its_sequence() {
        let settings = Rotary { seq: 3, head_dim: 4, offset: 5, theta: 100.0, scaling: Scaling::None };
        let y = rotary(&Array::from_fn(&[6, 4], |index| [1.0, 1.0, 0.0, 0.0][index % 4]), settings);
        let (slow, fast) = (0.6_f64, 6.0_f64); // row 4 has position 4 % 3 + 5, and 100^(−2/4) is a tenth
        for (got, want) in y.row(4).iter().zip([fast.cos(), slow.cos(), fast.sin(), slow.sin()]) {
            assert!((got - want).abs() < 1e-14);
        }
    }
}
