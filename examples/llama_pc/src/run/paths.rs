//! Paths of runs and of their checkpoints.

use std::path::{Path, PathBuf};

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

/// The steps of a run's checkpoints, ascending.
pub fn checkpoints(run: &Path) -> Vec<u64> {
    numbered(&checkpoints_folder(run), "step-")
}

/// The next free `runs/NAME-N`, NAME being that of the configuration file.
pub fn next_path(config: Option<&Path>) -> PathBuf {
    let name = config.and_then(Path::file_stem).map_or("run".into(), |stem| stem.to_string_lossy());
    next_numbered(Path::new("runs"), &name)
}

/// `folder/NAME-N`, with N one above the highest that exists.
fn next_numbered(folder: &Path, name: &str) -> PathBuf {
    let next = numbered(folder, &format!("{name}-")).last().map_or(1, |highest| highest + 1);
    folder.join(format!("{name}-{next}"))
}

/// The numbers N for which the folder contains `prefixN`, ascending; none if the folder does not exist.
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
