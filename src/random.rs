//! Normally distributed numbers for initial values.

use rand::{Rng, RngExt};

/// One draw from N(0, 1), by Box and Muller.
pub(crate) fn normal(rng: &mut impl Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}

/// `count` draws from N(0, std²), redrawn while beyond `cut` deviations.
pub(crate) fn normals(rng: &mut impl Rng, count: usize, std: f64, cut: f64) -> Vec<f32> {
    let draw = |_| {
        loop {
            let value = normal(rng);
            if value.abs() <= cut {
                return (std * value) as f32;
            }
        }
    };
    (0..count).map(draw).collect()
}
