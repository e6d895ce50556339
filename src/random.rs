//! Normal random numbers for initialization.

use std::sync::{Mutex, PoisonError};

use rand::rngs::ChaCha12Rng;
use rand::{Rng, RngExt, SeedableRng};

/// Words of the generator that a sample takes.
const WORDS: u128 = 4;
/// Minimum samples per thread.
const PER_THREAD: usize = 1 << 16;

/// A sample from N(0, 1), by the Box–Muller transform.
pub(crate) fn normal(rng: &mut impl Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}

/// `count` samples from N(0, std²), truncated at `limit` standard deviations by rejection.
pub(crate) fn normals(rng: &mut ChaCha12Rng, count: usize, std: f64, limit: f64) -> Vec<f32> {
    if limit == f64::INFINITY {
        return on_all_cores(rng, count, std);
    }
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

/// The samples in their order, whatever the number of cores: the generator can seek.
fn on_all_cores(rng: &mut ChaCha12Rng, count: usize, std: f64) -> Vec<f32> {
    let mut values = vec![0.0; count];
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (seed, start, step) = (rng.get_seed(), rng.get_word_pos(), count.div_ceil(cores).max(PER_THREAD));
    let parts = Mutex::new(values.chunks_mut(step).enumerate());
    let work = || {
        loop {
            let next = parts.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((at, part)) = next else { return };
            let mut rng = ChaCha12Rng::from_seed(seed);
            rng.set_word_pos(start + WORDS * (at * step) as u128);
            part.iter_mut().for_each(|value| *value = (std * normal(&mut rng)) as f32);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..count.div_ceil(step) {
            // If the system has no thread left, this one does the work.
            let _ = std::thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
    rng.set_word_pos(start + WORDS * count as u128);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_draw_what_one_draws() {
        for count in [0, 1, 1000, 2 * PER_THREAD + 37] {
            let mut rngs = [7, 7].map(ChaCha12Rng::seed_from_u64);
            let _ = rngs.each_mut().map(normal); // not from the start
            let found = normals(&mut rngs[0], count, 0.5, f64::INFINITY);
            let want: Vec<f32> = (0..count).map(|_| (0.5 * normal(&mut rngs[1])) as f32).collect();
            assert_eq!(found, want);
            assert_eq!(rngs[0], rngs[1]);
        }
    }

    #[test]
    fn truncated_samples_are_within_their_limit() {
        let values = normals(&mut ChaCha12Rng::seed_from_u64(3), 10_000, 2.0, 1.5);
        assert!(values.iter().all(|value| value.abs() <= 3.0));
    }
}
