//! Paths of runs and of their checkpoints.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::terminal::failure::Failure;

/// The resolved configuration of a run.
pub const CONFIG: &str = "config.toml";
/// The metrics of a run.
pub const METRICS: &str = "metrics.jsonl";

/// The folder of the checkpoint after `step` steps.
pub fn checkpoint(run: &Path, step: u64) -> PathBuf {
    checkpoints_folder(run).join(format!("step-{step}"))
}

/// The name of a checkpoint while it is being written or deleted.
pub fn unfinished(checkpoint: &Path) -> PathBuf {
    checkpoint.with_extension("partial")
}

/// The folder of a run's checkpoints.
pub fn checkpoints_folder(run: &Path) -> PathBuf {
    run.join("checkpoints")
}

/// The steps of a run's checkpoints, ascending. A folder that cannot be listed is an error: a run that seems to have none would
/// begin anew.
pub fn checkpoints(run: &Path) -> Result<Vec<u64>, Failure> {
    numbered(&checkpoints_folder(run), "step-")
}

/// What to say of a run that has ended early.
pub fn newest(checkpoint: Option<u64>) -> String {
    checkpoint.map_or("there is no checkpoint yet".to_owned(), |step| format!("newest checkpoint: step-{step}"))
}

/// Where a new run goes.
pub enum NewRun {
    /// A folder that must not exist.
    At(PathBuf),
    /// `folder/NAME-N`, with the next free N.
    Numbered { folder: PathBuf, name: String },
}

impl NewRun {
    /// `runs/NAME-N`, NAME being that of the configuration file.
    pub fn next(config: Option<&Path>) -> Self {
        let name = config.and_then(Path::file_stem).map_or("run".into(), |stem| stem.to_string_lossy());
        Self::Numbered { folder: PathBuf::from("runs"), name: name.into_owned() }
    }

    /// Creates the folder, with its parents. Of processes that ask for the same number at once, each gets one of its own.
    pub fn create(&self) -> Result<PathBuf, Failure> {
        let made = |path: &Path| {
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent).map_err(|error| Failure::io("create", parent, &error))?;
            }
            match std::fs::create_dir(path) {
                Ok(()) => Ok(true),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
                Err(error) => Err(Failure::io("create", path, &error)),
            }
        };
        match self {
            Self::At(path) if made(path)? => Ok(path.clone()),
            Self::At(path) => {
                Err(Failure::usage(format!("--out {}: found an existing path, expected a new folder", path.display())))
            }
            Self::Numbered { folder, name } => loop {
                let next = numbered(folder, &format!("{name}-"))?.last().map_or(1, |highest| highest + 1);
                let path = folder.join(format!("{name}-{next}"));
                if made(&path)? {
                    return Ok(path);
                }
            },
        }
    }
}

/// The numbers N for which the folder contains `prefixN`, ascending; none if there is no such folder.
fn numbered(folder: &Path, prefix: &str) -> Result<Vec<u64>, Failure> {
    let unreadable = |error: std::io::Error| Failure::io("list", folder, &error);
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        // A link that leads nowhere is not an absent folder.
        Err(error) if error.kind() == ErrorKind::NotFound && !folder.is_symlink() => return Ok(Vec::new()),
        Err(error) => return Err(unreadable(error)),
    };
    let mut numbers = Vec::new();
    for entry in entries {
        let name = entry.map_err(unreadable)?.file_name();
        numbers.extend(name.to_str().and_then(|name| name.strip_prefix(prefix)?.parse::<u64>().ok()));
    }
    numbers.sort();
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_up_from_the_highest() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let next =
            || NewRun::Numbered { folder: folder.path().join("runs"), name: "demo".to_owned() }.create().expect("a folder");
        assert_eq!(next(), folder.path().join("runs/demo-1"));
        for name in ["demo-2", "demo-10", "demo-x", "other-50"] {
            std::fs::create_dir(folder.path().join("runs").join(name)).expect("a folder");
        }
        assert_eq!(next(), folder.path().join("runs/demo-11"));
        for step in [500, 20, 1000] {
            std::fs::create_dir_all(checkpoint(folder.path(), step)).expect("a folder");
        }
        assert_eq!(checkpoints(folder.path()).expect("a list"), [20, 500, 1000]);
    }

    #[test]
    fn runs_that_begin_at_once_get_folders_of_their_own() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let new = NewRun::Numbered { folder: folder.path().join("runs"), name: "demo".to_owned() };
        let mut made: Vec<PathBuf> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| new.create().expect("a folder"))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        made.sort();
        made.dedup();
        assert_eq!(made.len(), 8);
    }

    #[test]
    fn checkpoints_that_cannot_be_listed_are_not_taken_for_none() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        assert_eq!(checkpoints(folder.path()).expect("no folder, no checkpoints"), Vec::<u64>::new());
        std::fs::write(checkpoints_folder(folder.path()), "").expect("a file");
        let failure = checkpoints(folder.path()).expect_err("not a folder");
        assert!(failure.to_string().starts_with("cannot list "), "{failure}");
        #[cfg(unix)]
        {
            std::fs::remove_file(checkpoints_folder(folder.path())).expect("it was there");
            std::os::unix::fs::symlink("nowhere", checkpoints_folder(folder.path())).expect("a link");
            assert!(checkpoints(folder.path()).is_err());
        }
    }
}
