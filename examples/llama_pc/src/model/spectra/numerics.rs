//! Singular values on the host, in float64, and statistics of them.

use faer::MatRef;
use serde::{Deserialize, Serialize};

use crate::run::measured::or_infinite;

/// Bins of a histogram of σ/σ₁ over [0, 1].
const BINS: usize = 25;

/// Quantiles at 0, 1/QUANTILES, …, 1.
const QUANTILES: usize = 100;

/// The singular values of one matrix, and their curves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spectrum {
    /// All min(rows, columns) of them, descending.
    pub singular_values: Vec<f64>,
    /// σ₁ over the mean of the smallest tenth.
    #[serde(deserialize_with = "or_infinite")]
    pub modified_condition: f64,
    /// Share of the values in each of equal bins of σ/σ₁ over [0, 1].
    pub histogram: Vec<f64>,
    /// Share of the values with σ/σ₁ at or below the right edge of each bin.
    pub cumulative: Vec<f64>,
    /// σ/σ₁ at the quantiles 0, 0.01, …, 1, linear between the values.
    pub quantiles: Vec<f64>,
}

impl Spectrum {
    /// Of a row-major matrix. `None` if a value is not finite or the decomposition does not converge.
    pub fn of(values: &[f32], columns: usize) -> Option<Self> {
        Some(Self::from_singular_values(singular_values(values, columns)?))
    }

    /// From values in descending order.
    fn from_singular_values(singular_values: Vec<f64>) -> Self {
        let largest = singular_values[0];
        let relative: Vec<f64> = singular_values.iter().map(|value| if largest == 0.0 { 0.0 } else { value / largest }).collect();
        let histogram = histogram(&relative);
        let cumulative = histogram.iter().scan(0.0, |sum, share| {
            *sum += share;
            Some(*sum)
        });
        Self {
            modified_condition: modified_condition(&singular_values),
            cumulative: cumulative.collect(),
            histogram,
            quantiles: (0..=QUANTILES).map(|at| quantile(&relative, at as f64 / QUANTILES as f64)).collect(),
            singular_values,
        }
    }
}

/// The singular values, descending. `None` if a value is not finite or the decomposition does not converge.
pub fn singular_values(values: &[f32], columns: usize) -> Option<Vec<f64>> {
    if values.is_empty() || values.iter().any(|value| !value.is_finite()) {
        return None;
    }
    let wide: Vec<f64> = values.iter().map(|value| f64::from(*value)).collect();
    let matrix = MatRef::from_row_major_slice(&wide, values.len() / columns, columns);
    let mut found = matrix.singular_values().ok()?;
    found.sort_by(|a, b| b.total_cmp(a));
    Some(found)
}

/// σ₁ over the mean of the smallest ⌈n/10⌉ of the values, which are in descending order; infinite if those are all 0.
pub fn modified_condition(descending: &[f64]) -> f64 {
    let count = descending.len().div_ceil(10);
    let smallest = &descending[descending.len() - count..];
    let mean = smallest.iter().sum::<f64>() / count as f64;
    if mean > 0.0 { descending[0] / mean } else { f64::INFINITY }
}

/// (∏ values)^(1/n). `None` of nothing.
pub fn geometric_mean(values: &[f64]) -> Option<f64> {
    let logs: f64 = values.iter().map(|value| value.ln()).sum();
    (!values.is_empty()).then(|| (logs / values.len() as f64).exp())
}

/// uᵀWv in float64, for W of v.len() columns.
pub fn bilinear(u: &[f32], w: &[f32], v: &[f32]) -> f64 {
    let dot = |row: &[f32]| row.iter().zip(v).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    w.chunks_exact(v.len()).zip(u).map(|(row, weight)| f64::from(*weight) * dot(row)).sum()
}

fn histogram(relative: &[f64]) -> Vec<f64> {
    let mut counts = vec![0usize; BINS];
    for value in relative {
        counts[((value * BINS as f64) as usize).min(BINS - 1)] += 1;
    }
    counts.into_iter().map(|count| count as f64 / relative.len() as f64).collect()
}

/// The value below which the share `q` lies; `descending` as everywhere here.
fn quantile(descending: &[f64], q: f64) -> f64 {
    let place = (1.0 - q) * (descending.len() - 1) as f64;
    let (low, rest) = (place.floor() as usize, place.fract());
    let next = descending.get(low + 1).copied().unwrap_or(descending[low]);
    descending[low] + rest * (next - descending[low])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rotates the plane of coordinates i and j in every row of a matrix.
    fn rotate_rows(values: &mut [f64], columns: usize, i: usize, j: usize, angle: f64) {
        let (sin, cos) = angle.sin_cos();
        for c in 0..columns {
            let (a, b) = (values[i * columns + c], values[j * columns + c]);
            values[i * columns + c] = cos * a - sin * b;
            values[j * columns + c] = sin * a + cos * b;
        }
    }

    fn transpose(values: &[f64], columns: usize) -> Vec<f64> {
        let rows = values.len() / columns;
        (0..columns).flat_map(|c| (0..rows).map(move |r| values[r * columns + c])).collect()
    }

    /// A matrix with known singular values: a diagonal between products of plane rotations.
    fn with_singular_values(singular: &[f64], rows: usize, columns: usize) -> Vec<f32> {
        let mut values = vec![0.0; rows * columns];
        for (i, value) in singular.iter().enumerate() {
            values[i * columns + i] = *value;
        }
        // Of two different rows each time; a single row has no other to rotate with.
        let pairs = |n: usize| (0..4 * n).filter(move |_| n > 1).map(move |k| (k % n, (k + 1 + k % (n - 1)) % n, 0.3 + k as f64));
        for (i, j, angle) in pairs(rows) {
            rotate_rows(&mut values, columns, i, j, angle);
        }
        let mut transposed = transpose(&values, columns);
        for (i, j, angle) in pairs(columns) {
            rotate_rows(&mut transposed, rows, i, j, angle);
        }
        transpose(&transposed, rows).into_iter().map(|value| value as f32).collect()
    }

    #[test]
    fn known_singular_values_are_found() {
        for (rows, columns) in [(5, 5), (11, 7), (7, 13), (1, 4), (4, 1), (40, 30)] {
            let n = rows.min(columns);
            let known: Vec<f64> = (0..n).map(|i| 3.0 / (1.0 + i as f64 * 0.7)).collect();
            let found = singular_values(&with_singular_values(&known, rows, columns), columns).expect("finite values");
            assert_eq!(found.len(), n);
            // The matrix is rounded to float32.
            assert!(known.iter().zip(&found).all(|(a, b)| (a - b).abs() < 1e-5), "{rows}×{columns}: {found:?}, want {known:?}");
        }
    }

    #[test]
    fn extremes_have_spectra_too() {
        let identity: Vec<f32> = (0..36).map(|at| if at % 7 == 0 { 1.0 } else { 0.0 }).collect();
        let spectrum = Spectrum::of(&identity, 6).expect("a spectrum");
        assert!((spectrum.modified_condition - 1.0).abs() < 1e-12);
        assert_eq!(spectrum.histogram.last(), Some(&1.0));
        let zero = Spectrum::of(&[0.0; 12], 4).expect("a spectrum");
        assert_eq!((zero.singular_values.clone(), zero.quantiles[100], zero.histogram[0]), (vec![0.0; 3], 0.0, 1.0));
        let json = serde_json::to_string(&zero).expect("JSON");
        assert!(json.contains("\"modified_condition\":null"), "{json}");
        assert_eq!(serde_json::from_str::<Spectrum>(&json).expect("it is read again"), zero);
        let rank_one = Spectrum::of(&[1.0, 2.0, 2.0, 4.0], 2).expect("a spectrum");
        assert!((rank_one.singular_values[0] - 5.0).abs() < 1e-12 && rank_one.singular_values[1] < 1e-12);
        assert!(rank_one.modified_condition > 1e12);
        assert_eq!(Spectrum::of(&[1.0, f32::NAN], 2), None);
        assert_eq!(Spectrum::of(&[f32::INFINITY], 1), None);
    }

    #[test]
    fn condition_numbers_follow_their_definition() {
        // Twelve values: the smallest ⌈12/10⌉ = 2 are 2 and 1.
        let values: Vec<f64> = (1..=12).rev().map(f64::from).collect();
        assert_eq!(modified_condition(&values), 12.0 / 1.5);
        assert_eq!(modified_condition(&[4.0, 2.0]), 2.0);
        assert_eq!(modified_condition(&[1.0, 0.0]), f64::INFINITY);
        assert_eq!(modified_condition(&[0.0, 0.0]), f64::INFINITY);
        assert!((geometric_mean(&[2.0, 8.0]).expect("two values") - 4.0).abs() < 1e-12);
        assert_eq!(geometric_mean(&[]), None);
    }

    #[test]
    fn curves_say_where_the_values_lie() {
        let spectrum = Spectrum::from_singular_values(vec![2.0, 1.0, 0.5, 0.0]);
        let bin = |share: f64| (share * BINS as f64) as usize;
        assert_eq!((spectrum.histogram[0], spectrum.histogram[bin(0.25)], spectrum.histogram[bin(0.5)]), (0.25, 0.25, 0.25));
        assert_eq!(spectrum.histogram[BINS - 1], 0.25);
        assert_eq!((spectrum.cumulative[bin(0.25)], spectrum.cumulative[BINS - 1]), (0.5, 1.0));
        assert_eq!((spectrum.quantiles[0], spectrum.quantiles[100]), (0.0, 1.0));
        assert!((spectrum.quantiles[50] - 0.375).abs() < 1e-12, "half way between 0.25 and 0.5");
        assert!(spectrum.quantiles.is_sorted());
    }

    #[test]
    fn the_bilinear_form_of_singular_vectors_is_the_singular_value() {
        let w = [3.0, 0.0, 0.0, 0.0, 2.0, 0.0];
        assert_eq!(bilinear(&[1.0, 0.0], &w, &[1.0, 0.0, 0.0]), 3.0);
        assert_eq!(bilinear(&[0.0, 1.0], &w, &[0.0, 1.0, 0.0]), 2.0);
        let mixed = bilinear(&[0.5, 0.75], &w, &[0.25, 0.5, 9.0]);
        assert_eq!(mixed, 3.0 * 0.125 + 2.0 * 0.375);
    }
}
