//! Reads checkpoints, verifying checksums first.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crc32c::crc32c_append;

use super::document::{Document, MODEL, Recorded, STATE, hexadecimal};
use super::state::State;
use crate::config::{Config, Difference, Keys, differences, shown};
use crate::run::paths;
use crate::terminal::failure::Failure;

/// A checkpoint on disk with a verified `state.json`.
pub struct Saved {
    folder: PathBuf,
    /// The state of the run.
    pub state: State,
    files: BTreeMap<String, Recorded>,
}

impl Saved {
    /// The newest checkpoint of a run; `None` if there is none. A damaged one is an error; there is no fallback to an older one.
    pub fn newest(run: &Path) -> Result<Option<Self>, Failure> {
        paths::checkpoints(run)?.last().map(|&step| Self::open(&paths::checkpoint(run, step))).transpose()
    }

    /// Reads and verifies the `state.json` of a checkpoint's folder.
    pub fn open(folder: &Path) -> Result<Self, Failure> {
        let path = folder.join(STATE);
        let text = std::fs::read_to_string(&path).map_err(|error| hinted(Failure::io("read", &path, &error), folder))?;
        let damaged = |found: String| {
            hinted(Failure::other(format!("{}: found {found}, expected the state that was saved there", path.display())), folder)
        };
        let document: Document = serde_json::from_str(&text).map_err(|error| damaged(format!("damage ({error})")))?;
        if Document::new(&document.state, document.files.clone()).text() != text {
            return Err(damaged("a text that does not match its checksum".to_owned()));
        }
        Ok(Self { folder: folder.to_owned(), state: document.state, files: document.files })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The checksums of all files: those of one checkpoint.
    pub fn checksums(&self) -> String {
        self.files.values().map(|file| file.crc32c.as_str()).collect::<Vec<_>>().join(" ")
    }

    /// Verifies the size and checksum of a file and returns its path.
    pub fn verify(&self, name: &str) -> Result<PathBuf, Failure> {
        let path = self.folder.join(name);
        let expected = self.files.get(name).ok_or_else(|| {
            Failure::other(format!("{}: found no record of {name}, expected one", self.folder.join(STATE).display()))
        })?;
        let found = measure(&path).map_err(|error| hinted(Failure::io("read", &path, &error), &self.folder))?;
        let path_shown = path.display();
        let problem = if found.bytes != expected.bytes {
            format!("{path_shown}: found {} bytes, expected {}", found.bytes, expected.bytes)
        } else if found != *expected {
            format!("{path_shown}: found the checksum {}, expected {}: the file is damaged", found.crc32c, expected.crc32c)
        } else {
            return Ok(path);
        };
        Err(hinted(Failure::other(problem), &self.folder))
    }
}

/// Verifies the weights of a run's checkpoint; other folders have no checksums.
pub fn verify_weights(folder: &Path) -> Result<(), Failure> {
    if folder.join(STATE).is_file() {
        Saved::open(folder)?.verify(MODEL)?;
    }
    Ok(())
}

/// The keys of `[model]` and `[pc]` of the configuration that a checkpoint's weights belong to; none of other folders, and of
/// checkpoints that are too old to have them.
pub fn recorded_keys(folder: &Path) -> Result<Keys, Failure> {
    if folder.join(STATE).is_file() { Ok(Saved::open(folder)?.state.configuration) } else { Ok(Keys::new()) }
}

/// Whether the weights of a checkpoint belong to the configuration, which is that of `file`: the same tensors with other heads are
/// another network.
pub fn check_weights(folder: &Path, config: &Config, file: &Path) -> Result<(), Failure> {
    let recorded = recorded_keys(folder)?;
    if recorded.is_empty() {
        return Ok(());
    }
    let differing = differences(&config.weight_keys(), &recorded);
    let Some(Difference { key, found, expected }) = differing.first() else { return Ok(()) };
    let (found, expected) = (shown(found.as_ref()), shown(expected.as_ref()));
    let message =
        format!("{}: found {key} = {found}, expected the {expected} of the weights in {}", file.display(), folder.display());
    Err(Failure::usage(message).hint("these weights only work with that value; restore it"))
}

/// Removes partial checkpoints that killed processes left.
pub fn sweep(run: &Path) -> Result<(), Failure> {
    let folder = paths::checkpoints_folder(run);
    for entry in std::fs::read_dir(&folder).into_iter().flatten() {
        let path = entry.map_err(|error| Failure::io("read", &folder, &error))?.path();
        if path.extension().is_some_and(|extension| extension == "partial") {
            std::fs::remove_dir_all(&path).map_err(|error| Failure::io("remove", &path, &error))?;
        }
    }
    Ok(())
}

fn measure(path: &Path) -> std::io::Result<Recorded> {
    let mut file = File::open(path)?;
    let (mut block, mut sum, mut bytes) = (vec![0; 1 << 20], 0, 0);
    loop {
        let count = file.read(&mut block)?;
        if count == 0 {
            return Ok(Recorded { bytes, crc32c: hexadecimal(sum) });
        }
        sum = crc32c_append(sum, &block[..count]);
        bytes += count as u64;
    }
}

/// Adds a hint about an earlier checkpoint.
fn hinted(failure: Failure, folder: &Path) -> Failure {
    let step = |folder: &Path| folder.file_name()?.to_str()?.strip_prefix("step-")?.parse::<u64>().ok();
    let run = folder.parent().and_then(Path::parent);
    let (Some(step), Some(run)) = (step(folder), run) else { return failure };
    // Where they cannot be listed, the failure itself says more.
    let earlier = paths::checkpoints(run).unwrap_or_default().into_iter().rfind(|&other| other < step);
    failure.hint(match earlier {
        Some(earlier) => format!("step-{earlier} also exists: to return to it, remove {}", folder.display()),
        None => "there is no earlier checkpoint".to_owned(),
    })
}
