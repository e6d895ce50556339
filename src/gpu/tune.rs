//! Choosing between kernels that give the same bits, by trying each once for a class of shapes.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use super::device::Gpu;
use crate::error::Result;

/// Whether a device tries out which of its kernels is fastest. All that it chooses between give the same bits.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Tuning {
    /// No: by rule, from the shape.
    #[default]
    Off,
    /// On the first use of each class of shapes, anew in every process.
    Process,
    /// As [`Tuning::Process`], but what was found is kept in this file, for the next process on the same adapter and driver. A
    /// file of another is replaced.
    File(PathBuf),
}

/// What was found so far.
pub(super) struct Tuner {
    tuning: Tuning,
    /// First line of the file: what the choices hold for.
    header: String,
    choices: Mutex<BTreeMap<String, String>>,
    warn: fn(&str),
}

/// Tries of each candidate, of which the fastest counts.
const TRIES: usize = 3;

impl Tuner {
    /// `adapter` names the adapter, its driver and its kernels.
    pub(super) fn new(tuning: Tuning, adapter: &str, warn: fn(&str)) -> Self {
        let header = format!("polytape {} {adapter}", env!("CARGO_PKG_VERSION"));
        let known = match &tuning {
            Tuning::File(path) => read(path, &header, warn),
            _ => BTreeMap::new(),
        };
        Self { tuning, header, choices: Mutex::new(known), warn }
    }

    fn choices(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.choices.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn keep(&self, class: &str, name: &str) {
        let mut choices = self.choices();
        choices.insert(class.to_owned(), name.to_owned());
        let Tuning::File(path) = &self.tuning else { return };
        let mut text = self.header.clone() + "\n";
        for (class, name) in choices.iter() {
            let _ = writeln!(text, "{class} = {name}"); // a String takes everything
        }
        if let Err(error) = write(path, &text) {
            (self.warn)(&format!("{}: the choice of kernels cannot be kept: {error}", path.display()));
        }
    }
}

/// Replaces the file in one step: another process may read it.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let partial = path.with_extension(format!("{}.partial", std::process::id()));
    std::fs::write(&partial, text)?;
    std::fs::rename(&partial, path)
}

/// The choices in the file: none where it is not there or is another adapter's.
fn read(path: &Path, header: &str, warn: fn(&str)) -> BTreeMap<String, String> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return BTreeMap::new(),
        Err(error) => {
            warn(&format!("{}: the choice of kernels cannot be read: {error}", path.display()));
            return BTreeMap::new();
        }
    };
    let mut lines = text.lines();
    if lines.next() != Some(header) {
        return BTreeMap::new();
    }
    lines.filter_map(|line| line.split_once(" = ")).map(|(class, name)| (class.to_owned(), name.to_owned())).collect()
}

impl Gpu {
    /// The place of the fastest of `candidates` for a class of shapes: the first without tuning, and where there is one. `run`
    /// records the work by a candidate; its results are thrown away.
    pub(crate) fn fastest(&self, class: &str, candidates: &[&str], run: impl Fn(usize) -> Result<()>) -> Result<usize> {
        let tuner = &self.inner.tuner;
        if tuner.tuning == Tuning::Off || candidates.len() == 1 {
            return Ok(0);
        }
        let known = tuner.choices().get(class).and_then(|name| candidates.iter().position(|candidate| candidate == name));
        if let Some(known) = known {
            return Ok(known);
        }
        let timed = |candidate: usize| -> Result<f64> {
            let start = Instant::now();
            run(candidate)?;
            self.synchronize()?;
            Ok(start.elapsed().as_secs_f64())
        };
        let mut best = (0, f64::INFINITY);
        self.synchronize()?;
        for candidate in 0..candidates.len() {
            timed(candidate)?; // compiles
            for _ in 0..TRIES {
                let seconds = timed(candidate)?;
                if seconds < best.1 {
                    best = (candidate, seconds);
                }
            }
        }
        tuner.keep(class, candidates[best.0]);
        Ok(best.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_warning(line: &str) {
        panic!("a warning: {line}");
    }

    #[test]
    fn choices_are_kept_for_the_same_adapter_only() {
        let path = std::env::temp_dir().join(format!("polytape-tuning-{}", std::process::id())).join("choices");
        let open = |adapter| Tuner::new(Tuning::File(path.clone()), adapter, no_warning);
        open("one").keep("NT 1024", "128");
        open("one").keep("NN 64", "64");
        let again = open("one").choices().clone();
        assert_eq!(again, BTreeMap::from([("NT 1024", "128"), ("NN 64", "64")].map(|(a, b)| (a.to_owned(), b.to_owned()))));
        assert!(open("another").choices().is_empty());
        std::fs::write(&path, "foreign text\nNT 1024 = 128\n").expect("a file");
        assert!(open("one").choices().is_empty());
        std::fs::remove_dir_all(path.parent().expect("a folder")).expect("the folder goes");
    }

    #[test]
    fn a_file_that_cannot_be_written_is_told() {
        fn expected(line: &str) {
            assert!(line.contains("cannot be kept") || line.contains("cannot be read"), "{line}");
        }
        // A file where a folder would have to be.
        let blocked = std::env::current_exe().expect("a path").join("choices");
        Tuner::new(Tuning::File(blocked), "one", expected).keep("NT 1024", "128");
    }
}
