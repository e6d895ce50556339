//! `study`: what PC layers gain, measured: plans, trains, gathers and writes a page.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::ValueEnum;
use polytape::Gpu;
use polytape::gpu::KernelTier;

use super::device::Device;
use crate::study::{self, Machine, Request, Scale};
use crate::terminal::failure::Failure;

/// Arguments of `study`.
#[derive(clap::Args)]
pub struct Args {
    /// How much to train: `small` takes hours on two CPU cores, `tiny` two minutes and shows only that everything works
    #[arg(long, value_enum, required_unless_present = "from")]
    scale: Option<Name>,
    /// Folder of the runs; an unfinished study in it is resumed [default: runs/study-SCALE]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Folder of study.md and study/, which are replaced [default: docs; for `tiny` that of the runs]
    #[arg(long, value_name = "DIR")]
    docs: Option<PathBuf>,
    /// Prepared data to train on, the folder that holds train and val
    #[arg(long, value_name = "DIR", default_value = "data/demo")]
    data: PathBuf,
    /// Seeds of each arm at its best learning rate, at least 2 [default: 4 for `small`, 2 for `tiny`]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(2..=study::record::MOST_SEEDS))]
    seeds: Option<u64>,
    /// Refuse a plan that takes longer than this [default: 6 for `small`, 1 for `tiny`]
    #[arg(long, value_name = "H")]
    max_hours: Option<f64>,
    /// Only measure the step times and write the plan
    #[arg(long)]
    plan_only: bool,
    /// Runs to train at a time, each in a process of its own [default: with the host kernels one per core, at most 8; on a GPU 1]
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    /// Train beside the process that started this one
    #[arg(long, hide = true)]
    worker: bool,
    /// Train nothing: rebuild the page, its pictures and the report from the metrics that a study kept
    #[arg(long, value_name = "METRICS", conflicts_with_all = ["scale", "out", "data", "seeds", "max_hours", "plan_only", "jobs", "worker"])]
    from: Option<PathBuf>,
    #[command(flatten)]
    device: Device,
}

/// The scales by name.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Name {
    Small,
    Tiny,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let docs = || args.docs.clone();
    let scale = match (&args.from, args.scale) {
        (Some(metrics), _) => return study::show(metrics, &docs().unwrap_or_else(|| PathBuf::from("docs"))),
        (None, Some(Name::Small)) => study::SMALL,
        (None, _) => study::TINY,
    };
    let scale = with_limits(scale, args.seeds, args.max_hours)?;
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from(format!("runs/study-{}", scale.name)));
    let own = if scale.name == study::TINY.name { out.clone() } else { PathBuf::from("docs") };
    let data = args.data.clone();
    let request = Request { scale, docs: docs().unwrap_or(own), out, data, plan_only: args.plan_only, is_worker: args.worker };
    study::run(&request, || args.machine(&request))
}

/// Maximum concurrent runs by default: more are rarely independent of each other's results.
const MOST_JOBS: usize = 8;

impl Args {
    /// The device, and the runs at a time, which share the cores on the host kernels.
    fn machine(&self, request: &Request) -> Result<Machine, Failure> {
        let gpu = self.device.open(false)?;
        if self.worker {
            return Ok(Machine { gpu, jobs: 1, worker: Vec::new() });
        }
        let is_host = gpu.kernels() == KernelTier::Host;
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let jobs = self.jobs.map_or(if is_host { cores.min(MOST_JOBS) } else { 1 }, NonZeroUsize::get);
        if jobs == 1 || !is_host || self.device.threads.is_some() {
            let worker = self.worker(request, &gpu, self.device.threads);
            return Ok(Machine { gpu, jobs, worker });
        }
        let threads = NonZeroUsize::new(cores / jobs).unwrap_or(NonZeroUsize::MIN);
        let gpu = self.device.reopen(&gpu, threads)?;
        let worker = self.worker(request, &gpu, Some(threads));
        Ok(Machine { gpu, jobs, worker })
    }

    /// The arguments of a worker.
    fn worker(&self, request: &Request, gpu: &Gpu, threads: Option<NonZeroUsize>) -> Vec<String> {
        let Request { scale, out, data, .. } = request;
        let mut arguments = vec!["study".to_owned(), "--worker".to_owned()];
        let mut add = |flag: &str, value: String| arguments.extend([flag.to_owned(), value]);
        add("--scale", scale.name.to_owned());
        add("--seeds", scale.design.seeds.to_string());
        add("--out", out.display().to_string());
        add("--data", data.display().to_string());
        add("--adapter", gpu.adapter().index.to_string());
        add("--kernels", gpu.kernels().to_string());
        if let Some(threads) = threads {
            add("--threads", threads.to_string());
        }
        if self.device.no_tune {
            arguments.push("--no-tune".to_owned());
        }
        arguments
    }
}

fn with_limits(mut scale: Scale, seeds: Option<u64>, max_hours: Option<f64>) -> Result<Scale, Failure> {
    scale.design.seeds = seeds.unwrap_or(scale.design.seeds);
    scale.max_hours = max_hours.unwrap_or(scale.max_hours);
    if !(scale.max_hours > 0.0 && scale.max_hours.is_finite()) {
        return Err(Failure::usage(format!("--max-hours: found {}, expected a number above 0", scale.max_hours)));
    }
    Ok(scale)
}
