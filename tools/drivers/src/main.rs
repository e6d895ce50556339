//! Compiles every kernel with a Vulkan driver and tells what came of it: registers, spills, code size, whatever the driver tells.
//! `scripts/drivers` runs it on drivers that need no hardware.

mod arguments;
mod compile;
mod report;
mod table;
mod training;
mod vulkan;

use std::process::ExitCode;

use arguments::{Arguments, Command};
use polytape::gpu::{AdapterSummary, adapters};
use report::{KernelReport, Report, StepReport};

fn main() -> ExitCode {
    match arguments::parse(std::env::args().skip(1)).and_then(run) {
        Ok(is_good) => ExitCode::from(u8::from(!is_good)),
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::from(2)
        }
    }
}

/// Whether all is as it should be.
fn run(command: Command) -> Result<bool, String> {
    match command {
        Command::Help => print_all(arguments::HELP).map(|()| true),
        Command::Table(paths) => {
            let reports = paths.iter().map(|path| read(path)).collect::<Result<Vec<_>, _>>()?;
            let (text, faults) = table::markdown(&reports);
            print_all(&text)?;
            faults.iter().for_each(|fault| eprintln!("fault: {fault}"));
            Ok(faults.is_empty())
        }
        Command::Compile(arguments) => compile_all(&arguments),
        Command::Steps(arguments) => steps(&arguments),
        Command::StepsOf(arguments) => steps_of(&arguments).map(|()| true),
        Command::Worker(arguments) => compile::work(&adapter(&arguments.adapter)?, arguments.all).map(|()| true),
    }
}

fn read(path: &str) -> Result<Report, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    serde_json::from_str(&text).map_err(|error| format!("{path}: {error}"))
}

/// To standard output, whose reader may be gone.
fn print_all(text: &str) -> Result<(), String> {
    use std::io::Write;
    std::io::stdout().write_all(text.as_bytes()).map_err(|error| format!("standard output: {error}"))
}

fn compile_all(arguments: &Arguments) -> Result<bool, String> {
    let adapter = adapter(&arguments.adapter)?;
    let chip = arguments.chip.clone().unwrap_or_else(|| adapter.name.clone());
    eprintln!("{}: {}, {}", chip, adapter.name, adapter.driver);
    let (kernels, left_out) = compile::run(&adapter, arguments.all, arguments.time, tell)?;
    if left_out > 0 {
        eprintln!("{left_out} kernels left out: the time is up");
    }
    let report =
        Report { chip, adapter: adapter.name.clone(), driver: adapter.driver.clone(), kernels, left_out, steps: Vec::new() };
    if let Some(path) = &arguments.out {
        write(path, &report)?;
    }
    let refused = report.kernels.iter().filter(|kernel| kernel.refusal.is_some()).count();
    eprintln!("{} kernels, {refused} refused", report.kernels.len());
    Ok(refused == 0)
}

fn write(path: &str, report: &Report) -> Result<(), String> {
    let text = serde_json::to_string_pretty(report).map_err(|error| error.to_string())?;
    std::fs::write(path, text + "\n").map_err(|error| format!("{path}: {error}"))
}

fn steps(arguments: &Arguments) -> Result<bool, String> {
    let adapter = adapter(&arguments.adapter)?;
    let tiers = adapter.kernel_tiers().filter(|tier| match arguments.tier {
        Some(wanted) => *tier == wanted,
        None => compile::is_given(&adapter, *tier),
    });
    let steps: Vec<Vec<StepReport>> = tiers.map(|tier| training::run(&adapter, tier)).collect::<Result<_, _>>()?;
    let steps = steps.concat();
    let failed = steps.iter().filter(|step| step.problem.is_some()).count();
    eprintln!("{} steps, {failed} failed", steps.len());
    if let Some(path) = &arguments.out {
        let mut report = read(path)?;
        report.steps = steps;
        write(path, &report)?;
    }
    Ok(failed == 0)
}

fn steps_of(arguments: &Arguments) -> Result<(), String> {
    let tier = arguments.tier.ok_or("steps-of: --tier expected")?;
    training::run_from(&adapter(&arguments.adapter)?, tier, arguments.from)
}

/// The adapter that the argument names by index or part of its name, or else the best.
fn adapter(wanted: &Option<String>) -> Result<AdapterSummary, String> {
    let mut found = adapters();
    let names: Vec<String> = found.iter().map(|adapter| format!("{} {}", adapter.index, adapter.name)).collect();
    let at = match wanted {
        None => found.iter().position(|adapter| !adapter.is_software()).or((!found.is_empty()).then_some(0)),
        Some(wanted) => found.iter().position(|adapter| match wanted.parse::<usize>() {
            Ok(index) => adapter.index == index,
            Err(_) => adapter.name.to_lowercase().contains(&wanted.to_lowercase()),
        }),
    };
    at.map(|at| found.swap_remove(at)).ok_or_else(|| format!("found {names:?}, expected {}", wanted.as_deref().unwrap_or("any")))
}

/// A line for a kernel, as soon as it is compiled.
fn tell(kernel: &KernelReport) {
    let constants: Vec<String> = kernel.constants.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let told: Vec<String> = kernel.statistics.iter().map(|(name, value)| format!("{name} {value}")).collect();
    let outcome = kernel.refusal.clone().map_or_else(|| told.join(", "), |problem| format!("REFUSED: {problem}"));
    // A reader that has gone is no reason to stop.
    let _ = print_all(&format!("{} [{}] ({}): {outcome}\n", kernel.kernel, constants.join(" "), kernel.tiers.join(" ")));
}
