//! Weights and runs from elsewhere: read as transformers reads them, or refused by name.

mod common;
mod folders {
    mod odd;
    mod runs;
    mod transformers;
    mod weights;
}

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use tempfile::TempDir;

use common::{llama_pc, text_of};

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// A folder with `tiny.toml`, the configuration of the folders among the fixtures, and `tokens.bin`.
pub fn tiny() -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for name in ["tiny.toml", "tokens.bin"] {
        fs::copy(fixtures().join("folders").join(name), folder.path().join(name)).expect("a fixture");
    }
    folder
}

/// [`tiny`] with `hf`, a copy of one of the folders among the fixtures.
pub fn tiny_with(fixture: &str) -> TempDir {
    let folder = tiny();
    fs::create_dir(folder.path().join("hf")).expect("a folder");
    for name in ["config.json", "model.safetensors"] {
        let from = fixtures().join("folders").join(fixture).join(name);
        fs::copy(from, folder.path().join("hf").join(name)).expect("a fixture");
    }
    folder
}

pub const EVAL: [&str; 7] = ["eval", "hf", "--data", "tokens.bin", "--seq-len", "8", "--json"];

pub fn train(folder: &Path, more: &[&str]) -> assert_cmd::Command {
    let mut command = llama_pc(folder);
    command.args(["train", "--config", "tiny.toml"]).args(more);
    command
}

pub fn loss(folder: &Path, args: &[&str]) -> f64 {
    let report: Value = serde_json::from_str(&text_of(llama_pc(folder).args(args))).expect("JSON");
    report["loss"].as_f64().expect("a loss")
}

/// What a command says that must fail with this status.
pub fn refused(command: &mut assert_cmd::Command, status: i32) -> String {
    let assert = command.assert().code(status);
    let text = String::from_utf8_lossy(&assert.get_output().stderr).replace('\\', "/");
    assert!(text.contains("error: ") && !text.contains("panicked"), "{text}");
    text
}

/// What a command that must succeed says on standard error.
pub fn said(command: &mut assert_cmd::Command) -> String {
    String::from_utf8_lossy(&command.assert().success().get_output().stderr).replace('\\', "/")
}

/// The steps in a run's metrics.
pub fn steps(folder: &Path, run: &str) -> Vec<u64> {
    let text = fs::read_to_string(folder.join(run).join("metrics.jsonl")).expect("metrics");
    let step = |line: &str| serde_json::from_str::<Value>(line).expect("a line of JSON")["step"].as_u64().expect("a step");
    text.lines().map(step).collect()
}

pub fn edit_config(folder: &Path, change: impl Fn(&mut Value)) {
    let path = folder.join("hf/config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).expect("config.json")).expect("JSON");
    change(&mut config);
    fs::write(path, config.to_string()).expect("it is written");
}

/// Header and values of a safetensors file.
pub struct Weights {
    pub header: Map<String, Value>,
    pub values: Vec<u8>,
}

impl Weights {
    pub fn read(path: &Path) -> Self {
        let bytes = fs::read(path).expect("weights");
        let length = u64::from_le_bytes(*bytes.first_chunk().expect("a length")) as usize;
        let header = serde_json::from_slice(&bytes[8..8 + length]).expect("a header");
        Self { header, values: bytes[8 + length..].to_vec() }
    }

    pub fn write(&self, path: &Path) {
        let header = serde_json::to_vec(&self.header).expect("JSON");
        fs::write(path, [&(header.len() as u64).to_le_bytes()[..], &header, &self.values].concat()).expect("it is written");
    }

    pub fn add(&mut self, name: &str, dtype: &str, shape: &[usize], bytes: &[u8]) {
        let offsets = [self.values.len(), self.values.len() + bytes.len()];
        self.header.insert(name.to_owned(), json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}));
        self.values.extend(bytes);
    }

    pub fn bytes(&self, name: &str) -> &[u8] {
        let offset = |at: usize| self.header[name]["data_offsets"][at].as_u64().expect("an offset") as usize;
        &self.values[offset(0)..offset(1)]
    }

    /// With every tensor as `encode` writes it.
    pub fn as_type(&self, dtype: &str, encode: impl Fn(f32) -> Vec<u8>) -> Self {
        let mut other = Self { header: Map::new(), values: Vec::new() };
        for (name, info) in self.header.iter().filter(|(name, _)| *name != "__metadata__") {
            let values = self.bytes(name).as_chunks().0.iter().map(|bytes| encode(f32::from_le_bytes(*bytes)));
            let bytes = values.collect::<Vec<_>>().concat();
            let shape = info["shape"].as_array().expect("a shape").iter();
            let shape: Vec<usize> = shape.map(|size| size.as_u64().expect("a size") as usize).collect();
            other.add(name, dtype, &shape, &bytes);
        }
        other
    }

    /// Without some tensors.
    pub fn without(&self, drop: impl Fn(&str) -> bool) -> Self {
        let mut other = Self { header: Map::new(), values: Vec::new() };
        for (name, info) in self.header.iter().filter(|(name, _)| *name != "__metadata__" && !drop(name)) {
            let shape = info["shape"].as_array().expect("a shape").iter();
            let shape: Vec<usize> = shape.map(|size| size.as_u64().expect("a size") as usize).collect();
            other.add(name, "F32", &shape, self.bytes(name));
        }
        other
    }
}
