//! What the end-to-end tests share: the program, prepared data, a tiny training.
#![allow(dead_code)] // every test binary uses a part of it

use std::fs;
use std::path::Path;

use assert_cmd::Command;

/// A model that trains in a second.
pub const TINY: [&str; 9] = [
    "model.dim=32",
    "model.layers=2",
    "model.heads=4",
    "model.kv_heads=2",
    "model.intermediate_size=64",
    "data.seq_len=16",
    "train.batch_size=4",
    "train.val_batches=2",
    "schedule.warmup_steps=2",
];

pub fn llama_pc(folder: &Path) -> Command {
    let mut command = Command::cargo_bin("llama_pc").expect("the program is built");
    command.current_dir(folder);
    command
}

/// A folder with prepared data of a text that repeats itself, so that a few steps learn something.
pub fn prepared() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for number in 0..8 {
        let text = format!("document {number}: the cat sat on the mat and the dog sat on the log. ").repeat(20);
        fs::write(folder.path().join(format!("{number}.txt")), text).expect("a file");
    }
    let args = ["prepare", "--text", ".", "--train-bpe", "300", "--out", "data", "--val-fraction", "0.2"];
    llama_pc(folder.path()).args(args).assert().success();
    folder
}

pub fn train(folder: &Path, out: &str, extra: &[&str]) -> Command {
    let mut command = llama_pc(folder);
    command.args(["train", "--out", out, "--set"]).args(TINY).args(extra);
    command
}

/// What a command that must succeed prints.
pub fn text_of(command: &mut Command) -> String {
    let output = command.assert().success().get_output().stdout.clone();
    String::from_utf8(output).expect("UTF-8")
}
