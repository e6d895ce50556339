//! Reads what a report shows from a run's folder: metrics, configuration, γ of the checkpoints, spectra.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use polytape::Gpu;
use polytape::safetensors::Reader;
use polytape::spectral::PC_GAMMA;
use serde::Serialize;
use serde_json::Value;

use super::curves::{Point, smoothed, thinned};
use crate::config::Config;
use crate::inspect::spectrum;
use crate::model::spectra;
use crate::run::measured::{Exchanged, Gmcn};
use crate::run::metrics::read_lines;
use crate::run::{checkpoint, files, paths};
use crate::terminal::failure::Failure;
use crate::terminal::output;

/// Maximum points of a curve: more than the width of any screen.
const POINTS: usize = 1500;

/// One run.
#[derive(Default, Serialize)]
pub struct RunData {
    pub name: String,
    #[serde(skip)]
    pub path: PathBuf,
    /// Every logged step, or means over neighboring steps if there are very many.
    pub train: Vec<Point>,
    /// The smoothed training loss at the points of `train`.
    pub smoothed: Vec<f64>,
    /// The steps with a validation.
    pub validation: Vec<Point>,
    /// Logged steps per point of `train`.
    pub joined: usize,
    pub peak_memory_bytes: u64,
    /// γ of each PC layer over the steps.
    pub gamma: Vec<Gamma>,
    pub condition: Vec<Condition>,
    pub spectra: Vec<MatrixSpectra>,
    pub kernels: Vec<KernelTime>,
    /// Of a run that several ranks have trained last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ranks: Option<Ranks>,
    /// Every configuration key with its value in TOML.
    pub config: BTreeMap<String, String>,
}

/// γ of a matrix; per-head γ are averaged.
#[derive(Serialize)]
pub struct Gamma {
    pub layer: usize,
    pub kind: String,
    pub steps: Vec<u64>,
    pub values: Vec<f64>,
}

/// Condition numbers after a step.
#[derive(Serialize)]
pub struct Condition {
    pub step: u64,
    #[serde(flatten)]
    pub gmcn: Gmcn,
    /// Of the raw weights; known for checkpoints only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raw: Option<f64>,
}

/// A matrix of the newest checkpoint.
#[derive(Serialize)]
pub struct MatrixSpectra {
    pub layer: usize,
    pub kind: String,
    pub raw: Vec<f64>,
    pub raw_condition: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effective: Option<Vec<f64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effective_condition: Option<f64>,
}

/// What the ranks of a run have exchanged.
#[derive(Debug, PartialEq, Serialize)]
pub struct Ranks {
    pub count: u64,
    pub bytes_per_step: f64,
    /// Share of the time in which a rank did nothing but exchange and wait for others.
    pub share: f64,
    /// The rank for which the others waited most often.
    pub slowest: u64,
}

/// A line of `profile.json`.
#[derive(Serialize)]
pub struct KernelTime {
    pub name: String,
    pub launches: u64,
    pub seconds: f64,
}

/// Everything but the spectra.
pub fn gather(path: &Path) -> Result<RunData, Failure> {
    let config = Config::load(Some(&path.join(paths::CONFIG)), &[])?;
    let rows = rows(&path.join(paths::METRICS))?;
    let name = path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned());
    let mut data = of_rows(name, config.keys(), &rows, POINTS);
    data.path = path.to_owned();
    data.kernels = kernels(path)?;
    if data.gamma.is_empty() {
        data.gamma = gamma_of_checkpoints(path)?;
    }
    Ok(data)
}

/// What the ranks have exchanged, over the lines in a row with as many ranks as the last one.
fn ranks_of_metrics(rows: &[Value]) -> Option<Ranks> {
    let exchanged = |row: &Value| serde_json::from_value::<Exchanged>(row["ranks"].clone()).ok();
    let count = exchanged(rows.last()?)?.count;
    let (mut bytes, mut seconds, mut steps, mut time) = (0.0, 0.0, 0_u64, 0.0);
    let mut slowest: BTreeMap<u64, u64> = BTreeMap::new();
    for (before, row) in rows.iter().zip(rows.iter().skip(1)).rev() {
        let Some(found) = exchanged(row).filter(|found| found.count == count) else { break };
        bytes += found.bytes as f64;
        seconds += found.seconds;
        steps = steps.checked_add(row["step"].as_u64()?.checked_sub(before["step"].as_u64()?)?)?;
        time += row["seconds"].as_f64()? - before["seconds"].as_f64()?;
        *slowest.entry(found.slowest).or_default() += 1;
    }
    let (slowest, _) = slowest.into_iter().max_by_key(|(_, lines)| *lines)?;
    Some(Ranks { count, bytes_per_step: bytes / steps.max(1) as f64, share: seconds / time.max(1e-9), slowest })
}

/// What the lines of a run's metrics show, its training in at most `points` points.
pub fn of_rows(name: String, config: BTreeMap<String, String>, rows: &[Value], points: usize) -> RunData {
    let all: Vec<Point> = rows.iter().filter_map(Point::of).collect();
    let joined = all.len().div_ceil(points).max(1);
    let train = thinned(&all, joined);
    RunData {
        name,
        smoothed: smoothed(&train),
        validation: all.iter().filter(|point| point.val_loss.is_some()).cloned().collect(),
        peak_memory_bytes: rows.iter().filter_map(|row| row["memory_bytes"].as_u64()).max().unwrap_or(0),
        gamma: gamma_of_metrics(rows),
        condition: conditions_of_metrics(rows),
        ranks: ranks_of_metrics(rows),
        config,
        train,
        joined,
        ..RunData::default()
    }
}

/// The lines of metrics.
pub fn rows(path: &Path) -> Result<Vec<Value>, Failure> {
    let line = |(number, line): (usize, &Vec<u8>)| {
        let wrong = |found: String| {
            Failure::other(format!("{}: line {number}: found {found}, expected a line of metrics", path.display()))
        };
        let row: Value = serde_json::from_slice(line).map_err(|error| wrong(error.to_string()))?;
        let complete = Point::of(&row).is_some();
        if complete { Ok(row) } else { Err(wrong("no step, tokens, seconds, loss, grad_norm, lr or tokens_per_second".into())) }
    };
    (1..).zip(&read_lines(path)?).map(line).collect()
}

/// The layer and the kind of a matrix, without `.weight`.
fn place(name: &str) -> Option<(usize, String)> {
    spectra::place(name).map(|(layer, kind)| (layer, kind.to_owned()))
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// From the lines of `train.log_layers_every`: `layers.gamma` holds the values of each PC layer by the name of its matrix.
fn gamma_of_metrics(rows: &[Value]) -> Vec<Gamma> {
    let mut found: BTreeMap<String, Gamma> = BTreeMap::new();
    for row in rows {
        for (name, values) in row["layers"]["gamma"].as_object().into_iter().flatten() {
            let values: Vec<f64> = values.as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
            let (Some((layer, kind)), Some(step), false) = (place(name), row["step"].as_u64(), values.is_empty()) else {
                continue;
            };
            let entry = found.entry(name.clone()).or_insert(Gamma { layer, kind, steps: Vec::new(), values: Vec::new() });
            entry.steps.push(step);
            entry.values.push(mean(&values));
        }
    }
    sorted(found)
}

fn gamma_of_checkpoints(path: &Path) -> Result<Vec<Gamma>, Failure> {
    let mut found: BTreeMap<String, Gamma> = BTreeMap::new();
    for step in paths::checkpoints(path)? {
        let file = Reader::open(&paths::checkpoint(path, step).join(checkpoint::MODEL))?;
        for name in file.names() {
            let Some((stem, (layer, kind))) =
                name.strip_suffix(PC_GAMMA).and_then(|name| name.strip_suffix('.')).and_then(|stem| Some((stem, place(stem)?)))
            else {
                continue;
            };
            let values: Vec<f64> = file.values(&name)?.into_iter().map(f64::from).collect();
            let entry = found.entry(stem.to_owned()).or_insert(Gamma { layer, kind, steps: Vec::new(), values: Vec::new() });
            entry.steps.push(step);
            entry.values.push(mean(&values));
        }
    }
    Ok(sorted(found))
}

fn sorted(found: BTreeMap<String, Gamma>) -> Vec<Gamma> {
    let mut list: Vec<Gamma> = found.into_values().collect();
    list.sort_by(|a, b| (a.layer, &a.kind).cmp(&(b.layer, &b.kind)));
    list
}

/// From the lines of `train.log_spectrum_every`.
fn conditions_of_metrics(rows: &[Value]) -> Vec<Condition> {
    let condition = |row: &Value| {
        let gmcn = serde_json::from_value(row.get("gmcn")?.clone()).ok()?;
        Some(Condition { step: row["step"].as_u64()?, gmcn, raw: None })
    };
    rows.iter().filter_map(condition).collect()
}

/// `profile.json`, written by `train --profile`; empty if it does not exist.
fn kernels(path: &Path) -> Result<Vec<KernelTime>, Failure> {
    let path = path.join("profile.json");
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let found: BTreeMap<String, (u64, f64)> = files::read_json(&path)?;
    let mut list: Vec<KernelTime> =
        found.into_iter().map(|(name, (launches, seconds))| KernelTime { name, launches, seconds }).collect();
    list.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    Ok(list)
}

/// Adds the spectra of the newest checkpoint and the condition numbers of all. Opens the device only if there are checkpoints.
pub fn with_spectra(mut runs: Vec<RunData>, open: impl FnOnce() -> Result<Gpu, Failure>) -> Result<Vec<RunData>, Failure> {
    let steps = runs.iter().map(|run| paths::checkpoints(&run.path)).collect::<Result<Vec<_>, _>>()?;
    if steps.iter().all(Vec::is_empty) {
        return Ok(runs);
    }
    let gpu = open()?;
    for run in &mut runs {
        add_spectra(&gpu, run)?;
    }
    Ok(runs)
}

fn add_spectra(gpu: &Gpu, data: &mut RunData) -> Result<(), Failure> {
    let steps = paths::checkpoints(&data.path)?;
    if steps.is_empty() {
        output::note(&format!("note: {} has no checkpoint, so the report has no spectra of it", data.path.display()));
    }
    for step in steps {
        let found = spectrum::of_checkpoint(gpu, &data.path, Some(step))?;
        data.condition.retain(|condition| condition.step != step);
        data.condition.push(Condition { step, gmcn: found.gmcn, raw: Some(found.gmcn_raw.all) });
        let spectra = found.matrices.into_iter().map(|matrix| {
            let (layer, kind) = matrix.place();
            MatrixSpectra {
                layer,
                kind: kind.to_owned(),
                raw_condition: matrix.raw.modified_condition,
                effective_condition: matrix.effective.as_ref().map(|spectrum| spectrum.modified_condition),
                effective: matrix.effective.map(|spectrum| spectrum.quantiles),
                raw: matrix.raw.quantiles,
            }
        });
        data.spectra = spectra.collect();
    }
    data.condition.sort_by_key(|condition| condition.step);
    Ok(())
}

#[cfg(test)]
pub mod tests {
    use serde_json::json;

    use super::*;

    /// A run of two points with everything that a page can show.
    pub fn example(name: &str) -> RunData {
        let point = |step: u64, loss: f64| Point { step, tokens: 100 * step, loss, val_loss: Some(loss), ..Point::default() };
        RunData {
            name: name.to_owned(),
            train: vec![point(1, 5.0), point(2, 4.0)],
            smoothed: vec![5.0, 4.0],
            validation: vec![point(1, 5.0), point(2, 4.0)],
            joined: 1,
            gamma: vec![Gamma { layer: 0, kind: "o".into(), steps: vec![2], values: vec![1.5] }],
            ..RunData::default()
        }
    }

    #[test]
    fn layers_in_the_metrics_become_curves() {
        let row = |step: u64, gamma: f64| json!({"step": step, "layers": {"gamma": {"model.layers.1.mlp.up_proj": [gamma, gamma + 1.0]}}});
        let found = gamma_of_metrics(&[row(1, 1.0), json!({"step": 2}), row(3, 2.0)]);
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].layer, found[0].kind.as_str(), &found[0].steps[..], &found[0].values[..]),
            (1, "up", &[1, 3][..], &[1.5, 2.5][..])
        );
    }

    #[test]
    fn a_line_that_is_no_metrics_is_named() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("metrics.jsonl");
        let good = r#"{"step":1,"tokens":2,"seconds":1,"loss":5,"grad_norm":1,"lr":0.1,"tokens_per_second":9}"#;
        for bad in ["{", "{\"step\": 2}", "[]"] {
            std::fs::write(&path, format!("{good}\n{bad}\n")).expect("it is written");
            let failure = rows(&path).expect_err("a bad line");
            assert!(failure.to_string().contains("metrics.jsonl: line 2: found "), "{failure}");
        }
    }

    #[test]
    fn ranks_are_summed_up_over_the_last_lines() {
        let row = |step: u64, ranks: Value| serde_json::json!({ "step": step, "seconds": step as f64, "ranks": ranks });
        let of =
            |count: u64, slowest: u64| serde_json::json!({ "count": count, "bytes": 30, "seconds": 0.25, "slowest": slowest });
        let rows = [row(1, of(4, 3)), row(2, of(2, 1)), row(4, of(2, 0)), row(5, of(2, 1)), row(6, of(2, 1))];
        let found = ranks_of_metrics(&rows).expect("ranks");
        assert_eq!(found, Ranks { count: 2, bytes_per_step: 24.0, share: 0.2, slowest: 1 });
        assert_eq!(ranks_of_metrics(&[row(1, of(2, 0)), row(2, Value::Null)]), None, "a single process trained it last");
        assert_eq!(ranks_of_metrics(&rows[..1]), None, "too few lines");
    }
}
