//! How far a float32 result may be from the float64 reference: one table, a reason per entry, and the comparison.
//!
//! Errors are relative to a scale, the larger of |want| and the rms of all wanted elements: an element that cancels to nearly
//! zero has the absolute error of its neighbours, not fewer digits to give. Entries that were measured name the figure, from
//! the same arithmetic in f32 on a CPU with sequential sums; the entry leaves three to six times that.

use crate::Array;

/// Half a unit in the last place, relative: what one correctly rounded f32 operation may lose.
const ROUNDING: f64 = 1.0 / 16_777_216.0; // 2⁻²⁴

#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    pub relative: f64,
    pub reason: &'static str,
}

impl Tolerance {
    const fn of_roundings(count: f64, reason: &'static str) -> Self {
        Self { relative: count * ROUNDING, reason }
    }

    /// For a test that chains several operations: their tolerances add.
    pub fn and(self, other: Self) -> Self {
        Self { relative: self.relative + other.relative, reason: "a chain of operations, each with its own tolerance" }
    }

    /// For a test with an amplification of its own; say why beside the call.
    pub fn times(self, factor: f64) -> Self {
        Self { relative: self.relative * factor, ..self }
    }
}

/// Layout, lookups, relu, masks.
pub const EXACT: Tolerance = Tolerance::of_roundings(0.0, "values are moved, not computed");

/// add, sub, mul, scale, add_row, mul_row, and optimizer updates without a matmul.
pub const ELEMENTWISE: Tolerance =
    Tolerance::of_roundings(16.0, "a few operations; WGSL lets a division be 2.5 ulp off and a square root more");

/// exp, log, tanh, silu, swiglu, gelu and their gradients, for inputs within ±5.
pub const TRANSCENDENTAL: Tolerance = Tolerance::of_roundings(
    48.0,
    "WGSL lets exp be 3 + 2|x| ulp off: 13 ulp at 5, and silu and gelu divide or multiply after it",
);

/// Sums of `terms` numbers: sum, mean, matmul, column sums, gradients of broadcast rows and of embeddings.
pub fn reduction(terms: usize) -> Tolerance {
    let reason = "roundings of a sum add up like a random walk, as √terms; measured 1.5·√terms of them";
    Tolerance::of_roundings(8.0 + 4.0 * (terms as f64).sqrt(), reason)
}

/// softmax and rms_norm over rows of `cols`: a sum, and an exp or a root.
pub fn normalize(cols: usize) -> Tolerance {
    reduction(cols).and(TRANSCENDENTAL)
}

/// Attention with operands rounded to f16.
pub const ATTENTION_F16: Tolerance =
    Tolerance { relative: 2e-2, reason: "operands of 11 bits, of which the gradients of the scores cancel; measured 9e-3" };

/// Forward and gradients. `seq` keys at most.
pub fn attention(seq: usize, head_dim: usize) -> Tolerance {
    // The absolute error of a score is the relative error of its probability, and scores are a few times their rms.
    reduction(head_dim).times(4.0).and(reduction(seq)).and(TRANSCENDENTAL)
}

/// The loss and both gradients: scores over `dim`, a softmax over `vocab`, sums over `rows` in dweight.
pub fn cross_entropy(rows: usize, dim: usize, vocab: usize) -> Tolerance {
    reduction(dim).times(4.0).and(normalize(vocab)).and(reduction(rows))
}

/// W_eff, dW and dγ, with the device's own u and v given to the reference; with a smaller side of `n` and a larger of `long`.
pub fn pc(coefficients: &[f64], n: usize, long: usize) -> Tolerance {
    // The terms a_i·Gⁱ are large and cancel: Σ|a_i| is 40 at level 4, where P(1) is 1. Their errors are independent, hence
    // the root. Measured at level 4: 6.5·√n roundings forward, 8·√n backward.
    let cancellation: f64 = coefficients.iter().map(|a| a.abs()).sum();
    reduction(n).and(reduction(long)).times(cancellation.sqrt())
}

/// u, v and s after ten power iterations from the same start.
pub fn power_iteration(rows: usize, cols: usize) -> Tolerance {
    // Where σ₂ is close to σ₁ an iteration hardly contracts the errors of those before it: all ten count.
    reduction(rows).and(reduction(cols)).times(10.0)
}

/// Small singular values grow by a ≈ 3 to 8 a step, errors with them. Measured after 5 steps: 7 to 23·√n roundings.
pub fn newton_schulz(steps: usize, n: usize, long: usize) -> Tolerance {
    reduction(n).and(reduction(long)).times(2.0 * steps as f64)
}

/// Loss, gradient norm and γ along the golden runs of llama_tiny. Noise of 1e-6 of every gradient's rms and parameters
/// rounded to f32 moved the loss by up to 2e-6 and the norm by 1e-6, without growing over the 20 steps.
pub const TRAINING: Tolerance =
    Tolerance { relative: 2e-5, reason: "20 steps, each with gradients that are off by about 1e-6 of their rms" };

/// Norms of single gradients of the whole model.
pub const GRADIENT_NORM: Tolerance =
    Tolerance { relative: 2e-5, reason: "errors of all layers behind a gradient, averaged over its elements" };

/// dγ = ⟨E, Y⟩ of the whole model.
pub const GAMMA_GRADIENT: Tolerance =
    Tolerance { relative: 1e-3, reason: "a sum over a matrix that cancels to about a hundredth of its terms' norm" };

/// Panics with the worst element unless every |got − want| / max(|want|, rms of want) is within the tolerance.
#[track_caller]
pub fn assert_close(name: &str, got: &[f32], want: &Array, tolerance: Tolerance) {
    assert_eq!(got.len(), want.len(), "{name}: elements, where the reference has shape {:?}", want.shape);
    let Some(worst) = worst_element(got, want) else {
        return;
    };
    let Tolerance { relative, reason } = tolerance;
    assert!(
        worst.error <= relative,
        "{name}: element {:?} of {:?} is {}, should be {}: relative error {:.3e} exceeds {relative:.3e} ({reason})",
        coordinates(worst.index, &want.shape),
        want.shape,
        got[worst.index],
        want.data[worst.index],
        worst.error,
    );
}

/// The largest |got − want| / max(|want|, rms of want); infinite where a value is not a number. 0 of nothing.
pub fn worst_error(got: &[f32], want: &Array) -> f64 {
    worst_element(got, want).map_or(0.0, |worst| worst.error)
}

/// For scalars: a loss, a norm, γ. `scale` is what the error is relative to where it exceeds |want|; 0 if nothing cancels.
/// A sum of N products ⟨a, b⟩, such as dγ, has the scale ‖a‖·‖b‖/√N: what it would be with random signs.
#[track_caller]
pub fn assert_close_scalar(name: &str, got: f32, want: f64, scale: f64, tolerance: Tolerance) {
    let error = (f64::from(got) - want).abs() / want.abs().max(scale);
    let Tolerance { relative, reason } = tolerance;
    // Written so that a NaN fails; 0 for 0 is a NaN and right.
    assert!(
        error <= relative || f64::from(got) == want,
        "{name}: {got}, should be {want}: relative error {error:.3e} exceeds {relative:.3e} ({reason})"
    );
}

struct Worst {
    index: usize,
    error: f64,
}

/// The element with the largest relative error; a NaN or an infinity is the worst there is.
fn worst_element(got: &[f32], want: &Array) -> Option<Worst> {
    let rms = want.norm() / (want.len() as f64).sqrt();
    let errors = got.iter().zip(&want.data).enumerate().map(|(index, (&got, &want))| {
        let difference = (f64::from(got) - want).abs();
        let error = if difference == 0.0 { 0.0 } else { difference / want.abs().max(rms) };
        Worst { index, error: if error.is_nan() { f64::INFINITY } else { error } }
    });
    errors.max_by(|a, b| a.error.total_cmp(&b.error))
}

fn coordinates(mut index: usize, shape: &[usize]) -> Vec<usize> {
    let mut coordinates: Vec<usize> = Vec::new();
    for size in shape.iter().rev() {
        coordinates.insert(0, index % size);
        index /= size;
    }
    coordinates
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::differences::random_arrays;

    #[test]
    fn a_sequential_f32_product_is_within_the_tolerance_and_a_wrong_one_is_not() {
        for k in [4, 64, 1024] {
            let [a, b] = random_arrays(131, [&[12, k], &[k, 12]]);
            let want = a.matmul(&b);
            let (a, bt) = (a.to_f32(), b.transpose().to_f32());
            let dot = |i: usize, j: usize| {
                let pairs = a[i * k..][..k].iter().zip(&bt[j * k..][..k]);
                pairs.fold(0.0, |sum: f32, (a, b)| sum + a * b)
            };
            let mut got: Vec<f32> = (0..144).map(|index| dot(index / 12, index % 12)).collect();
            assert_close("f32 product", &got, &want, reduction(k));
            let scale = want.norm() / 12.0;
            got[77] += (2.0 * reduction(k).relative * scale.max(want.data[77].abs())) as f32;
            assert!(worst_element(&got, &want).is_some_and(|worst| worst.error > reduction(k).relative));
        }
    }

    #[test]
    #[should_panic(expected = "y: element [1, 2] of [2, 3] is NaN, should be 5")]
    fn a_nan_is_reported_with_its_place() {
        let want = Array::from_fn(&[2, 3], |index| index as f64);
        assert_close("y", &[0.0, 1.0, 2.0, 3.0, 4.0, f32::NAN], &want, ELEMENTWISE);
    }

    #[test]
    #[should_panic(expected = "exceeds 0.000e0 (values are moved, not computed)")]
    fn exact_means_exact() {
        assert_close("y", &[1.0, 1.000_000_1], &Array::full(&[2], 1.0), EXACT);
    }

    #[test]
    fn a_scalar_that_cancels_is_held_against_its_terms() {
        assert_close_scalar("dgamma", 1.0e-3, 1.001e-3, 10.0, ELEMENTWISE);
        assert_close_scalar("zero", 0.0, 0.0, 0.0, EXACT);
    }

    #[test]
    #[should_panic(expected = "loss: NaN, should be 2")]
    fn a_nan_is_no_scalar() {
        assert_close_scalar("loss", f32::NAN, 2.0, 0.0, TRAINING);
    }

    #[test]
    #[should_panic(expected = "relative error inf")]
    fn zeros_must_be_zeros() {
        assert_close("y", &[0.0, 1e-9], &Array::zeros(&[2]), ELEMENTWISE);
    }
}
