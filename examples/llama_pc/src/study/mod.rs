//! The study of what PC layers gain: `arms` and `scale` say what is compared, `queue` which run comes next (with `grid`), `plan` what it will
//! cost (with `timing`), `runs` trains, `workers` train beside it, `merged` and `spectra` measure what runs end with, `record` keeps.
//!
//! `findings` (with `statistics`) are what the records say, `page`, `pictures` and `chart` show them. Everything shown is made from
//! what is kept, so that it can be made again.

mod arms;
mod chart;
pub mod findings;
mod grid;
mod merged;
pub mod page;
mod pictures;
mod plan;
mod queue;
pub mod record;
mod runs;
mod scale;
mod spectra;
mod statistics;
mod timing;
mod workers;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use polytape::Gpu;

use crate::config::DataFormat;
use crate::data::meta::{bytes_per_token, tokenizer_of};
use crate::data::tokenizer::Tokenizer;
use crate::data::tokens::TokenStream;
use crate::data::windows::{Order, Windows};
use crate::inspect::report;
use crate::run::files;
use crate::terminal::failure::Failure;
use crate::terminal::{interrupt, output};
use crate::train;
use arms::{Optimizer, Spec};
use findings::Findings;
use merged::Merged;
use queue::{Choices, Losses};
use record::{Data, Header, Kept, Record, SizeFacts};
use runs::Stand;
use scale::Setup;
pub use scale::{SMALL, Scale, TINY};
use spectra::Quantiles;
use timing::StepTime;
use workers::Workers;

/// What to study.
pub struct Request {
    pub scale: Scale,
    /// The folder of the runs; an existing one is resumed.
    pub out: PathBuf,
    /// The folder of `study.md` and `study/`.
    pub docs: PathBuf,
    /// The folder of `train/` and `val/`.
    pub data: PathBuf,
    /// Only write the plan.
    pub plan_only: bool,
    /// Train beside another process, which plans and writes the page.
    pub is_worker: bool,
}

/// What to study on.
pub struct Machine {
    pub gpu: Gpu,
    /// Runs at a time.
    pub jobs: usize,
    /// What starts this program as a worker.
    pub worker: Vec<String>,
}

/// Plans, runs whatever is missing, and writes the page. Stops where the user interrupts.
pub fn run(request: &Request, open: impl FnOnce() -> Result<Machine, Failure>) -> Result<(), Failure> {
    let Request { scale, out, .. } = request;
    let data = data(&request.data, scale.seq_len)?;
    let Machine { gpu, jobs, worker } = open()?;
    let mut setup = Setup { scale: *scale, data: request.data.clone(), vocab: data.vocab, scales: Vec::new() };
    for size in 0..scale.sizes.len() {
        setup.scales.push(timing::initial_scales(&gpu, &setup, size)?);
    }
    let header = unplanned(&gpu, &setup, data, jobs)?;
    if request.is_worker {
        let missing = || Failure::other(format!("{}: found no study, expected one that is planned", out.display()));
        let header = known(&header, out)?.ok_or_else(missing)?;
        return train_all(&gpu, &setup, &header, out, None).map(drop);
    }
    let _lead = workers::take_study(out)?;
    let header = match known(&header, out)? {
        Some(found) if found.design == header.design => found,
        Some(found) => planned(&setup, header, found.times)?,
        None => {
            let times = timing::measure(&gpu, &setup)?;
            planned(&setup, header, times)?
        }
    };
    let table = plan::table(&header.plan, header.jobs);
    output::print(&format!("The plan, from measured step times:\n\n{table}\n"))?;
    files::replace(&out.join("plan.md"), format!("# The plan\n\n{table}").as_bytes())?;
    plan::check(&header.plan, scale.max_hours)?;
    if request.plan_only {
        return Ok(());
    }
    // Written only now, so that a refused plan is measured again.
    let json = serde_json::to_string(&header).expect("bug: a header does not serialise");
    files::replace(&out.join(HEADER), json.as_bytes())?;
    let workers = Workers::start(out, jobs - 1, &worker)?;
    let Some(records) = train_all(&gpu, &setup, &header, out, Some(workers))? else {
        output::note("interrupted; run the same command to resume");
        return Ok(());
    };
    let kept = Kept { header, records };
    let folder = pictures_folder(&request.docs)?;
    kept.write(&folder.join(METRICS))?;
    show(&folder.join(METRICS), &request.docs)
}

/// The study's header, in the folder of its runs.
const HEADER: &str = "study.json";
/// The kept metrics, in the folder of the pictures.
const METRICS: &str = "metrics.jsonl.zst";

/// Points of a run in the report: what a screen shows of some runs beside each other.
const REPORT_POINTS: usize = 300;

/// Writes the page, its pictures and the report from kept metrics, and prints their paths.
pub fn show(metrics: &Path, docs: &Path) -> Result<(), Failure> {
    let kept = Kept::read(metrics)?;
    let findings = Findings::new(&kept)?;
    let folder = pictures_folder(docs)?;
    pictures::save_all(&findings, &folder)?;
    let mut runs = Vec::new();
    for size in 0..kept.header.sizes.len() {
        for optimizer in Optimizer::ALL {
            for result in findings.compared(size, optimizer) {
                let Some(record) = result.records.first() else { continue };
                let name = format!("{}, {}, {}", page::size_title(&kept.header, size), optimizer.title(), result.arm.title());
                runs.push(report::of_rows(
                    name,
                    record.config.clone(),
                    &record.rows(kept.header.tokens_per_step)?,
                    REPORT_POINTS,
                ));
            }
        }
    }
    let html = folder.join("report.html");
    files::replace(&html, report::page(runs).as_bytes())?;
    let command = format!("cargo llama_pc study --from {}", metrics.display());
    let page = docs.join("study.md");
    files::replace(&page, page::page(&findings, "study", &command).as_bytes())?;
    output::print(&format!("{}\n{}\n", page.display(), html.display()))
}

fn pictures_folder(docs: &Path) -> Result<PathBuf, Failure> {
    let folder = docs.join("study");
    std::fs::create_dir_all(&folder).map_err(|error| Failure::io("create", &folder, &error))?;
    Ok(folder)
}

/// What is trained on.
fn data(folder: &Path, seq_len: usize) -> Result<Data, Failure> {
    let train = folder.join("train");
    let hint = "scripts/demo prepares data/demo; `prepare --out DIR` makes such a folder of any text";
    std::fs::metadata(&train).map_err(|error| Failure::io("read", &train, &error).hint(hint))?;
    let tokenizer = tokenizer_of(&train).ok_or_else(|| {
        Failure::other(format!("{}: found no tokenizer.json, expected prepared data", folder.display())).hint(hint)
    })?;
    let vocab = Tokenizer::load(&tokenizer)?.vocab_size();
    let stream = TokenStream::open(&train, vocab, DataFormat::Auto)?;
    let tokens = stream.len();
    let windows = Windows::new(stream, &train.display().to_string(), seq_len, Order::Sequential)?;
    Ok(Data {
        folder: folder.display().to_string(),
        tokens,
        checksum: windows.fingerprint()?,
        vocab,
        bytes_per_token: bytes_per_token(&train).map(statistics::rounded),
    })
}

/// The header of the study in the folder, if there is one; it must be of the same study.
fn known(expected: &Header, out: &Path) -> Result<Option<Header>, Failure> {
    let file = out.join(HEADER);
    if !file.is_file() {
        return Ok(None);
    }
    let found: Header = files::read_json(&file)?;
    let mut pairs = found.identity().into_iter().zip(expected.identity());
    if let Some(((name, found), (_, expected))) = pairs.find(|(found, expected)| found != expected) {
        return Err(Failure::usage(format!("{}: found {name} = {found}, expected this study's {expected}", file.display()))
            .hint("another --out begins a new study"));
    }
    Ok(Some(found))
}

/// The header with measured step times, and the plan that follows from them.
fn planned(setup: &Setup, header: Header, times: Vec<StepTime>) -> Result<Header, Failure> {
    Ok(Header { plan: plan::rows(setup, &times, header.jobs)?, times, ..header })
}

/// A header without times and plan.
fn unplanned(gpu: &Gpu, setup: &Setup, data: Data, jobs: usize) -> Result<Header, Failure> {
    let adapter = gpu.adapter();
    let size = |size: usize| -> Result<SizeFacts, Failure> {
        let name = |target| toml::Value::try_from(target).ok().and_then(|value| value.as_str().map(str::to_owned));
        let init_scale = setup.scales[size].iter().filter_map(|(target, factor)| Some((name(target)?, *factor))).collect();
        Ok(SizeFacts { size: setup.scale.sizes[size], parameters: setup.parameters(size)?, init_scale })
    };
    Ok(Header {
        format: record::FORMAT,
        program: format!("llama_pc {}", env!("CARGO_PKG_VERSION")),
        scale: setup.scale.name.to_owned(),
        design: setup.scale.design,
        machine: record::Machine {
            adapter: adapter.name.clone(),
            driver: adapter.driver.clone(),
            kernels: gpu.kernels().to_string(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
        },
        data,
        sizes: (0..setup.scale.sizes.len()).map(size).collect::<Result<_, _>>()?,
        steps: setup.steps()?,
        tokens_per_step: setup.tokens_per_step() as u64,
        jobs,
        times: Vec::new(),
        plan: Vec::new(),
    })
}

/// How long to wait for a run of another process before looking again.
const PAUSE: Duration = Duration::from_millis(500);

/// Trains until nothing is missing, and gathers the records; `None` where the user interrupts.
fn train_all(
    gpu: &Gpu,
    setup: &Setup,
    header: &Header,
    out: &Path,
    mut workers: Option<Workers>,
) -> Result<Option<BTreeMap<Spec, Record>>, Failure> {
    let stop = interrupt::flag(train::INTERRUPTED)?;
    let mut records = BTreeMap::new();
    let mut losses = Losses::new();
    let planned = plan::total(&header.plan).0;
    let choices = loop {
        let missing = match queue::finished(&header.design, &losses) {
            Ok(choices) => break choices,
            Err(missing) => missing,
        };
        let before = records.len();
        for spec in missing {
            let folder = runs::folder(out, &spec);
            let Some(_taken) = workers::take_run(out, &spec)? else { continue };
            if runs::outcome(&folder)?.is_none() {
                output::note(&format!("\nrun {} of about {planned}: {}", records.len() + 1, spec.name()));
            }
            let outcome = match runs::train(gpu, &folder, setup.config(&spec, header.steps)?)? {
                Stand::Finished(outcome) => outcome,
                Stand::Interrupted => return Ok(None),
            };
            let record = Record::gather(&folder, spec, outcome)?;
            losses.insert(spec, record.final_loss());
            records.insert(spec, record);
        }
        if let Some(workers) = &mut workers {
            workers.check();
        }
        if records.len() == before {
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            std::thread::sleep(PAUSE);
        }
    };
    if workers.is_some() {
        measure_ends(gpu, out, &choices, &mut records)?;
    }
    Ok(Some(records))
}

/// Of every arm at its best learning rate, the first seed's spectrum; of those with PC layers, what export does to the loss, too.
fn measure_ends(gpu: &Gpu, out: &Path, choices: &Choices, records: &mut BTreeMap<Spec, Record>) -> Result<(), Failure> {
    for (&(size, arm), best) in &choices.best {
        let spec = Spec::new(size, arm, best.lr, 1);
        let folder = runs::folder(out, &spec);
        let Some(record) = records.get_mut(&spec).filter(|record| record.outcome.diverged_at.is_none()) else { continue };
        let spectrum = runs::measured(&folder.join("spectrum.json"), || Quantiles::measure(gpu, &folder))?;
        record.spectrum = Some(spectrum);
        if arm.level().is_some() {
            record.merged = Some(runs::measured(&folder.join("merged.json"), || Merged::measure(gpu, &folder))?);
        }
    }
    Ok(())
}
