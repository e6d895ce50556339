//! What a driver says of every kernel, as it is kept in a file.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use polytape::gpu::{AdapterSummary, KernelTier, KernelVariant};
use polytape_drivers::translate::Parsed;
use serde::{Deserialize, Serialize};

use crate::vulkan::{Device, Statistic};

/// A chip and its driver.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// The chip, as its table names it.
    pub chip: String,
    /// The adapter's name.
    pub adapter: String,
    /// The driver and its version.
    pub driver: String,
    /// Each distinct kernel.
    pub kernels: Vec<KernelReport>,
    /// Kernels that the time did not suffice for.
    pub left_out: usize,
    /// Training steps, with what became of them.
    pub steps: Vec<StepReport>,
}

/// A kernel on a chip.
#[derive(Debug, Serialize, Deserialize)]
pub struct KernelReport {
    /// Its name.
    pub kernel: String,
    /// Its constants.
    pub constants: Vec<(String, u32)>,
    /// The tiers that have it.
    pub tiers: Vec<String>,
    /// Whether a training step or sampling of a published size runs it.
    pub is_in_step: bool,
    /// Bytes of workgroup memory.
    pub shared_bytes: u32,
    /// The driver's numbers.
    pub statistics: Vec<Statistic>,
    /// Why the driver did not compile it.
    pub refusal: Option<String>,
}

/// A training step that was run, on a device that may execute nothing.
#[derive(Debug, Serialize, Deserialize)]
pub struct StepReport {
    /// Kernels, size, optimizer and precision.
    pub name: String,
    /// Why it failed.
    pub problem: Option<String>,
}

/// A kernel to compile.
struct Job {
    variant: KernelVariant,
    tiers: Vec<KernelTier>,
    is_in_step: bool,
}

/// The kernels of an adapter's tiers, with each distinct text once: those of steps, and `with_all` all others, too.
fn jobs(adapter: &AdapterSummary, tiers: &[KernelTier], with_all: bool) -> polytape::Result<Vec<Job>> {
    let mut jobs: BTreeMap<String, Job> = BTreeMap::new();
    let mut collect = |tier: KernelTier, variants: Vec<KernelVariant>, is_in_step: bool| -> polytape::Result<()> {
        for variant in variants {
            let text = format!("{} {:?} {}", variant.entry, variant.bindings, variant.text()?);
            let job = jobs.entry(text).or_insert_with(|| Job { variant, tiers: Vec::new(), is_in_step });
            if !job.tiers.contains(&tier) {
                job.tiers.push(tier);
            }
        }
        Ok(())
    };
    for &tier in tiers {
        collect(tier, polytape_drivers::step_variants(adapter, tier)?.into_iter().collect(), true)?;
    }
    for &tier in tiers.iter().filter(|_| with_all) {
        collect(tier, polytape_drivers::all_variants(adapter, tier)?.into_iter().collect(), false)?;
    }
    let mut jobs: Vec<Job> = jobs.into_values().collect();
    jobs.sort_by(|a, b| (!a.is_in_step, &a.variant).cmp(&(!b.is_in_step, &b.variant)));
    Ok(jobs)
}

/// Compiles the kernels of these tiers on all cores, and stops when the time is up.
pub fn compile(
    adapter: &AdapterSummary,
    tiers: &[KernelTier],
    with_all: bool,
    time: Duration,
    told: impl Fn(&KernelReport) + Sync,
) -> Result<(Vec<KernelReport>, usize), String> {
    let started = Instant::now();
    let jobs = jobs(adapter, tiers, with_all).map_err(|error| error.to_string())?;
    let device = Device::open(adapter)?;
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while started.elapsed() < time {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(job) = jobs.get(at) else { return };
            let report = compile_one(&device, job);
            told(&report);
            done.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push((at, report));
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let mut done = done.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    done.sort_by_key(|(at, _)| *at);
    let left_out = jobs.len() - done.len();
    Ok((done.into_iter().map(|(_, report)| report).collect(), left_out))
}

fn compile_one(device: &Device, job: &Job) -> KernelReport {
    let mut report = KernelReport {
        kernel: job.variant.kernel.into(),
        constants: job.variant.constants.iter().map(|(name, value)| ((*name).into(), *value)).collect(),
        tiers: job.tiers.iter().map(ToString::to_string).collect(),
        is_in_step: job.is_in_step,
        shared_bytes: 0,
        statistics: Vec::new(),
        refusal: None,
    };
    let compiled = Parsed::new(&job.variant).and_then(|parsed| {
        report.shared_bytes = parsed.shared_bytes();
        device.compile(&job.variant, &parsed)
    });
    match compiled {
        Ok(statistics) => report.statistics = statistics,
        Err(problem) => report.refusal = Some(problem),
    }
    report
}
