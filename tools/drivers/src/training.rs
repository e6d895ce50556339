//! Training steps on a driver that executes nothing, in children of this program: shims do not give back all memory, and crash when there is
//! no more.

use std::process::Stdio;

use polytape::gpu::{AdapterChoice, AdapterSummary, KernelTier};
use polytape::llama::{LlamaConfig, PRESETS};
use polytape::optim::{Constructor, OPTIMIZERS};
use polytape::{Error, Gpu, GpuOptions, Precision};
use polytape_drivers::run_step;

use crate::compile::own_command;
use crate::report::StepReport;

/// An optimizer by name.
type Rule = (&'static str, Constructor);

/// What a child tells of a step, a line each.
#[derive(serde::Serialize, serde::Deserialize)]
enum Answer {
    Step(StepReport),
    NoMemory,
}

/// Every published size, the smallest first, with AdamW at every precision and the other optimizers in f32.
fn all() -> Vec<(&'static str, Rule, Precision)> {
    let rules = OPTIMIZERS.into_iter().flat_map(|rule| {
        let precisions: &[Precision] = if rule.0 == "adamw" { &Precision::ALL } else { &[Precision::F32] };
        precisions.iter().map(move |precision| (rule, *precision))
    });
    PRESETS.iter().flat_map(|(size, ..)| rules.clone().map(|(rule, precision)| (*size, rule, precision))).collect()
}

/// One step of each that fits. A step that fails is taken again by a new child, unless it was the first of its own.
pub fn run(adapter: &AdapterSummary, tier: KernelTier) -> Result<Vec<StepReport>, String> {
    let mut steps: Vec<StepReport> = Vec::new();
    let count = all().len();
    while steps.len() < count {
        let mut command = own_command()?;
        let numbers = [adapter.index, steps.len()].map(|number| number.to_string());
        command.args(["steps-of", "--adapter", &numbers[0], "--tier", &tier.to_string(), "--from", &numbers[1]]);
        let child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .output()
            .map_err(|error| format!("a child of this program: {error}"))?;
        let before = steps.len();
        let mut failed = None;
        for line in String::from_utf8_lossy(&child.stdout).lines() {
            match serde_json::from_str(line).map_err(|error| format!("a child's answer: {error}"))? {
                Answer::NoMemory => return Ok(steps), // nor do the sizes after it fit
                Answer::Step(step) if step.problem.is_some() => failed = Some(step),
                Answer::Step(step) => steps.push(step),
            }
        }
        if steps.len() == before {
            let crashed =
                || StepReport { name: name(tier, before), problem: Some(format!("the driver crashed: {}", child.status)) };
            steps.push(failed.unwrap_or_else(crashed));
            break;
        }
    }
    Ok(steps)
}

fn name(tier: KernelTier, number: usize) -> String {
    let (size, (optimizer, _), precision) = all()[number];
    format!("{tier} kernels, {size}, {optimizer}, {precision}")
}

/// What a child does: the steps from this number on, until one does not fit or fails.
pub fn run_from(adapter: &AdapterSummary, tier: KernelTier, first: usize) -> Result<(), String> {
    let gpu = open(adapter, tier).map_err(|error| error.to_string())?;
    for (number, (size, rule, precision)) in all().into_iter().enumerate().skip(first) {
        let report = |problem| Answer::Step(StepReport { name: name(tier, number), problem });
        let (answer, outcome) = match step(&gpu, size, rule, precision) {
            Ok(()) => (report(None), "ok".to_owned()),
            Err(Error::OutOfMemory { .. }) => (Answer::NoMemory, "does not fit the memory".to_owned()),
            Err(error) => (report(Some(error.to_string())), error.to_string()),
        };
        eprintln!("{}: {outcome}", name(tier, number));
        crate::print_all(&(serde_json::to_string(&answer).map_err(|error| error.to_string())? + "\n"))?;
        if outcome != "ok" {
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
        // The shims do not bear several threads.
        compile_ahead: false,
        memory_budget: Some(shim_memory(adapter)),
        warn: |_| (),
        ..Default::default()
    })
}
