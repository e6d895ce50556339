//! Central finite differences: what every hand-derived gradient is held against.

use super::array::{Array, seeded};

/// The largest |got − want| / max(|want|, rms of want): an error relative to the scale of the array, so that elements which
/// cancel to nearly zero are not asked for digits they never had.
pub fn relative_error(got: &Array, want: &Array) -> f64 {
    assert_eq!(got.shape, want.shape);
    let rms = want.norm() / (want.len() as f64).sqrt();
    let scale = |want: f64| want.abs().max(rms).max(f64::MIN_POSITIVE);
    let errors = got.data.iter().zip(&want.data).map(|(g, w)| (g - w).abs() / scale(*w));
    // Not f64::max: it would drop a NaN.
    errors.fold(0.0, |worst, error| if error <= worst { worst } else { error })
}

pub fn assert_near(name: &str, got: &Array, want: &Array, tolerance: f64) {
    let error = relative_error(got, want);
    assert!(error <= tolerance, "{name}: relative error {error:e} exceeds {tolerance:e}");
}

/// The gradient of ⟨dy, forward(inputs)⟩ in every coordinate of `inputs[which]`.
pub fn numerical_gradient(inputs: &[Array], which: usize, dy: &Array, forward: impl Fn(&[Array]) -> Array) -> Array {
    let step = 1e-5; // truncation h²·f''' and cancellation 2⁻⁵³/h are both near 1e-10
    Array::from_fn(&inputs[which].shape, |index| {
        let moved = |by: f64| {
            let mut inputs = inputs.to_vec();
            inputs[which].data[index] += by;
            forward(&inputs).dot(dy)
        };
        (moved(step) - moved(-step)) / (2.0 * step)
    })
}

/// Draws a random dy and holds every gradient of `vjp` against finite differences of `forward`, in all coordinates.
pub fn check_vjp<const N: usize>(
    name: &str,
    inputs: [Array; N],
    forward: impl Fn(&[Array]) -> Array,
    vjp: impl Fn(&[Array], &Array) -> [Array; N],
) {
    let dy = Array::random(&forward(&inputs).shape, &mut seeded(977));
    for (which, got) in vjp(&inputs, &dy).iter().enumerate() {
        let want = numerical_gradient(&inputs, which, &dy, &forward);
        assert_near(&format!("{name}, gradient {which}"), got, &want, 1e-6);
    }
}

/// Random arrays of the given shapes.
pub fn random_arrays<const N: usize>(seed: u64, shapes: [&[usize]; N]) -> [Array; N] {
    let mut rng = seeded(seed);
    shapes.map(|shape| Array::random(shape, &mut rng))
}
