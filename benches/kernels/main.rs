//! `cargo bench --bench kernels [-- FILTER]`: what only matters to the engine's development: PC layers against the published way, the
//! host's share of a dispatch, and how steps scale. Products, attention, memory and steps: `llama_pc bench`. See RESULTS.md.

mod dispatch;
mod polynomial;
mod scaling;

use std::time::Instant;

use polytape::gpu::Tuning;
use polytape::{Gpu, GpuOptions, Result};

/// Seconds per call: the best of five repetitions of about 0.1 s each.
fn fastest(gpu: &Gpu, mut call: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut timed = |calls: usize| -> Result<f64> {
        let start = Instant::now();
        for _ in 0..calls {
            call()?;
        }
        gpu.synchronize()?;
        Ok(start.elapsed().as_secs_f64() / calls as f64)
    };
    timed(1)?; // compiles
    let calls = (0.1 / timed(1)?).clamp(1.0, 1000.0) as usize;
    (0..5).map(|_| timed(calls)).try_fold(f64::INFINITY, |best, time| Ok(best.min(time?)))
}

fn main() -> Result<()> {
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let gpu = Gpu::open(&GpuOptions { tuning: Tuning::Process, ..Default::default() })?;
    let adapter = gpu.adapter();
    println!("{}, {}, {} kernels", adapter.name, adapter.driver, gpu.kernels());
    if "polynomial".contains(&filter) {
        polynomial::run(&gpu)?;
    }
    if "dispatch".contains(&filter) {
        dispatch::run(&gpu)?;
    }
    if "scaling".contains(&filter) {
        scaling::run(&gpu)?;
    }
    Ok(())
}
