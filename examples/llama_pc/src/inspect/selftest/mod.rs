//! Checks every kernel that an adapter can run against the float64 reference and prints a table for bug reports.

mod check;
mod model;
mod operations;
mod optimizers;
mod spectral;

use std::time::Instant;

use polytape::Gpu;

use crate::model::engine;
use crate::terminal::failure::Failure;
use crate::terminal::output;
use check::Line;

/// The groups of checks, run in this order.
const GROUPS: [fn(&Gpu) -> Vec<Line>; 4] = [operations::lines, spectral::lines, optimizers::lines, model::lines];

/// Prints the table of the device and, if `every_tier`, those of the other kernels that its adapter can run.
pub fn run(gpu: &Gpu, every_tier: bool) -> Result<(), Failure> {
    output::print(&heading(gpu))?;
    let mut count = Count::default();
    count.check(gpu)?;
    if every_tier {
        for kernels in gpu.adapter().kernel_tiers().filter(|kernels| *kernels != gpu.kernels()) {
            count.check(&engine::open_again(gpu, kernels)?)?;
        }
    }
    let Count { failed, total } = count;
    if failed > 0 {
        return Err(Failure::other(format!("{}: {failed} of {total} checks failed, expected none", gpu.adapter().name))
            .hint("please report the whole table; --adapter chooses another adapter, and a newer driver may help"));
    }
    Ok(())
}

#[derive(Default)]
struct Count {
    failed: usize,
    total: usize,
}

impl Count {
    /// Runs all checks on a device and prints its table.
    fn check(&mut self, gpu: &Gpu) -> Result<(), Failure> {
        output::print(&format!("\nkernels  {}\n\n{}", gpu.kernels(), check::HEADING))?;
        let started = Instant::now();
        let (mut failed, mut total) = (0, 0);
        for group in GROUPS {
            for line in group(gpu) {
                total += 1;
                failed += usize::from(!line.passed());
                output::print(&line.to_string())?;
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        output::print(&format!("\n{} of {total} passed in {seconds:.1} s\n", total - failed))?;
        self.failed += failed;
        self.total += total;
        Ok(())
    }
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
