//! The tables of docs/drivers.md.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::report::{KernelReport, Report};

/// The tier that a GPU can run, but is not given.
const SOFTWARE: &str = "fallback";
/// Constants that a row of a table stands for, unless they are 0; it shows the worst of the others.
const SHOWN: [&str; 5] = ["DIM", "TILE", "F16_TERMS", "HELD", "JOINED"];

/// What drivers tell, under the names that they tell it by, of which a driver has one or more: those are added up.
struct Metric {
    name: &'static str,
    of: &'static [&'static str],
}

/// RADV; NVK; Honeykrisp; Turnip; NVIDIA.
const REGISTERS: Metric =
    Metric { name: "registers", of: &["VGPRs", "Number of GPRs", "GPRs", "Registers used", "Register Count"] };
const WAVES: Metric = Metric { name: "waves", of: &["Subgroups per SIMD", "Max warps/SM", "Threads", "Max Waves Per Core"] };
const SPILLS: Metric =
    Metric { name: "spills", of: &["Spilled VGPRs", "Spilled SGPRs", "Spills to memory", "Spills", "STP Count"] };
const SCRATCH: Metric = Metric { name: "bytes of scratch", of: &["Scratch size", "SLM size", "Scratch", "Local Memory Size"] };
const CODE: Metric = Metric { name: "code", of: &["Code size", "Code Size", "Binary Size"] };
const LATENCY: Metric = Metric { name: "latency", of: &["Latency", "Static cycle count", "ALU"] };
const INVERSE_THROUGHPUT: Metric = Metric { name: "inverse throughput", of: &["Inverse Throughput"] };

impl Metric {
    fn read(&self, kernel: &KernelReport) -> Option<f64> {
        let told = kernel.statistics.iter().filter(|(name, _)| self.of.iter().any(|own| own.eq_ignore_ascii_case(name)));
        told.map(|(_, value)| *value).reduce(|sum, value| sum + value)
    }

    fn worst(&self, kernels: &[&KernelReport]) -> Option<f64> {
        kernels.iter().filter_map(|kernel| self.read(kernel)).reduce(f64::max)
    }

    fn least(&self, kernels: &[&KernelReport]) -> Option<f64> {
        kernels.iter().filter_map(|kernel| self.read(kernel)).reduce(f64::min)
    }
}

/// The text, and what is wrong with the kernels.
pub fn markdown(reports: &[Report]) -> (String, Vec<String>) {
    let mut text = String::from(HEAD);
    summary(&mut text, reports);
    let _ = writeln!(text, "\n## Registers, spills and occupancy\n\n{REGISTERS_HEAD}");
    kernels(&mut text, reports, occupancy);
    let _ = writeln!(text, "\n## Code and time\n\n{CODE_HEAD}");
    kernels(&mut text, reports, size);
    let list = |text: &mut String, head: &str, lines: &[String]| {
        if !lines.is_empty() {
            let _ = writeln!(text, "\n{head}\n");
            lines.iter().for_each(|line| text.push_str(&format!("- {line}\n")));
        }
    };
    let explained: Vec<String> = reports.iter().flat_map(|report| refused(report, is_foreign)).collect();
    list(&mut text, FOREIGN_HEAD, &explained);
    let faults: Vec<String> = reports.iter().flat_map(faults).collect();
    list(&mut text, "## Faults", &faults);
    (text, faults)
}

/// Whether a GPU runs it without being told to.
fn is_run(kernel: &KernelReport) -> bool {
    kernel.is_in_step && kernel.tiers.iter().any(|tier| tier != SOFTWARE)
}

/// Whether no GPU runs it.
fn is_foreign(kernel: &KernelReport) -> bool {
    kernel.tiers.iter().all(|tier| tier == SOFTWARE)
}

fn spills(kernel: &KernelReport) -> bool {
    [SPILLS, SCRATCH].iter().any(|metric| metric.read(kernel).is_some_and(|value| value > 0.0))
}

fn summary(text: &mut String, reports: &[Report]) {
    let _ = writeln!(
        text,
        "| chip | adapter | driver | kernels compiled | refused | with spills or scratch | in a step | steps run |"
    );
    let _ = writeln!(text, "|---|---|---|---:|---:|---:|---:|---:|");
    for Report { chip, adapter, driver, kernels, left_out, steps } in reports {
        let count = |is: &dyn Fn(&&KernelReport) -> bool| kernels.iter().filter(is).count();
        let refused = count(&|kernel| kernel.refusal.is_some());
        let (spilling, in_steps) = (count(&|kernel| spills(kernel)), count(&|kernel| is_run(kernel) && spills(kernel)));
        let all =
            if *left_out > 0 { format!("{} of {}", kernels.len(), kernels.len() + left_out) } else { kernels.len().to_string() };
        let run = steps.iter().filter(|step| step.problem.is_none()).count();
        let _ = writeln!(
            text,
            "| {chip} | {} | {} | {all} | {refused} | {spilling} | {in_steps} | {run} of {} |",
            adapter.trim(),
            driver.trim(),
            steps.len()
        );
    }
}

/// A row for each kernel of a step, a column for each chip.
fn kernels(text: &mut String, reports: &[Report], cell: fn(&[&KernelReport]) -> String) {
    let mut rows: BTreeMap<String, Vec<Vec<&KernelReport>>> = BTreeMap::new();
    for (column, report) in reports.iter().enumerate() {
        for kernel in report.kernels.iter().filter(|kernel| is_run(kernel)) {
            rows.entry(label(kernel)).or_insert_with(|| vec![Vec::new(); reports.len()])[column].push(kernel);
        }
    }
    let chips: Vec<&str> = reports.iter().map(|report| &*report.chip).collect();
    let _ = writeln!(text, "| kernel | {} |\n|---{}|", chips.join(" | "), "|---".repeat(chips.len()));
    for (label, columns) in rows {
        let cells: Vec<String> = columns.iter().map(|kernels| cell(kernels)).collect();
        let _ = writeln!(text, "| {label} | {} |", cells.join(" | "));
    }
}

fn label(kernel: &KernelReport) -> String {
    let shown = kernel.constants.iter().filter(|(name, value)| SHOWN.contains(&&**name) && *value != 0);
    let shown: Vec<String> = shown.map(|(name, value)| format!("{name}={value}")).collect();
    let is_matrix = kernel.tiers == ["matrix"] && kernel.constants.iter().any(|(name, _)| name == "BLOCKS");
    let with = if is_matrix { " on matrix units" } else { "" };
    format!("{}{with} {}", kernel.kernel, shown.join(" ")).trim_end().to_string()
}

fn occupancy(kernels: &[&KernelReport]) -> String {
    if let Some(refused) = kernels.iter().find_map(|kernel| kernel.refusal.as_ref()) {
        return format!("**{}**", refused.lines().next().unwrap_or("refused"));
    }
    let count = |value: Option<f64>| value.map_or("–".to_string(), |value| format!("{value:.0}"));
    let mut cell = match (REGISTERS.worst(kernels), WAVES.least(kernels)) {
        (None, None) => String::new(),
        (registers, waves) => format!("{} / {}", count(registers), count(waves)),
    };
    for metric in [SPILLS, SCRATCH] {
        if let Some(value) = metric.worst(kernels).filter(|value| *value > 0.0) {
            let _ = write!(cell, ", **{value:.0} {}**", metric.name);
        }
    }
    if let Some(bytes) = kernels.iter().map(|kernel| kernel.shared_bytes).max().filter(|bytes| *bytes > 0) {
        let _ = write!(cell, ", {:.1} KiB", f64::from(bytes) / 1024.0);
    }
    cell
}

fn size(kernels: &[&KernelReport]) -> String {
    let told = [CODE, LATENCY, INVERSE_THROUGHPUT].map(|metric| metric.worst(kernels));
    let told: Vec<String> = told.into_iter().flatten().map(|value| format!("{value:.0}")).collect();
    told.join(" / ")
}

/// Refusals, failed steps, and kernels of steps with spills or scratch memory, or for which the driver reports neither.
fn faults(report: &Report) -> Vec<String> {
    let mut worst: BTreeMap<String, Vec<&KernelReport>> = BTreeMap::new();
    for kernel in report.kernels.iter().filter(|kernel| is_run(kernel) && spills(kernel)) {
        worst.entry(label(kernel)).or_default().push(kernel);
    }
    let spilled = worst.into_iter().map(|(label, kernels)| {
        let told = [SPILLS, SCRATCH].iter().filter_map(|metric| {
            metric.worst(&kernels).filter(|value| *value > 0.0).map(|value| format!("{value:.0} {}", metric.name))
        });
        format!("{}: {label}: {}", report.chip, told.collect::<Vec<_>>().join(", "))
    });
    let failed =
        report.steps.iter().filter_map(|step| Some(format!("{}: {}: {}", report.chip, step.name, step.problem.as_ref()?)));
    let none = report.steps.is_empty().then(|| format!("{}: no training step was run", report.chip));
    let is_untold = |kernel: &&KernelReport| {
        is_run(kernel) && kernel.refusal.is_none() && [SPILLS, SCRATCH].iter().all(|metric| metric.read(kernel).is_none())
    };
    let untold = report.kernels.iter().filter(is_untold).count();
    let untold = (untold > 0)
        .then(|| format!("{}: the driver reports neither spills nor scratch memory for {untold} kernels", report.chip));
    spilled.chain(untold).chain(refused(report, |kernel| !is_foreign(kernel))).chain(failed).chain(none).collect()
}

/// Those of some kernels that were refused.
fn refused(report: &Report, is_meant: fn(&KernelReport) -> bool) -> Vec<String> {
    let line = |kernel: &KernelReport| {
        let problem = kernel.refusal.as_ref()?.lines().next()?;
        let constants: Vec<String> = kernel.constants.iter().map(|(name, value)| format!("{name}={value}")).collect();
        Some(format!("{}: {} {}: {problem}", report.chip, kernel.kernel, constants.join(" ")))
    };
    report.kernels.iter().filter(|kernel| is_meant(kernel)).filter_map(line).collect()
}

const HEAD: &str = "\
# What drivers make of the kernels

Written by `scripts/drivers`, which compiles the kernels with real GPU drivers, none of which needs its GPU: they run on Mesa's
drm-shim, which accepts every submit and executes nothing. No number here is a measurement on hardware.

";
const REGISTERS_HEAD: &str = "\
Kernels of training steps and of sampling of the published sizes, in the tiers that a GPU is given: registers / waves (per SIMD on AMD,
warps per SM on NVIDIA, threads on Apple, waves per core on Adreno), then the shared memory of a workgroup. Where several kernels
differ in constants that are not shown, the worst. Spills and scratch memory are faults.
";
const FOREIGN_HEAD: &str = "\
## Refused, but never given to a GPU

The fallback kernels are written for software adapters, whose lanes have thousands of registers.
";
const CODE_HEAD: &str = "\
Bytes of code, or what the driver counts instead / latency in the driver's cycles / inverse throughput, as far as the driver tells.
";
