//! Tells runs from exported folders.

use std::path::{Path, PathBuf};

use super::hugging_face;
use crate::config::Config;
use crate::run::{checkpoint, paths};
use crate::terminal::failure::Failure;

/// The configuration of a run or an exported folder, and the folder of its weights: the newest checkpoint of a run.
pub fn describe(path: &Path) -> Result<(Config, PathBuf), Failure> {
    describe_at(path, None)
}

/// [`describe`], with the checkpoint after `step` steps.
pub fn describe_at(path: &Path, step: Option<u64>) -> Result<(Config, PathBuf), Failure> {
    if path.join("config.json").is_file() {
        return match step {
            Some(step) => {
                Err(Failure::usage(format!("--step {step}: {}: found an exported folder, expected a run", path.display())))
            }
            None => Ok((hugging_face::configuration(path)?, path.to_owned())),
        };
    }
    let file = path.join(paths::CONFIG);
    if !file.is_file() {
        let path = path.display();
        return Err(Failure::other(format!(
            "{path}: found neither config.toml nor config.json, expected a run or an exported folder"
        ))
        .hint("a run is the folder that `train` printed, such as runs/demo-1; a checkpoint is chosen by --step"));
    }
    let config = Config::load(Some(&file), &[])?;
    let found = paths::checkpoints(path)?;
    let Some(step) = step.or(found.last().copied()) else {
        let shown = path.display();
        return Err(Failure::other(format!("{shown}: found no checkpoint, expected one or more"))
            .hint(format!("`train --resume {shown}` continues to its first one")));
    };
    if !found.contains(&step) {
        let found = found.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
        return Err(Failure::usage(format!(
            "--step {step}: found checkpoints of {} after step {found}, expected one of them",
            path.display()
        )));
    }
    let folder = paths::checkpoint(path, step);
    checkpoint::check_weights(&folder, &config, &file)?;
    Ok((config, folder))
}
