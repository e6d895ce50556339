//! Autotuning: picks the fastest of several kernels with identical results, once per shape class.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use super::device::Gpu;
use crate::error::{Error, Result};
use crate::files;

/// Autotuning mode. All candidates give the same bits, so tuning never changes results.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Tuning {
    /// Off: a heuristic picks by shape.
    #[default]
    Off,
    /// Tune at the first use of each shape class, in every process.
    Process,
    /// As [`Tuning::Process`], with the choices cached in this folder: one file per adapter, driver, kernel tier and version of
    /// this crate.
    Folder(PathBuf),
}

/// Choices made so far.
pub(super) struct Tuner {
    is_on: bool,
    file: Option<PathBuf>,
    choices: Mutex<BTreeMap<String, String>>,
    warn: fn(&str),
}

/// Timed runs per candidate; the fastest counts.
const TRIES: usize = 3;
/// First line of a file.
const HEADER: &str = "polytape: the fastest kernels by class of shapes";

impl Tuner {
    /// `device` identifies adapter, driver and tier.
    pub(super) fn new(tuning: &Tuning, device: &str, warn: fn(&str)) -> Self {
        let file = match tuning {
            Tuning::Folder(folder) => Some(folder.join(file_name(device))),
            _ => None,
        };
        let known = file.as_ref().map_or_else(BTreeMap::new, |path| read(path, warn));
        Self { is_on: *tuning != Tuning::Off, file, choices: Mutex::new(known), warn }
    }

    fn choices(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.choices.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn keep(&self, class: &str, name: &str) {
        let mut choices = self.choices();
        choices.insert(class.to_owned(), name.to_owned());
        let Some(path) = &self.file else { return };
        if let Err(error) = write(path, &choices) {
            (self.warn)(&format!("cannot write the tuning cache {error}"));
        }
    }
}

/// The device as a file name: runs of other than letters and digits become hyphens.
fn file_name(device: &str) -> String {
    let text = format!("polytape {} {device}", env!("CARGO_PKG_VERSION")).to_lowercase();
    let words: Vec<&str> = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    words.join("-") + ".txt"
}

/// Replaces the file atomically, since other processes may read or write it.
fn write(path: &Path, choices: &BTreeMap<String, String>) -> Result<()> {
    let io = |source| Error::Io { path: path.to_path_buf(), source };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(io)?;
    }
    let lines: String = choices.iter().map(|(class, name)| format!("{class} = {name}\n")).collect();
    let text = format!("{HEADER}\n{lines}");
    static WRITES: AtomicU64 = AtomicU64::new(0); // several devices of a process may write, too
    let suffix = format!("{}-{}.partial", std::process::id(), WRITES.fetch_add(1, Ordering::Relaxed));
    files::replace(path, &suffix, |file| file.write_all(text.as_bytes()).map_err(io))
}

/// Reads the cached choices; empty if there is no file yet.
fn read(path: &Path, warn: fn(&str)) -> BTreeMap<String, String> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return BTreeMap::new(),
        Err(error) => {
            warn(&format!("cannot read the tuning cache {}: {error}", path.display()));
            return BTreeMap::new();
        }
    };
    let mut lines = text.lines();
    let choices = lines.next().filter(|first| *first == HEADER).and_then(|_| {
        let pair = |line: &str| line.split_once(" = ").map(|(class, name)| (class.to_owned(), name.to_owned()));
        lines.map(pair).collect()
    });
    choices.unwrap_or_else(|| {
        warn(&format!("{}: not a tuning cache, will be replaced", path.display()));
        BTreeMap::new()
    })
}

impl Gpu {
    /// Whether kernels are timed: without, [`Gpu::tuned`] need not be asked.
    pub(crate) fn tunes(&self) -> bool {
        self.inner.tuner.is_on
    }

    /// Index of the fastest of `candidates` for a shape class; 0 without tuning. `run` records the work with a candidate; its
    /// output is discarded.
    pub(crate) fn tuned(&self, class: &str, candidates: &[String], run: impl Fn(usize) -> Result<()>) -> Result<usize> {
        if self.inner.is_rehearsal {
            return self.without_rehearsing(|| (0..candidates.len()).try_for_each(run).map(|()| 0));
        }
        let tuner = &self.inner.tuner;
        if !tuner.is_on {
            return Ok(0);
        }
        let known = tuner.choices().get(class).and_then(|name| candidates.iter().position(|candidate| candidate == name));
        if let Some(known) = known {
            return Ok(known);
        }
        match self.fastest(candidates.len(), run) {
            // No memory for a trial output: use the heuristic until a later call can measure.
            Err(Error::OutOfMemory { .. }) => Ok(0),
            Err(error) => Err(error),
            Ok(best) => {
                tuner.keep(class, &candidates[best]);
                Ok(best)
            }
        }
    }

    fn fastest(&self, candidates: usize, run: impl Fn(usize) -> Result<()>) -> Result<usize> {
        let timed = |candidate: usize| -> Result<f64> {
            let start = Instant::now();
            run(candidate)?;
            self.synchronize()?;
            Ok(start.elapsed().as_secs_f64())
        };
        let mut best = (0, f64::INFINITY);
        self.synchronize()?;
        for candidate in 0..candidates {
            timed(candidate)?; // compiles
        }
        for _ in 0..TRIES {
            for candidate in 0..candidates {
                let seconds = timed(candidate)?;
                if seconds < best.1 {
                    best = (candidate, seconds);
                }
            }
        }
        Ok(best.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_warning(line: &str) {
        panic!("a warning: {line}");
    }

    fn expected_warning(line: &str) {
        assert!(["cannot write", "cannot read", "will be replaced"].iter().any(|part| line.contains(part)), "{line}");
    }

    #[test]
    fn choices_are_kept_for_the_same_device_only() {
        let folder = std::env::temp_dir().join(format!("polytape-tuning-{}", std::process::id()));
        let tuning = Tuning::Folder(folder.join("new"));
        let open = |device| Tuner::new(&tuning, device, no_warning);
        open("one (22.3), portable").keep("NT 1024", "128 x 128");
        open("one (22.3), portable").keep("NN 64", "64 x 64");
        let again = open("one (22.3), portable").choices().clone();
        let want = [("NT 1024", "128 x 128"), ("NN 64", "64 x 64")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(again, BTreeMap::from(want));
        assert!(open("one (25.0), portable").choices().is_empty());
        for damaged in ["foreign text\n", &format!("{HEADER}\nno choice\n")] {
            std::fs::write(folder.join("new").join(file_name("one (22.3), portable")), damaged).expect("a file");
            assert!(Tuner::new(&tuning, "one (22.3), portable", expected_warning).choices().is_empty());
        }
        std::fs::remove_dir_all(&folder).expect("the folder goes");
    }

    #[test]
    fn a_cache_that_cannot_be_written_is_told_and_leaves_nothing() {
        // A file where the folder would have to be.
        let blocked = Tuning::Folder(std::env::current_exe().expect("a path"));
        Tuner::new(&blocked, "one", expected_warning).keep("NT 1024", "128 x 128");
        // A folder where the file would have to be.
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join(file_name("one"))).expect("a folder");
        Tuner::new(&Tuning::Folder(folder.path().into()), "one", expected_warning).keep("NT 1024", "128 x 128");
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1, "no partial file is left");
    }
}
