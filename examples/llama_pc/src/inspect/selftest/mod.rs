//! Checks every kernel that an adapter can run against the float64 reference and prints a table for bug reports.

mod check;
mod model;
mod operations;
mod optimizers;
mod spectral;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Instant;

use polytape::Gpu;
use polytape::gpu::KernelTier;

use crate::model::engine;
use crate::terminal::failure::Failure;
use crate::terminal::format::duration;
use crate::terminal::output;
use crate::terminal::progress::Progress;
use check::{Check, Line};

/// Prints the table of the device and, if `every_tier`, those of the other kernels that suit its adapter.
pub fn run(gpu: &Gpu, every_tier: bool) -> Result<(), Failure> {
    let started = Instant::now();
    output::print(&heading(gpu))?;
    let others = gpu.adapter().kernel_tiers().filter(|kernels| every_tier && *kernels != gpu.kernels());
    let (others, foreign): (Vec<_>, Vec<_>) = others.partition(|kernels| suits(gpu, *kernels));
    let mut count = Count::default();
    count.check(gpu)?;
    for kernels in others {
        count.check(&engine::open_again(gpu, kernels)?)?;
    }
    let Count { failed, total } = count;
    let seconds = started.elapsed().as_secs_f64();
    output::print(&format!("\ntotal: {} of {total} passed in {}\n", total - failed, duration(seconds)))?;
    for kernels in foreign {
        let kind = if gpu.adapter().is_software() { "GPUs" } else { "software adapters" };
        output::note(&format!(
            "note: the {kernels} kernels are for {kind} and were not checked; --kernels {kernels} checks them"
        ));
    }
    if failed > 0 {
        return Err(Failure::other(format!("{}: {failed} of {total} checks failed, expected none", gpu.adapter().name))
            .hint("please report the whole table; --adapter chooses another adapter, and a newer driver may help"));
    }
    Ok(())
}

/// Whether kernels are meant for an adapter of this kind. The compilers of GPUs take minutes for the kernels of software adapters, and
/// the other way round.
fn suits(gpu: &Gpu, kernels: KernelTier) -> bool {
    match kernels {
        KernelTier::Host | KernelTier::Fallback => gpu.adapter().is_software(),
        KernelTier::Portable | KernelTier::Subgroup | KernelTier::Matrix => !gpu.adapter().is_software(),
    }
}

#[derive(Default)]
struct Count {
    failed: usize,
    total: usize,
}

impl Count {
    /// Runs all checks on a device and prints its table, each line as soon as it and those before it are known.
    fn check(&mut self, gpu: &Gpu) -> Result<(), Failure> {
        output::print(&format!("\nkernels  {}\n\n{}", gpu.kernels(), check::HEADING))?;
        let started = Instant::now();
        let groups = [operations::checks(gpu.kernels()), spectral::checks(), optimizers::checks(), model::checks()];
        let checks: Vec<Check> = groups.into_iter().flatten().collect();
        let devices = devices(gpu)?;
        let mut progress = Progress::new("selftest", 0, checks.len() as u64);
        let (mut failed, mut next) = (0, 0);
        std::thread::scope(|scope| -> Result<(), Failure> {
            let mut early = BTreeMap::new();
            for (at, line) in run_all(scope, &devices, &checks) {
                early.insert(at, line);
                while let Some(line) = early.remove(&next) {
                    next += 1;
                    failed += usize::from(!line.passed());
                    progress.above(|| output::print(&line.to_string()))?;
                }
                progress.set((next + early.len()) as u64, "");
            }
            Ok(())
        })?;
        progress.finish();
        let total = checks.len();
        let seconds = started.elapsed().as_secs_f64();
        output::print(&format!("\n{} of {total} passed in {seconds:.1} s\n", total - failed))?;
        self.failed += failed;
        self.total += total;
        Ok(())
    }
}

/// A device for each thread that checks. Kernels compile in the thread that launches them: on a GPU all threads have one device. A
/// software adapter compiles in a device's queue, so that each thread has a device of its own.
fn devices(gpu: &Gpu) -> Result<Vec<Gpu>, Failure> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if gpu.kernels() == KernelTier::Host {
        return Ok(vec![gpu.clone()]); // compiles nothing, and is as many threads itself
    }
    let first = engine::open_again(gpu, gpu.kernels())?;
    let other = |_| if gpu.adapter().is_software() { engine::open_again(gpu, gpu.kernels()) } else { Ok(first.clone()) };
    let others = (1..cores).map(other).collect::<Result<Vec<_>, _>>()?;
    Ok(std::iter::once(first.clone()).chain(others).collect())
}

/// The lines as they come, with their places. Every other device of several begins at the end: neighbours share kernels, which each
/// device compiles for itself.
fn run_all<'scope, 'env: 'scope>(
    scope: &'scope std::thread::Scope<'scope, 'env>,
    devices: &'env [Gpu],
    checks: &'env [Check],
) -> mpsc::Receiver<(usize, Line)> {
    let (sender, lines) = mpsc::channel();
    let left = Arc::new(Mutex::new(checks.iter().enumerate()));
    for (thread, gpu) in devices.iter().enumerate() {
        let (sender, left) = (sender.clone(), left.clone());
        let from_the_end = gpu.adapter().is_software() && thread % 2 == 1;
        let next = move || {
            let mut left = left.lock().unwrap_or_else(PoisonError::into_inner);
            if from_the_end { left.next_back() } else { left.next() }
        };
        scope.spawn(move || {
            while let Some((at, check)) = next() {
                if sender.send((at, check.run(gpu))).is_err() {
                    break; // nobody prints any more
                }
            }
        });
    }
    lines
}

fn heading(gpu: &Gpu) -> String {
    let adapter = gpu.adapter();
    format!(
        "llama_pc {} selftest\nadapter  {} ({:?}, {:?})\ndriver   {}\nsystem   {} {}\n",
        env!("CARGO_PKG_VERSION"),
        adapter.name,
        adapter.kind,
        adapter.backend,
        adapter.driver,
        std::env::consts::OS,
        std::env::consts::ARCH,
    )
}
