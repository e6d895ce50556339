//! One run of a study, by the program's own training: begun, resumed or, if it is finished, left alone.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use polytape::Gpu;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::arms::Spec;
use crate::config::{self, Config, differences};
use crate::run::files;
use crate::run::metrics::read_metrics;
use crate::run::paths::{self, NewRun};
use crate::terminal::failure::Failure;
use crate::terminal::output;
use crate::train::{self, World};

/// What a run's `outcome.json` says; a run without one is not finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The step at which its numbers left the range of f32, if they did.
    pub diverged_at: Option<u64>,
}

/// The status of a run after [`train`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stand {
    Finished(Outcome),
    /// The user stopped it: it can be resumed.
    Interrupted,
}

/// The folder of a run.
pub fn folder(out: &Path, spec: &Spec) -> PathBuf {
    out.join("runs").join(spec.name())
}

/// The outcome of a run that is finished.
pub fn outcome(folder: &Path) -> Result<Option<Outcome>, Failure> {
    let file = folder.join("outcome.json");
    if file.is_file() { files::read_json(&file).map(Some) } else { Ok(None) }
}

/// Trains a run to its end, from where it stands. A run of another configuration in its place is refused.
pub fn train(gpu: &Gpu, folder: &Path, config: Config) -> Result<Stand, Failure> {
    let has_begun = folder.join(paths::CONFIG).is_file();
    if has_begun {
        check_same(folder, &config)?;
    }
    if let Some(outcome) = outcome(folder)? {
        return Ok(Stand::Finished(outcome));
    }
    let (open, world) = (|| Ok(gpu.clone()), Rc::new(World::single()?));
    let mut session = if has_begun {
        train::resume(folder, &[], None, false, world, open)?
    } else {
        // A process that was killed before its run began leaves a folder without configuration.
        if folder.symlink_metadata().is_ok() {
            std::fs::remove_dir_all(folder).map_err(|error| Failure::io("remove", folder, &error))?;
        }
        let out = NewRun::At(folder.to_owned());
        train::begin(train::Request { config, out, init: None, peak_tflops: None, ignore_tokenizer: false, world }, open)?
    };
    session.announce()?;
    let diverged_at = match session.train() {
        Ok(()) => {
            session.finish(false)?;
            if !session.is_done() {
                return Ok(Stand::Interrupted);
            }
            None
        }
        Err(failure) if failure.has_diverged => {
            output::note(&format!("diverged, which this study counts as a result: {failure}"));
            Some(read_metrics(folder)?.last().map_or(0, |row| row.step) + 1)
        }
        Err(failure) => return Err(failure),
    };
    let outcome = Outcome { diverged_at };
    let json = serde_json::to_string(&outcome).expect("bug: an outcome does not serialise");
    files::replace(&folder.join("outcome.json"), json.as_bytes())?;
    Ok(Stand::Finished(outcome))
}

/// A measurement of a finished run: taken once, and kept in its folder.
pub fn measured<T: Serialize + DeserializeOwned>(
    file: &Path,
    measure: impl FnOnce() -> Result<T, Failure>,
) -> Result<T, Failure> {
    if file.is_file() {
        return files::read_json(file);
    }
    let found = measure()?;
    let json = serde_json::to_string(&found).expect("bug: a measurement does not serialise");
    files::replace(file, json.as_bytes())?;
    Ok(found)
}

fn check_same(folder: &Path, wanted: &Config) -> Result<(), Failure> {
    let file = folder.join(paths::CONFIG);
    let found = Config::load(Some(&file), &[])?.keys();
    let differing = differences(&found, &wanted.keys());
    let Some(first) = differing.first() else { return Ok(()) };
    let (found, expected) = (config::shown(first.found.as_ref()), config::shown(first.expected.as_ref()));
    Err(Failure::other(format!("{}: found {} = {found}, expected this study's {expected}", file.display(), first.key))
        .hint("another --out begins a new study"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_of_another_configuration_is_refused_by_its_key() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let config = |steps: u64| Config::load(None, &[format!("train.steps={steps}")]).expect("a good configuration");
        std::fs::write(folder.path().join("config.toml"), config(7).to_toml()).expect("it is written");
        assert!(check_same(folder.path(), &config(7)).is_ok());
        let failure = check_same(folder.path(), &config(8)).expect_err("other steps").to_string();
        assert!(failure.contains("config.toml: found train.steps = 7, expected this study's 8"), "{failure}");
    }

    #[test]
    fn only_a_written_outcome_finishes_a_run() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        assert_eq!(outcome(folder.path()).expect("none"), None);
        std::fs::write(folder.path().join("outcome.json"), r#"{"diverged_at":41}"#).expect("it is written");
        assert_eq!(outcome(folder.path()).expect("one"), Some(Outcome { diverged_at: Some(41) }));
    }
}
