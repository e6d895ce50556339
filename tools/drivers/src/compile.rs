//! The kernels of an adapter, compiled by children of this program, one per core: a driver that crashes takes only its child along.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use polytape::gpu::{AdapterSummary, KernelTier, KernelVariant};
use polytape_drivers::translate::Parsed;
use polytape_drivers::{all_variants, step_variants};

use crate::report::KernelReport;
use crate::vulkan::Device;

/// A kernel to compile.
struct Job {
    variant: KernelVariant,
    tiers: Vec<KernelTier>,
    is_in_step: bool,
}

impl Job {
    fn report(&self) -> KernelReport {
        KernelReport {
            kernel: self.variant.kernel.into(),
            constants: self.variant.constants.iter().map(|(name, value)| ((*name).into(), *value)).collect(),
            tiers: self.tiers.iter().map(ToString::to_string).collect(),
            is_in_step: self.is_in_step,
            shared_bytes: 0,
            statistics: Vec::new(),
            refusal: None,
        }
    }

    fn compile(&self, device: &Device) -> KernelReport {
        let mut report = self.report();
        let compiled = Parsed::new(&self.variant).and_then(|parsed| {
            report.shared_bytes = parsed.shared_bytes();
            device.compile(&self.variant, &parsed)
        });
        match compiled {
            Ok(statistics) => report.statistics = statistics,
            Err(problem) => report.refusal = Some(problem),
        }
        report
    }
}

/// Whether an adapter that can run the tier's kernels is given them, and a driver compiles them.
pub fn is_given(adapter: &AdapterSummary, tier: KernelTier) -> bool {
    match tier {
        KernelTier::Host => false,
        KernelTier::Fallback => adapter.is_software(),
        KernelTier::Portable | KernelTier::Subgroup | KernelTier::Matrix => true,
    }
}

/// The kernels of steps in the tiers that the adapter is given, or `with_all` every kernel of every tier; each distinct text once, and
/// always in the same order.
fn jobs(adapter: &AdapterSummary, with_all: bool) -> polytape::Result<Vec<Job>> {
    let is_compiled = |tier: &KernelTier| (with_all && *tier != KernelTier::Host) || is_given(adapter, *tier);
    let mut jobs: BTreeMap<String, Job> = BTreeMap::new();
    for tier in adapter.kernel_tiers().filter(is_compiled) {
        let steps = step_variants(adapter, tier)?;
        let all = if with_all { all_variants(adapter, tier)? } else { steps.clone() };
        for variant in all {
            let text = format!("{} {:?} {}", variant.entry, variant.bindings, variant.text()?);
            let is_in_step = steps.contains(&variant);
            let job = jobs.entry(text).or_insert_with(|| Job { variant, tiers: Vec::new(), is_in_step });
            job.tiers.push(tier);
            job.is_in_step |= is_in_step;
        }
    }
    let mut jobs: Vec<Job> = jobs.into_values().collect();
    jobs.sort_by(|a, b| (!a.is_in_step, &a.variant).cmp(&(!b.is_in_step, &b.variant)));
    Ok(jobs)
}

/// Compiles on all cores, tells of each kernel as soon as it is done, and begins no more when the time is up: the reports, and the number
/// of kernels that were left out.
pub fn run(
    adapter: &AdapterSummary,
    with_all: bool,
    time: Duration,
    told: impl Fn(&KernelReport) + Sync,
) -> Result<(Vec<KernelReport>, usize), String> {
    let started = Instant::now();
    let jobs = jobs(adapter, with_all).map_err(|error| error.to_string())?;
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || -> Result<(), String> {
        let mut worker = None;
        while started.elapsed() < time {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(job) = jobs.get(at) else { break };
            let own = match &mut worker {
                Some(own) => own,
                None => worker.insert(Worker::start(adapter, with_all)?),
            };
            let report = own.compile(at).unwrap_or_else(|problem| {
                worker = None;
                KernelReport { refusal: Some(problem), ..job.report() }
            });
            told(&report);
            done.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push((at, report));
        }
        Ok(())
    };
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|_| Err("bug: a thread panicked".into())))
    })?;
    let mut done = done.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    done.sort_by_key(|(at, _)| *at);
    let left_out = jobs.len() - done.len();
    Ok((done.into_iter().map(|(_, report)| report).collect(), left_out))
}

/// A child that compiles.
struct Worker {
    process: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Worker {
    fn start(adapter: &AdapterSummary, with_all: bool) -> Result<Self, String> {
        let mut command = own_command()?;
        command.args(["worker", "--adapter", &adapter.index.to_string()]);
        if with_all {
            command.arg("--all");
        }
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut process = spawned.map_err(|error| format!("a child of this program: {error}"))?;
        match (process.stdin.take(), process.stdout.take()) {
            (Some(questions), Some(answers)) => Ok(Self { process, questions, answers: BufReader::new(answers) }),
            _ => Err("bug: a child without pipes".into()),
        }
    }

    /// Has it compile the kernel at this place of the list; an error if it dies of that.
    fn compile(&mut self, at: usize) -> Result<KernelReport, String> {
        let mut line = String::new();
        let asked = writeln!(self.questions, "{at}").and_then(|()| self.questions.flush());
        match asked.and_then(|()| self.answers.read_line(&mut line)) {
            Ok(1..) => serde_json::from_str(&line).map_err(|error| format!("a child's answer: {error}")),
            _ => {
                Err(self.process.wait().map_or_else(|error| error.to_string(), |status| format!("the driver crashed: {status}")))
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It ends when its questions do; one that answered amiss may not.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// This program, started as it was itself: other drivers come with a loader of their own, whose words stand before the program's.
pub fn own_command() -> Result<Command, String> {
    let own = std::env::args_os().count();
    let words = std::fs::read("/proc/self/cmdline").unwrap_or_default();
    let words: Vec<String> = words.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    // The last word ends with a zero byte, too.
    match words.len().checked_sub(own + 1) {
        Some(loaders @ 1..) => {
            let mut command = Command::new(&words[0]);
            command.args(&words[1..=loaders]);
            Ok(command)
        }
        _ => Ok(Command::new(std::env::current_exe().map_err(|error| format!("this program's path: {error}"))?)),
    }
}

/// What a child does: compiles the kernels whose places it is asked for.
pub fn work(adapter: &AdapterSummary, with_all: bool) -> Result<(), String> {
    let jobs = jobs(adapter, with_all).map_err(|error| error.to_string())?;
    let device = Device::open(adapter)?;
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|error| error.to_string())?;
        let job = line.trim().parse().ok().and_then(|at: usize| jobs.get(at));
        let report = job.ok_or_else(|| format!("found `{line}`, expected a number below {}", jobs.len()))?.compile(&device);
        let answer = serde_json::to_string(&report).map_err(|error| error.to_string())?;
        crate::print_all(&(answer + "\n"))?;
    }
    Ok(())
}
