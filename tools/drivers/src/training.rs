//! Training steps on a driver that executes nothing, each size in a child of this program: shims do not give back all memory, and some crash
//! when there is no more.

use std::process::Stdio;

use polytape::gpu::{AdapterChoice, AdapterSummary, KernelTier};
use polytape::llama::{LlamaConfig, PRESETS};
use polytape::{Error, Gpu, GpuOptions, Precision};
use polytape_drivers::{OPTIMIZERS, Rule, run_step};

use crate::compile::own_command;
use crate::report::StepReport;

/// One step of every published size that fits.
pub fn run(adapter: &AdapterSummary, tier: KernelTier) -> Result<Vec<StepReport>, String> {
    let mut steps = Vec::new();
    for (size, ..) in PRESETS {
        let mut command = own_command()?;
        let place = adapter.index.to_string();
        command.args(["steps-of", "--adapter", &place, "--tier", &tier.to_string(), "--size", size]);
        let child = command.stdout(Stdio::piped()).output().map_err(|error| format!("a child of this program: {error}"))?;
        let answers: Vec<Answer> =
            String::from_utf8_lossy(&child.stdout).lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        // What happens while it ends is of no interest.
        let is_over = answers.iter().any(|answer| !matches!(answer, Answer::Step(StepReport { problem: None, .. })));
        let is_whole = is_over || matches!(answers.last(), Some(Answer::Step(_))) && answers.len() == count();
        steps.extend(answers.into_iter().filter_map(|answer| match answer {
            Answer::Step(step) => Some(step),
            Answer::NoMemory => None,
        }));
        if !is_whole {
            let problem = Some(format!("the driver crashed: {}", child.status));
            steps.push(StepReport { name: format!("{tier} kernels, {size}"), problem });
        }
        if is_over || !is_whole {
            break; // nor do the sizes after it fit
        }
    }
    Ok(steps)
}

/// What a child tells of a step, a line each.
#[derive(serde::Serialize, serde::Deserialize)]
enum Answer {
    Step(StepReport),
    NoMemory,
}

/// AdamW at every precision and the other optimizers in f32.
fn rules() -> impl Iterator<Item = (Rule, Precision)> {
    OPTIMIZERS.into_iter().flat_map(|rule| {
        let precisions: &[Precision] = if rule.0 == "adamw" { &Precision::ALL } else { &[Precision::F32] };
        precisions.iter().map(move |precision| (rule, *precision))
    })
}

/// Steps of a size.
fn count() -> usize {
    rules().count()
}

/// What a child does: the steps of one size, until one does not fit or fails.
pub fn run_size(adapter: &AdapterSummary, tier: KernelTier, size: &str) -> Result<(), String> {
    let gpu = open(adapter, tier).map_err(|error| error.to_string())?;
    for (rule, precision) in rules() {
        let name = format!("{tier} kernels, {size}, {}, {precision}", rule.0);
        let answer = match step(&gpu, size, rule, precision) {
            Ok(()) => Answer::Step(StepReport { name: name.clone(), problem: None }),
            Err(Error::OutOfMemory { .. }) => Answer::NoMemory,
            Err(error) => Answer::Step(StepReport { name: name.clone(), problem: Some(error.to_string()) }),
        };
        let outcome = match &answer {
            Answer::NoMemory => "does not fit the memory",
            Answer::Step(step) => step.problem.as_deref().unwrap_or("ok"),
        };
        eprintln!("{name}: {outcome}");
        crate::print_all(&(serde_json::to_string(&answer).map_err(|error| error.to_string())? + "\n"))?;
        if !matches!(answer, Answer::Step(StepReport { problem: None, .. })) {
            break;
        }
    }
    Ok(())
}

fn step(gpu: &Gpu, size: &str, (_, rule): Rule, precision: Precision) -> polytape::Result<()> {
    run_step(gpu, LlamaConfig::preset(size)?, rule(), precision)
}

/// Bytes that a shim's device surely has. All have 4 GiB, of which drivers need some for themselves, Honeykrisp more than others.
fn shim_memory(adapter: &AdapterSummary) -> u64 {
    let most = if adapter.driver.starts_with("Honeykrisp") { 2 << 30 } else { 3 << 30 };
    adapter.memory_budget().map_or(most, |budget| budget.min(most))
}

fn open(adapter: &AdapterSummary, tier: KernelTier) -> polytape::Result<Gpu> {
    Gpu::open(&GpuOptions {
        adapter: AdapterChoice::Index(adapter.index),
        kernels: Some(tier),
        // Drivers that execute nothing give no right results.
        skip_self_test: true,
        memory_budget: Some(shim_memory(adapter)),
        warn: |_| (),
        ..Default::default()
    })
}
