//! A run's folder: `config.toml` (resolved), `metrics.jsonl`, `tokenizer.json`, `log.txt` and `checkpoints/step-N/`.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::failure::Failure;
use crate::progress::grouped;

/// A line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Optimizer steps done, this one included.
    pub step: u64,
    /// Tokens trained on so far.
    pub tokens: u64,
    /// Mean loss of the step, in nats per token.
    pub loss: f64,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate that the step used.
    pub lr: f64,
    pub tokens_per_second: f64,
    /// Training time so far.
    pub seconds: f64,
    /// Device memory in use at its peak.
    pub memory_bytes: u64,
    /// On validation steps only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_loss: Option<f64>,
}

impl Metrics {
    /// What a progress line says of the step.
    pub fn summary(&self) -> String {
        let speed = grouped(self.tokens_per_second.round() as u64);
        match self.val_loss {
            Some(val_loss) => format!("loss {:.4}  validation {val_loss:.4}  {speed} tokens/s", self.loss),
            None => format!("loss {:.4}  {speed} tokens/s", self.loss),
        }
    }
}

/// The folder of a run that is being written.
pub struct Run {
    path: PathBuf,
    metrics: File,
    log: File,
}

impl Run {
    /// Makes the folder with the resolved configuration and the tokenizer, if there is one. A folder that exists already
    /// is a usage error.
    pub fn create(path: &Path, config: &Config, tokenizer: Option<&Path>) -> Result<Self, Failure> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|error| Failure::io("create", parent, &error))?;
        }
        std::fs::create_dir(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => {
                Failure::usage(format!("--out {}: found it exists already, expected a new folder", path.display()))
            }
            _ => Failure::io("create", path, &error),
        })?;
        let file = path.join("config.toml");
        std::fs::write(&file, config.to_toml()).map_err(|error| Failure::io("write", &file, &error))?;
        if let Some(tokenizer) = tokenizer {
            let copy = path.join("tokenizer.json");
            std::fs::copy(tokenizer, &copy).map_err(|error| Failure::io("copy", tokenizer, &error))?;
        }
        let create = |name: &str| {
            let file = path.join(name);
            File::create(&file).map_err(|error| Failure::io("create", &file, &error))
        };
        Ok(Self { path: path.to_owned(), metrics: create("metrics.jsonl")?, log: create("log.txt")? })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a line to `metrics.jsonl`, at once, so that it survives whatever happens to the process.
    pub fn record(&mut self, row: &Metrics) -> Result<(), Failure> {
        let line = serde_json::to_string(row).expect("bug: metrics do not serialise");
        append(&mut self.metrics, &line, &self.path.join("metrics.jsonl"))
    }

    /// Appends a line to `log.txt`.
    pub fn log(&mut self, line: &str) -> Result<(), Failure> {
        append(&mut self.log, line, &self.path.join("log.txt"))
    }
}

fn append(file: &mut File, line: &str, path: &Path) -> Result<(), Failure> {
    file.write_all(format!("{line}\n").as_bytes()).map_err(|error| Failure::io("write", path, &error))
}

/// Where the checkpoint after `step` steps lies.
pub fn checkpoint(run: &Path, step: u64) -> PathBuf {
    run.join("checkpoints").join(format!("step-{step}"))
}

/// The steps of a run's checkpoints, ascending.
pub fn checkpoints(run: &Path) -> Vec<u64> {
    numbered(&run.join("checkpoints"), "step-")
}

/// All lines of a run's `metrics.jsonl`.
pub fn read_metrics(run: &Path) -> Result<Vec<Metrics>, Failure> {
    let path = run.join("metrics.jsonl");
    let file = File::open(&path).map_err(|error| Failure::io("read", &path, &error))?;
    let mut rows = Vec::new();
    for (number, line) in (1..).zip(BufReader::new(file).lines()) {
        let line = line.map_err(|error| Failure::io("read", &path, &error))?;
        let row = serde_json::from_str(&line).map_err(|error| {
            Failure::other(format!("{}: line {number}: found {error}, expected a line of metrics", path.display()))
        })?;
        rows.push(row);
    }
    Ok(rows)
}

/// The next free `runs/NAME-N`, NAME after the configuration's file.
pub fn next_path(config: Option<&Path>) -> PathBuf {
    let name = config.and_then(Path::file_stem).map_or("run".into(), |stem| stem.to_string_lossy());
    next_numbered(Path::new("runs"), &name)
}

/// `folder/NAME-N`, N one above the highest that is there.
pub fn next_numbered(folder: &Path, name: &str) -> PathBuf {
    let next = numbered(folder, &format!("{name}-")).last().map_or(1, |highest| highest + 1);
    folder.join(format!("{name}-{next}"))
}

/// The numbers N for which the folder holds `prefixN`, ascending; none if there is no folder.
fn numbered(folder: &Path, prefix: &str) -> Vec<u64> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let number = |name: &str| name.strip_prefix(prefix)?.parse().ok();
    let mut numbers: Vec<u64> = entries.filter_map(|entry| number(entry.file_name().to_str()?)).collect();
    numbers.sort();
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(step: u64, val_loss: Option<f64>) -> Metrics {
        Metrics {
            step,
            tokens: step * 2048,
            loss: 5.25,
            grad_norm: 0.5,
            lr: 3e-4,
            tokens_per_second: 12_345.6,
            seconds: 1.5,
            memory_bytes: 1 << 20,
            val_loss,
        }
    }

    #[test]
    fn a_run_folder_holds_what_was_recorded() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let tokenizer = folder.path().join("given.json");
        std::fs::write(&tokenizer, "{}").expect("it is written");
        let path = folder.path().join("runs").join("demo-1");
        let mut run = Run::create(&path, &Config::default(), Some(&tokenizer)).expect("a new folder");
        let rows = [row(1, None), row(2, Some(5.5))];
        for row in &rows {
            run.record(row).expect("it is written");
        }
        run.log("begun").expect("it is written");
        assert_eq!(read_metrics(run.path()).expect("metrics"), rows);
        assert_eq!(Config::load(Some(&path.join("config.toml")), &[]).expect("a configuration"), Config::default());
        assert_eq!(std::fs::read_to_string(path.join("tokenizer.json")).expect("a copy"), "{}");
        assert_eq!(std::fs::read_to_string(path.join("log.txt")).expect("a log"), "begun\n");
        let failure = Run::create(&path, &Config::default(), None).err().expect("it exists already");
        assert_eq!(failure.status, 2);
    }

    #[test]
    fn a_line_of_metrics_has_the_published_keys() {
        let keys = |row: &Metrics| -> Vec<String> {
            let value = serde_json::to_value(row).expect("JSON");
            value.as_object().expect("an object").keys().cloned().collect()
        };
        let always = ["grad_norm", "loss", "lr", "memory_bytes", "seconds", "step", "tokens", "tokens_per_second"];
        assert_eq!(keys(&row(1, None)), always);
        assert_eq!(keys(&row(1, Some(1.0))).last().map(String::as_str), Some("val_loss"));
        assert_eq!(row(1, Some(6.0)).summary(), "loss 5.2500  validation 6.0000  12,346 tokens/s");
    }

    #[test]
    fn numbers_go_up_from_the_highest() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let next = || next_numbered(folder.path(), "demo");
        assert_eq!(next(), folder.path().join("demo-1"));
        for name in ["demo-2", "demo-10", "demo-x", "other-50"] {
            std::fs::create_dir(folder.path().join(name)).expect("a folder");
        }
        assert_eq!(next(), folder.path().join("demo-11"));
        for step in [500, 20, 1000] {
            std::fs::create_dir_all(checkpoint(folder.path(), step)).expect("a folder");
        }
        assert_eq!(checkpoints(folder.path()), [20, 500, 1000]);
    }
}
