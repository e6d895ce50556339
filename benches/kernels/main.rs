//! `cargo bench --bench kernels [-- FILTER]`: each kernel's rate beside the adapter's limit, both measured in the same run, after
//! its result was checked. The shapes are those of a training step; README and RESULTS.md say how to read the table.

mod attention;
mod dispatch;
mod limit;
mod matmul;
mod memory;
mod model;
mod polynomial;
mod scaling;

use std::time::Instant;

use polytape::gpu::Tuning;
use polytape::{Gpu, GpuOptions, Result};

/// The fastest of several repetitions, each of as many calls as take a tenth of a second: seconds of one call.
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
    let limit = limit::measure(&gpu)?;
    println!("limit: {:.1} GFLOP/s of multiply-adds", limit / 1e9);
    if "matmul".contains(&filter) {
        matmul::run(&gpu, limit)?;
    }
    if "attention".contains(&filter) {
        attention::run(&gpu, limit)?;
    }
    if "memory".contains(&filter) {
        memory::run(&gpu)?;
    }
    if "model".contains(&filter) {
        model::run(&gpu)?;
    }
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
