//! Checkpoints of a run: `checkpoints/step-N/` with `model.safetensors`, `optimizer.safetensors` and `state.json`.
//!
//! A folder named step-N is complete: it is written as `step-N.partial`, synced, and renamed; an old one is renamed back before it
//! is removed. `state.json` records the size and the CRC-32C of the other two files and of itself, and whoever reads a checkpoint
//! verifies what it reads first.

mod load;
mod tensors;
mod writer;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::crc32c::{Crc32c, crc32c};
use crate::failure::Failure;
use crate::run;
use crate::train::scaling::Scaling;
use crate::train::spikes::Spikes;

pub use writer::Writer;

/// The raw parameters with u, v and γ.
pub const MODEL: &str = "model.safetensors";
/// The optimizer's moments.
pub const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";

/// Where a run stands: `state.json` of a checkpoint. No float64 is in it, as JSON readers may round one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Optimizer steps done, skipped ones included.
    pub step: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Windows taken from the training data.
    pub position: u64,
    /// Windows that the training data holds.
    pub windows: u64,
    /// Checksum of the first and the last of them.
    pub data: u32,
    /// The run's seed.
    pub seed: u64,
    /// Training time so far.
    pub milliseconds: u64,
    /// What the spike guard knows.
    pub spikes: Spikes,
    /// The loss scale, where the precision needs one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<Scaling>,
}

impl State {
    /// Steps left out, for whatever reason: the optimizer has done so many less.
    pub fn skipped(&self) -> u64 {
        self.spikes.skipped + self.loss_scale.as_ref().map_or(0, |scaling| scaling.skipped)
    }
}

/// What a file of the checkpoint must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Recorded {
    bytes: u64,
    crc32c: String,
}

/// `state.json` as it stands on disk.
#[derive(Debug, Serialize, Deserialize)]
struct Document {
    #[serde(flatten)]
    state: State,
    files: BTreeMap<String, Recorded>,
    /// Of this text with an empty string in this place.
    crc32c: String,
}

impl Document {
    fn new(state: &State, files: BTreeMap<String, Recorded>) -> Self {
        let mut document = Self { state: state.clone(), files, crc32c: String::new() };
        document.crc32c = hexadecimal(crc32c(document.text().as_bytes()));
        document
    }

    fn text(&self) -> String {
        serde_json::to_string_pretty(self).expect("bug: the state does not serialise") + "\n"
    }
}

/// The text of a `state.json` without files.
#[cfg(any(test, feature = "samples"))]
pub fn text_of(state: &State) -> String {
    Document::new(state, BTreeMap::new()).text()
}

fn hexadecimal(sum: u32) -> String {
    format!("{sum:08x}")
}

/// A checkpoint on disk whose `state.json` is whole.
pub struct Saved {
    folder: PathBuf,
    /// Where the run stood.
    pub state: State,
    files: BTreeMap<String, Recorded>,
}

impl Saved {
    /// The newest checkpoint of a run; `None` if there is none. A damaged one is an error, not a reason to take another.
    pub fn newest(run: &Path) -> Result<Option<Self>, Failure> {
        run::checkpoints(run).last().map(|&step| Self::open(&run::checkpoint(run, step))).transpose()
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

    /// Compares a file with the size and the checksum that were recorded when it was written.
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

/// Verifies the weights of a folder, if it is a run's checkpoint; folders of other programs record nothing to compare with.
pub fn verify_weights(folder: &Path) -> Result<(), Failure> {
    if folder.join(STATE).is_file() {
        Saved::open(folder)?.verify(MODEL)?;
    }
    Ok(())
}

/// Removes what processes that were killed have left of checkpoints they were writing or removing.
pub fn sweep(run: &Path) -> Result<(), Failure> {
    let folder = run.join("checkpoints");
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
    let (mut block, mut sum, mut bytes) = (vec![0; 1 << 20], Crc32c::new(), 0);
    loop {
        let count = file.read(&mut block)?;
        if count == 0 {
            return Ok(Recorded { bytes, crc32c: hexadecimal(sum.value()) });
        }
        sum.update(&block[..count]);
        bytes += count as u64;
    }
}

/// Says which checkpoint could be used instead of a damaged one.
fn hinted(failure: Failure, folder: &Path) -> Failure {
    let step = |folder: &Path| folder.file_name()?.to_str()?.strip_prefix("step-")?.parse::<u64>().ok();
    let run = folder.parent().and_then(Path::parent);
    let (Some(step), Some(run)) = (step(folder), run) else { return failure };
    let earlier = run::checkpoints(run).into_iter().rfind(|&other| other < step);
    failure.hint(match earlier {
        Some(earlier) => format!("step-{earlier} is there too: to go back to it, remove {}", folder.display()),
        None => "no earlier checkpoint is there".to_owned(),
    })
}

#[cfg(test)]
#[path = "checkpoint/tests.rs"]
mod tests;
