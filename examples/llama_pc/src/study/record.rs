//! What is kept of a study: a line of JSON about all of it, then one per run with every number that tables and pictures are made of,
//! compressed. Reading it gives the same page again, without training.

use std::collections::BTreeMap;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::arms::Spec;
use super::grid::Lr;
use super::merged::Merged;
use super::plan::Row;
use super::queue::{Design, Losses};
use super::runs::Outcome;
use super::scale::SMALL;
use super::spectra::{MOST_QUANTILES, Quantiles};
use super::statistics::rounded;
use super::timing::StepTime;
use crate::config::{Config, Keys};
use crate::model::engine;
use crate::run::files;
use crate::run::measured::{Gmcn, SigmaError};
use crate::run::metrics::{Metrics, read_metrics};
use crate::run::paths;
use crate::terminal::failure::Failure;

/// The format's number; another is refused.
pub const FORMAT: u32 = 1;

/// What a study had in common; also the `study.json` of its folder, written before the first run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    pub format: u32,
    pub program: String,
    pub scale: String,
    pub design: Design,
    pub machine: Machine,
    pub data: Data,
    pub sizes: Vec<SizeFacts>,
    pub steps: u64,
    pub tokens_per_step: u64,
    /// Runs at a time.
    pub jobs: usize,
    pub times: Vec<StepTime>,
    pub plan: Vec<Row>,
}

/// Where it ran.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    pub adapter: String,
    pub driver: String,
    pub kernels: String,
    pub cores: usize,
}

/// What it trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Data {
    pub folder: String,
    pub tokens: u64,
    /// Of the first and the last window, as in a run's state.
    pub checksum: u32,
    pub vocab: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_token: Option<f64>,
}

/// A model size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SizeFacts {
    #[serde(flatten)]
    pub size: super::scale::Size,
    pub parameters: usize,
    /// `model.init_scale` of the scaled arm.
    pub init_scale: BTreeMap<String, f64>,
}

impl Header {
    /// What makes runs comparable: a study is resumed only where all of it is the same. With more seeds it has more runs.
    pub fn identity(&self) -> [(&'static str, String); 9] {
        let Design { points, centers, .. } = self.design;
        [
            ("format", self.format.to_string()),
            ("scale", self.scale.clone()),
            ("grid", format!("{points} points from {} and {}", centers[0].value(), centers[1].value())),
            ("steps", self.steps.to_string()),
            ("data", self.data.folder.clone()),
            ("data's tokens", self.data.tokens.to_string()),
            ("data's checksum", format!("{:08x}", self.data.checksum)),
            ("adapter", format!("{}, {}", self.machine.adapter, self.machine.driver)),
            ("kernels", self.machine.kernels.clone()),
        ]
    }

    /// Tokens of a whole run.
    pub fn tokens(&self) -> u64 {
        self.steps * self.tokens_per_step
    }
}

/// A finished run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub spec: Spec,
    /// Its `config.toml`.
    pub config: Keys,
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Of every step from the first.
    pub loss: Vec<f32>,
    pub grad_norm: Vec<Option<f32>>,
    /// Rounded.
    pub tokens_per_second: Vec<u32>,
    /// (step, loss)
    pub validation: Vec<(u64, f64)>,
    pub gmcn: Vec<(u64, Gmcn)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sigma_error: Vec<(u64, SigmaError)>,
    /// γ by the name of its matrix, with the steps in `gamma_steps`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub gamma: BTreeMap<String, Vec<f32>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gamma_steps: Vec<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merged: Option<Merged>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spectrum: Option<Quantiles>,
}

impl Record {
    /// From a finished run's folder.
    pub fn gather(folder: &Path, spec: Spec, outcome: Outcome) -> Result<Self, Failure> {
        let config = Config::load(Some(&folder.join(paths::CONFIG)), &[])?.keys();
        let rows = read_metrics(folder)?;
        if let Some((expected, row)) = (1..).zip(&rows).find(|(expected, row)| row.step != *expected) {
            let file = folder.join(paths::METRICS);
            return Err(Failure::other(format!("{}: found step {}, expected {expected}", file.display(), row.step)));
        }
        Ok(Self::of(spec, config, outcome, &rows))
    }

    fn of(spec: Spec, config: Keys, outcome: Outcome, rows: &[Metrics]) -> Self {
        let mut gamma: BTreeMap<String, Vec<f32>> = BTreeMap::new();
        let mut gamma_steps = Vec::new();
        for row in rows {
            let Some(layers) = row.layers.as_ref().filter(|layers| !layers.gamma.is_empty()) else { continue };
            gamma_steps.push(row.step);
            for (name, values) in &layers.gamma {
                gamma.entry(name.clone()).or_default().push(values.iter().sum::<f32>() / values.len() as f32);
            }
        }
        Self {
            spec,
            config,
            outcome,
            loss: rows.iter().map(|row| row.loss as f32).collect(),
            grad_norm: rows.iter().map(|row| row.grad_norm.map(|norm| norm as f32)).collect(),
            tokens_per_second: rows.iter().map(|row| row.tokens_per_second.round() as u32).collect(),
            validation: rows.iter().filter_map(|row| Some((row.step, rounded(row.val_loss?)))).collect(),
            gmcn: rows.iter().filter_map(|row| Some((row.step, rounded_gmcn(row.gmcn?)))).collect(),
            sigma_error: rows.iter().filter_map(|row| Some((row.step, rounded_error(row.sigma_error?)))).collect(),
            gamma,
            gamma_steps,
            merged: None,
            spectrum: None,
        }
    }

    /// Whether there is a value of everything for every step that it tells of.
    fn is_consistent(&self, steps: u64) -> bool {
        let logged = self.loss.len();
        let validated = self.validation.iter().map(|(step, _)| *step);
        let measured =
            validated.chain(self.gmcn.iter().map(|(step, _)| *step)).chain(self.sigma_error.iter().map(|(step, _)| *step));
        [self.grad_norm.len(), self.tokens_per_second.len()] == [logged; 2]
            && logged as u64 <= steps
            && measured.chain(self.gamma_steps.iter().copied()).all(|step| step <= steps)
            && self.gamma.values().all(|values| values.len() == self.gamma_steps.len())
            && self.spectrum.iter().all(|spectrum| (1..=MOST_QUANTILES).contains(&spectrum.0.len()))
    }

    /// The validation loss after the last step; infinite where the run diverged, or that loss is not finite.
    pub fn final_loss(&self) -> f64 {
        let is_final = |(step, _): &&(u64, f64)| self.outcome.diverged_at.is_none() && *step == self.loss.len() as u64;
        let last = self.validation.last().filter(is_final);
        last.map_or(f64::INFINITY, |(_, loss)| *loss)
    }

    /// The validation losses over the tokens.
    pub fn curve(&self, tokens_per_step: u64) -> Vec<(f64, f64)> {
        self.validation.iter().map(|(step, loss)| ((step * tokens_per_step) as f64, *loss)).collect()
    }

    /// Its configuration.
    fn config(&self) -> Result<Config, Failure> {
        let sets: Vec<String> = self.config.iter().map(|(key, value)| format!("{key}={value}")).collect();
        Config::load(None, &sets)
    }

    /// Lines of metrics as a run's `metrics.jsonl` has them, for the report.
    pub fn rows(&self, tokens_per_step: u64) -> Result<Vec<Value>, Failure> {
        let validation: BTreeMap<u64, f64> = self.validation.iter().copied().collect();
        let gmcn: BTreeMap<u64, Gmcn> = self.gmcn.iter().copied().collect();
        let config = self.config()?;
        let schedule = engine::schedule(&config);
        let (mut rows, mut seconds) = (Vec::new(), 0.0);
        for (at, step) in (0..self.loss.len()).zip(1u64..) {
            seconds += tokens_per_step as f64 / f64::from(self.tokens_per_second[at].max(1));
            let mut row = json!({
                "step": step, "tokens": step * tokens_per_step, "seconds": seconds, "loss": self.loss[at],
                "grad_norm": self.grad_norm[at], "lr": config.optimizer.lr * schedule.factor(step - 1),
                "tokens_per_second": self.tokens_per_second[at],
            });
            if let Some(loss) = validation.get(&step) {
                row["val_loss"] = json!(loss);
            }
            if let Some(gmcn) = gmcn.get(&step) {
                row["gmcn"] = json!(gmcn);
            }
            if let Some(place) = self.gamma_steps.iter().position(|measured| *measured == step) {
                let gamma: BTreeMap<&String, [f32; 1]> =
                    self.gamma.iter().map(|(name, values)| (name, [values[place]])).collect();
                row["layers"] = json!({ "gamma": gamma });
            }
            rows.push(row);
        }
        Ok(rows)
    }
}

fn rounded_gmcn(gmcn: Gmcn) -> Gmcn {
    Gmcn { all: rounded(gmcn.all), pc: gmcn.pc.map(rounded), plain: gmcn.plain.map(rounded) }
}

fn rounded_error(error: SigmaError) -> SigmaError {
    SigmaError { mean: rounded(error.mean), largest: rounded(error.largest) }
}

/// A study's records.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    pub header: Header,
    pub records: BTreeMap<Spec, Record>,
}

/// Compression level: the file is written once, and stays in the repository.
const EFFORT: i32 = 19;

/// The most seeds that a study may have.
pub const MOST_SEEDS: u64 = 100;

/// The most that a file may hold uncompressed: some ten times a study of hours.
const LIMIT: u64 = 1 << 30;

impl Kept {
    /// The losses that the queue decides by.
    pub fn losses(&self) -> Losses {
        self.records.iter().map(|(spec, record)| (*spec, record.final_loss())).collect()
    }

    /// Writes the file.
    pub fn write(&self, path: &Path) -> Result<(), Failure> {
        // Not by way of a `Value`, which would spell out every digit of a float as that of a double.
        let line = |record: &Record| serde_json::to_string(record).expect("bug: a record does not serialise") + "\n";
        let mut text = serde_json::to_string(&self.header).expect("bug: a header does not serialise") + "\n";
        text.extend(self.records.values().map(line));
        let bytes = zstd::encode_all(text.as_bytes(), EFFORT).map_err(|error| Failure::io("compress", path, &error))?;
        files::replace(path, &bytes)
    }

    /// Reads the file.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let file = std::fs::File::open(path).map_err(|error| Failure::io("read", path, &error))?;
        let decoder = zstd::Decoder::new(file).map_err(|error| Failure::io("read", path, &error))?;
        let mut text = String::new();
        std::io::Read::read_to_string(&mut std::io::Read::take(decoder, LIMIT), &mut text).map_err(|error| {
            Failure::other(format!("{}: found {error}, expected the compressed metrics of a study", path.display()))
        })?;
        let mut lines = (1..).zip(text.lines());
        let (_, first) = lines.next().unwrap_or((1, ""));
        let header: Header = parsed(path, 1, first)?;
        if header.format != FORMAT {
            let found = header.format;
            return Err(Failure::other(format!("{}: found format {found}, expected {FORMAT}", path.display())));
        }
        let mut records = BTreeMap::new();
        for (number, line) in lines {
            let record: Record = parsed(path, number, line)?;
            records.insert(record.spec, record);
        }
        let kept = Self { header, records };
        kept.check().map_err(|found| Failure::other(format!("{}: found {found}", path.display())))?;
        Ok(kept)
    }

    /// Whether a study can have written this; what is counted and indexed by later is within bounds.
    fn check(&self) -> Result<(), String> {
        let Header { design, sizes, steps, tokens_per_step, times, .. } = &self.header;
        if !(2..=MOST_SEEDS).contains(&design.seeds) {
            return Err(format!("{} seeds, expected 2 to {MOST_SEEDS}", design.seeds));
        }
        if sizes.len() != SMALL.sizes.len() {
            return Err(format!("{} model sizes, expected {}", sizes.len(), SMALL.sizes.len()));
        }
        if steps.checked_mul(*tokens_per_step).is_none() {
            return Err(format!("{steps} steps of {tokens_per_step} tokens, expected fewer"));
        }
        if let Some(time) = times.iter().find(|time| !(time.seconds > 0.0 && time.seconds.is_finite())) {
            return Err(format!("{} seconds of a step, expected more than 0", time.seconds));
        }
        let lrs = self.records.keys().map(|spec| spec.lr).chain(design.centers);
        if let Some(lr) = lrs.into_iter().find(|lr| !Lr::RANGE.contains(lr)) {
            return Err(format!("learning rate {} of the grid, expected one within 1e-12 to 1e12", lr.0));
        }
        let wrong = |record: &&Record| record.spec.size >= sizes.len() || !record.is_consistent(*steps);
        match self.records.values().find(wrong) {
            Some(record) => Err(format!("a record of {} whose numbers do not fit together", record.spec.name())),
            None => Ok(()),
        }
    }
}

fn parsed<T: DeserializeOwned>(path: &Path, number: usize, line: &str) -> Result<T, Failure> {
    serde_json::from_str(line)
        .map_err(|error| Failure::other(format!("{}: line {number}: found {error}, expected a line of a study", path.display())))
}

#[cfg(test)]
pub mod tests {
    use super::super::queue::tests::{DESIGN, all, loss};
    use super::super::{plan, scale::tests::setup};
    use super::*;

    /// A run of 100 steps that ends at the queue's loss.
    pub fn record(spec: Spec) -> Record {
        let curve = |step: u64| loss(&spec) + 2.0 / step as f64 - 0.02;
        let has_pc = spec.arm.level().is_some();
        let rows: Vec<Metrics> = (1..=100)
            .map(|step| {
                let due = step % 20 == 0;
                Metrics {
                    step,
                    tokens: 2048 * step,
                    loss: f64::from(curve(step) as f32),
                    grad_norm: Some(0.5),
                    tokens_per_second: 20_000.4,
                    val_loss: due.then(|| curve(step)),
                    gmcn: due.then(|| Gmcn { all: 20.0, pc: has_pc.then_some(3.0), plain: Some(40.0) }),
                    sigma_error: (due && has_pc)
                        .then(|| SigmaError { mean: 0.1 / spec.iterations as f64, largest: 0.3 / spec.iterations as f64 }),
                    ..Metrics::default()
                }
            })
            .collect();
        let config = setup().config(&spec, 100).expect("a good configuration").keys();
        let mut record = Record::of(spec, config, Outcome { diverged_at: None }, &rows);
        record.spectrum = Some(Quantiles(vec![0.1, 0.5, 1.0]));
        if has_pc {
            record.gamma.insert("model.layers.0.self_attn.o_proj".into(), vec![1.0, 1.2]);
            record.gamma_steps = vec![50, 100];
        }
        record
    }

    /// A finished study.
    pub fn kept() -> Kept {
        let (order, ..) = all(&DESIGN);
        let sizes = [0, 1].map(|size| SizeFacts {
            size: setup().scale.sizes[size],
            parameters: setup().parameters(size).expect("a good configuration"),
            init_scale: BTreeMap::from([("o".to_owned(), 1.875)]),
        });
        let arms = super::super::arms::Optimizer::ALL.into_iter().flat_map(super::super::arms::Arm::all);
        let times: Vec<StepTime> = arms
            .flat_map(|arm| [0, 1].map(|size| StepTime { size, arm, seconds: if arm.level().is_some() { 0.11 } else { 0.1 } }))
            .collect();
        let header = Header {
            format: FORMAT,
            program: "llama_pc 0".into(),
            scale: "small".into(),
            design: DESIGN,
            machine: Machine { adapter: "a".into(), driver: "d".into(), kernels: "host".into(), cores: 2 },
            data: Data { folder: "data/demo".into(), tokens: 9, checksum: 1, vocab: 1024, bytes_per_token: Some(2.4) },
            sizes: sizes.to_vec(),
            steps: 100,
            tokens_per_step: 2048,
            jobs: 2,
            plan: plan::rows(&setup(), &times, 2).expect("a plan"),
            times,
        };
        Kept { header, records: order.into_iter().map(|spec| (spec, record(spec))).collect() }
    }

    #[test]
    fn what_is_kept_reads_back_the_same() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("metrics.jsonl.zst");
        let kept = kept();
        kept.write(&path).expect("it is written");
        assert_eq!(Kept::read(&path).expect("the same"), kept);
        std::fs::write(&path, b"{}").expect("it is written");
        let failure = Kept::read(&path).expect_err("not compressed").to_string();
        assert!(failure.contains("metrics.jsonl.zst: found ") && failure.contains("expected the compressed"), "{failure}");
        std::fs::write(&path, zstd::encode_all(&b"{}\n"[..], 1).expect("compressed")).expect("it is written");
        let failure = Kept::read(&path).expect_err("no header").to_string();
        assert!(failure.contains("line 1: found missing field"), "{failure}");
    }

    #[test]
    fn what_no_study_writes_is_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("metrics.jsonl.zst");
        let refused = |change: &dyn Fn(&mut Kept), expected: &str| {
            let mut kept = kept();
            change(&mut kept);
            kept.write(&path).expect("it is written");
            let failure = Kept::read(&path).expect_err(expected).to_string();
            assert!(failure.contains("metrics.jsonl.zst: found ") && failure.contains(expected), "{failure}");
        };
        refused(&|kept| kept.header.design.seeds = u64::MAX, "seeds");
        refused(&|kept| kept.header.sizes.truncate(1), "1 model sizes");
        refused(&|kept| kept.header.steps = u64::MAX, "steps of");
        refused(&|kept| kept.header.times[0].seconds = -1.0, "seconds of a step");
        refused(&|kept| kept.header.design.centers[1] = Lr(i32::MAX), "learning rate");
        let first = |kept: &mut Kept, change: fn(&mut Record)| change(kept.records.values_mut().next().expect("a record"));
        refused(&|kept| first(kept, |record| record.grad_norm.truncate(7)), "do not fit together");
        refused(&|kept| first(kept, |record| record.validation[0].0 = 101), "do not fit together");
        refused(&|kept| first(kept, |record| drop(record.gamma.insert("a".into(), vec![1.0]))), "do not fit together");
        refused(&|kept| first(kept, |record| record.spectrum = Some(Quantiles(Vec::new()))), "do not fit together");
        refused(&|kept| first(kept, |record| record.spec.size = 2), "do not fit together");
    }

    #[test]
    fn a_record_has_the_lines_of_its_metrics() {
        let (order, ..) = all(&DESIGN);
        let spec = *order.iter().find(|spec| spec.arm.level().is_some()).expect("a run with PC layers");
        let record = record(spec);
        let rows = record.rows(2048).expect("a good configuration");
        assert_eq!(rows.len(), 100);
        assert_eq!((rows[99]["step"].as_u64(), rows[99]["tokens"].as_u64()), (Some(100), Some(204_800)));
        assert_eq!(rows[99]["val_loss"].as_f64(), Some(record.final_loss()));
        assert!(rows[99]["gmcn"]["pc"].is_f64() && rows[98].get("gmcn").is_none());
        assert!(rows[49]["layers"]["gamma"].is_object());
        // Warm-up first, the peak later.
        assert!(rows[0]["lr"].as_f64() < rows[10]["lr"].as_f64());
        let diverged = Record { outcome: Outcome { diverged_at: Some(7) }, ..record.clone() };
        assert_eq!(diverged.final_loss(), f64::INFINITY);
        let mut without_last = record;
        without_last.validation.pop();
        assert_eq!(without_last.final_loss(), f64::INFINITY);
    }
}
