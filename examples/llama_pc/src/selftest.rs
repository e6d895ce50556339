//! `selftest`: every kernel of an adapter against the float64 reference, as a table to be pasted into a bug report.

mod check;
mod model;
mod operations;
mod optimizers;
mod spectral;

use std::time::Instant;

use polytape::Gpu;
use polytape::gpu::Profile;

use crate::cli;
use crate::engine;
use crate::failure::Failure;
use crate::output;
use check::Line;

/// The groups of checks, run in this order.
const GROUPS: [fn(&Gpu) -> Vec<Line>; 4] = [operations::lines, spectral::lines, optimizers::lines, model::lines];

/// Runs the command.
pub fn run(args: &cli::Selftest) -> Result<(), Failure> {
    let kernels = args.kernels.as_deref().map(str::parse::<Profile>).transpose();
    let kernels = kernels.map_err(|error| Failure::usage(format!("--kernels: {error}")))?;
    let gpu = engine::open_with(args.device.adapter.as_deref(), kernels)?;
    output::print(&heading(&gpu))?;
    let started = Instant::now();
    let (mut failed, mut total) = (0, 0);
    for group in GROUPS {
        for line in group(&gpu) {
            total += 1;
            failed += usize::from(!line.passed());
            output::print(&line.to_string())?;
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    output::print(&format!("\n{} of {total} passed in {seconds:.1} s\n", total - failed))?;
    if failed > 0 {
        return Err(Failure::other(format!("{}: {failed} of {total} checks failed, expected none", gpu.adapter().name))
            .hint("please report the whole table; --adapter chooses another adapter, and a newer driver may help"));
    }
    Ok(())
}

fn heading(gpu: &Gpu) -> String {
    let adapter = gpu.adapter();
    format!(
        "llama_pc {} selftest\nadapter  {} ({:?}, {:?})\ndriver   {}\nkernels  {}\nsystem   {} {}\n\n{}",
        env!("CARGO_PKG_VERSION"),
        adapter.name,
        adapter.kind,
        adapter.backend,
        adapter.driver,
        gpu.kernels(),
        std::env::consts::OS,
        std::env::consts::ARCH,
        check::HEADING,
    )
}
