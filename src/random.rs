//! Normal random numbers for initialization.

use rand::{Rng, RngExt};

/// A sample from N(0, 1), by the Box–Muller transform.
pub(crate) fn normal(rng: &mut impl Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}

/// `count` samples from N(0, std²), truncated at `limit` standard deviations by rejection.
pub(crate) fn normals(rng: &mut impl Rng, count: usize, std: f64, limit: f64) -> Vec<f32> {
    let draw = |_| {
        loop {
            let value = normal(rng);
            if value.abs() <= limit {
                return (std * value) as f32;
            }
        }
    };
    (0..count).map(draw).collect()
}
