//! A run's folder: `config.toml` (resolved), `metrics.jsonl`, TensorBoard's events, `tokenizer.json`, `log.txt`, `checkpoints/step-N/`
//! and `lock`, held by the training process.
//!
//! `config.toml` is written last, so that a folder with one can be resumed.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use polytape::gpu::ProfileTable;

use super::events::{self, Events};
use super::files;
use super::metrics::{self, Metrics};
use super::paths::{self, NewRun};
use crate::config::Config;
use crate::terminal::failure::Failure;

/// The folder of a run that this process trains.
pub struct Run {
    path: PathBuf,
    metrics: File,
    log: File,
    events: Events,
    /// Released when the process ends, even if it is killed.
    _lock: File,
}

/// A run's folder, locked by this process.
pub struct Locked {
    path: PathBuf,
    lock: File,
}

/// How long a killed process may take to release its lock.
const TIMEOUT: Duration = Duration::from_secs(2);

impl Locked {
    /// Takes the folder's lock; fails if another process holds it.
    pub fn new(path: &Path) -> Result<Self, Failure> {
        let file = path.join("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&file);
        let lock = lock.map_err(|error| Failure::io("open", &file, &error))?;
        let asked = Instant::now();
        let mut taken = lock.try_lock();
        while matches!(taken, Err(TryLockError::WouldBlock)) && asked.elapsed() < TIMEOUT {
            std::thread::sleep(Duration::from_millis(50));
            taken = lock.try_lock();
        }
        match taken {
            Ok(()) => Ok(Self { path: path.to_owned(), lock }),
            Err(TryLockError::WouldBlock) => {
                Err(Failure::other(format!("{}: found another process that trains it, expected none", path.display()))
                    .hint("wait until it ends, or begin another run"))
            }
            Err(TryLockError::Error(error)) => Err(Failure::io("lock", &file, &error)),
        }
    }

    /// Opens the run after `step` steps: truncates metrics and events that lie beyond.
    pub fn open(self, step: u64) -> Result<Run, Failure> {
        metrics::cut(&self.path.join(paths::METRICS), step)?;
        events::cut(&self.path, step)?;
        let append = |name: &str| {
            let file = self.path.join(name);
            let opened = OpenOptions::new().create(true).append(true).open(&file);
            opened.map_err(|error| Failure::io("open", &file, &error))
        };
        let (metrics, log) = (append(paths::METRICS)?, append("log.txt")?);
        let events = Events::create(&self.path, step, now())?;
        Ok(Run { metrics, log, events, path: self.path, _lock: self.lock })
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

impl Run {
    /// Creates the folder; [`Run::write_config`] completes it.
    pub fn create(new: &NewRun) -> Result<Self, Failure> {
        let path = new.create()?;
        Locked::new(&path)?.open(0)
    }

    /// Writes the resolved configuration atomically.
    pub fn write_config(&self, config: &Config) -> Result<(), Failure> {
        files::replace(&self.path.join(paths::CONFIG), config.to_toml().as_bytes())
    }

    /// Writes `profile.json`: launches and seconds per kernel, for `report`.
    pub fn write_profile(&self, table: &ProfileTable) -> Result<(), Failure> {
        let kernels: BTreeMap<&str, (u64, f64)> =
            table.kernels.iter().map(|(name, time)| (*name, (time.dispatches, time.seconds))).collect();
        let json = serde_json::to_string_pretty(&kernels).expect("bug: the profile does not serialise");
        files::replace(&self.path.join("profile.json"), json.as_bytes())
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a line to `metrics.jsonl` and an event for TensorBoard, unbuffered, so that they survive a crash of the process.
    pub fn record(&mut self, row: &Metrics) -> Result<(), Failure> {
        let line = serde_json::to_string(row).expect("bug: metrics do not serialise");
        append(&mut self.metrics, &line, &self.path.join(paths::METRICS))?;
        self.events.scalars(now(), row.step, &row.scalars())
    }

    /// Syncs the metrics to disk: a checkpoint must not be newer than they are.
    pub fn sync(&self) -> Result<(), Failure> {
        let path = self.path.join(paths::METRICS);
        self.metrics.sync_data().map_err(|error| Failure::io("write", &path, &error))
    }

    /// Appends a line to `log.txt`.
    pub fn log(&mut self, line: &str) -> Result<(), Failure> {
        append(&mut self.log, line, &self.path.join("log.txt"))
    }
}

fn append(file: &mut File, line: &str, path: &Path) -> Result<(), Failure> {
    file.write_all(format!("{line}\n").as_bytes()).map_err(|error| Failure::io("write", path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::metrics::read_metrics;

    fn row(step: u64, val_loss: Option<f64>) -> Metrics {
        Metrics { step, loss: 5.25, lr: 3e-4, val_loss, ..Metrics::default() }
    }

    #[test]
    fn a_run_folder_holds_what_was_recorded() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("runs").join("demo-1");
        let new = NewRun::At(path.clone());
        let mut run = Run::create(&new).expect("a new folder");
        run.write_config(&Config::default()).expect("it is written");
        let rows = [row(1, None), row(2, Some(5.5))];
        for row in &rows {
            run.record(row).expect("it is written");
        }
        run.log("begun").expect("it is written");
        assert_eq!(read_metrics(run.path()).expect("metrics"), rows);
        assert_eq!(Config::load(Some(&path.join("config.toml")), &[]).expect("a configuration"), Config::default());
        assert_eq!(std::fs::read_to_string(path.join("log.txt")).expect("a log"), "begun\n");
        let failure = Run::create(&new).err().expect("it exists already");
        assert_eq!(failure.status, 2);
    }

    #[test]
    fn going_on_cuts_what_lies_beyond_the_checkpoint() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("run");
        let mut run = Run::create(&NewRun::At(path.clone())).expect("a new folder");
        (1..=9).for_each(|step| run.record(&row(step, None)).expect("it is written"));
        run.metrics.write_all(b"{\"step\": 10, \"tok").expect("half a line");
        assert!(Locked::new(&path).err().expect("it is taken").to_string().contains("another process"));
        drop(run);
        let rows = |step: u64| {
            let mut run = Locked::new(&path).and_then(|locked| locked.open(step)).expect("a run");
            run.record(&row(step + 1, None)).expect("it is written");
            read_metrics(&path).expect("metrics").iter().map(|row| row.step).collect::<Vec<_>>()
        };
        let read = || read_metrics(&path).expect("metrics").len();
        assert_eq!(read(), 9, "the half line is left out");
        assert_eq!(rows(9), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        // Only the newline is missing: the line is whole.
        let whole = std::fs::read(path.join("metrics.jsonl")).expect("metrics");
        std::fs::write(path.join("metrics.jsonl"), &whole[..whole.len() - 1]).expect("it is written");
        assert_eq!(read(), 10);
        assert_eq!(rows(10), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
        // Cut within a character, as a file that is not UTF-8.
        std::fs::write(path.join("metrics.jsonl"), [&whole[..], b"{\"\xc3"].concat()).expect("it is written");
        assert_eq!(read(), 10);
        assert_eq!(rows(4), [1, 2, 3, 4, 5]);
        assert_eq!(rows(0), [1]);
        std::fs::write(path.join("metrics.jsonl"), "{}\n").expect("it is written");
        let failure = Locked::new(&path).and_then(|locked| locked.open(4)).err().expect("foreign lines");
        assert!(failure.to_string().contains("metrics.jsonl: line 1: found missing field"), "{failure}");
    }
}
