//! Values that are the same everywhere and cheap to compute again: a check needs no copy of what was measured.

use polytape::{Gpu, Result, Tensor};

/// Value `at` of the tensor of that seed: uniform, of mean 0 and standard deviation 1.
#[inline]
pub fn value(seed: u32, at: usize) -> f32 {
    let mut x = (at as u32 ^ seed.wrapping_mul(0x9E37_79B9)).wrapping_mul(0x9E37_79B1);
    x = (x ^ (x >> 15)).wrapping_mul(0x85EB_CA77);
    x = (x ^ (x >> 13)).wrapping_mul(0xC2B2_AE3D);
    x ^= x >> 16;
    let unit = (x >> 8) as f32 / (1 << 23) as f32 - 1.0;
    unit * 3f32.sqrt()
}

/// A tensor of such values times `std`.
pub fn tensor(gpu: &Gpu, shape: &[usize], std: f32, seed: u32) -> Result<Tensor> {
    filled(gpu, shape, |at| std * value(seed, at))
}

/// A tensor of values by their place, computed on all cores: a billion of them on one take longer than what is measured.
pub fn filled(gpu: &Gpu, shape: &[usize], value: impl Fn(usize) -> f32 + Sync) -> Result<Tensor> {
    let mut values = vec![0.0; shape.iter().product()];
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let step = values.len().div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        for (part, values) in values.chunks_mut(step).enumerate() {
            let value = &value;
            scope.spawn(move || {
                for (at, target) in values.iter_mut().enumerate() {
                    *target = value(part * step + at);
                }
            });
        }
    });
    Tensor::from_slice(gpu, &values, shape)
}

/// The sum of n products.
pub fn dot(n: usize, product: impl Fn(usize) -> f64) -> f64 {
    (0..n).map(product).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_mean_zero_and_deviation_one() {
        for seed in [1, 2, 77] {
            let values: Vec<f64> = (0..100_000).map(|at| f64::from(value(seed, at))).collect();
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let square = values.iter().map(|value| value * value).sum::<f64>() / values.len() as f64;
            assert!(mean.abs() < 0.02 && (square - 1.0).abs() < 0.02, "{seed}: {mean}, {square}");
            // Neighbours, and the same place of two seeds, are independent.
            let next = dot(values.len() - 1, |at| values[at] * values[at + 1]) / values.len() as f64;
            let other = dot(values.len(), |at| values[at] * f64::from(value(seed + 1, at))) / values.len() as f64;
            assert!(next.abs() < 0.02 && other.abs() < 0.02, "{seed}: {next}, {other}");
        }
    }
}
