//! `cargo bench --bench kernels [-- FILTER]`: what only matters to the engine's development: attention kernel by kernel, PC layers against the
//! published way, the host's share of a dispatch, how steps scale, and with `steps` a step's dispatches. Products, memory and whole steps: `llama_pc bench`. See RESULTS.md.

mod attention;
mod dispatch;
mod polynomial;
mod scaling;
mod steps;

use std::time::Instant;

use polytape::gpu::{Peak, Tuning, Unit};
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

/// Device time of one kernel's dispatches, best of several runs.
fn device_seconds(gpu: &Gpu, kernel: &str, run: impl Fn() -> Result<()>) -> Result<f64> {
    let so_far = || Ok(gpu.profile()?.kernels.get(kernel).map_or(0.0, |time| time.seconds));
    (0..7).try_fold(f64::INFINITY, |best: f64, _| {
        let before = so_far()?;
        run()?;
        Ok(best.min(so_far()? - before))
    })
}

/// FLOP/s of multiply-adds.
fn peak(gpu: &Gpu) -> Result<f64> {
    let peak = Peak::new(gpu, Unit::MultiplyAdd)?;
    let rate = peak.operations() / fastest(gpu, || peak.run())?;
    println!("peak: {:.1} GFLOP/s of multiply-adds", rate / 1e9);
    Ok(rate)
}

fn main() -> Result<()> {
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    if filter == "steps" {
        return steps::run();
    }
    let gpu = Gpu::open(&GpuOptions { tuning: Tuning::Process, ..Default::default() })?;
    let adapter = gpu.adapter();
    println!("{}, {}, {} kernels", adapter.name, adapter.driver, gpu.kernels());
    if "attention passes".contains(&filter) {
        let peak = peak(&gpu)?;
        attention::passes(&gpu, peak)?;
        attention::run(&gpu, peak)?;
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
