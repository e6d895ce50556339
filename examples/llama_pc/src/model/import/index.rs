//! `model.safetensors.index.json`: which file of a folder holds which tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use crate::run::files::read_json;
use crate::terminal::failure::Failure;

/// The index of a folder.
#[derive(Deserialize)]
pub struct Index {
    /// Tensor → file.
    weight_map: BTreeMap<String, String>,
}

impl Index {
    pub fn read(folder: &Path) -> Result<Self, Failure> {
        let path = path(folder);
        if path.is_file() {
            return read_json(&path);
        }
        let shown = folder.display();
        let failure = Failure::other(format!("{shown}: found neither model.safetensors nor its index, expected weights"));
        Err(failure.hint(match folder.join("pytorch_model.bin").exists() {
            true => "pytorch_model.bin can run code and is not read; save_pretrained of transformers writes safetensors",
            false => "a run keeps its weights in checkpoints/step-N, an exported folder beside its config.json",
        }))
    }

    /// Its files, each once.
    pub fn files(&self, folder: &Path) -> Result<Vec<PathBuf>, Failure> {
        let names: BTreeSet<&String> = self.weight_map.values().collect();
        names.into_iter().map(|name| within(folder, name)).collect()
    }

    /// Whether each tensor is where it should be; `place` holds the numbers of `files`.
    pub fn check(&self, folder: &Path, place: &BTreeMap<String, usize>, files: &[PathBuf]) -> Result<(), Failure> {
        for (tensor, file) in &self.weight_map {
            let expected = folder.join(file);
            if place.get(tensor).is_none_or(|&at| files[at] != expected) {
                return Err(Failure::other(format!("{}: found no {tensor}, expected it there by the index", expected.display()))
                    .hint("the files and model.safetensors.index.json are not of one model: copy the whole folder again"));
            }
        }
        Ok(())
    }
}

fn path(folder: &Path) -> PathBuf {
    folder.join("model.safetensors.index.json")
}

/// A file of the folder, or below it: an index must not make the program read anything else.
fn within(folder: &Path, name: &str) -> Result<PathBuf, Failure> {
    let is_below = !name.is_empty() && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    if is_below {
        return Ok(folder.join(name));
    }
    Err(Failure::other(format!("{}: found the file {name:?}, expected one of its folder", path(folder).display()))
        .hint("the names in weight_map are relative, without \"..\""))
}
