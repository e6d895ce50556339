//! `export` as a user calls it, and its files in another program: candle reads the folder and the GGUF and must see the same logits.

mod common;

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use candle_core::quantized::gguf_file;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Llama, LlamaConfig};
use candle_transformers::models::quantized_llama::ModelWeights;
use common::{llama_pc, prepared, text_of, train};
use serde_json::Value;
use tempfile::TempDir;

/// A folder with prepared data and a run, `run`, which every test may read; what a test writes there bears names of its own.
fn shared() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = prepared();
        trained(folder.path(), "run", false);
        folder
    });
    folder.path()
}

/// A run of two steps with PC layers, grouped heads and, perhaps, a tied head.
fn trained(folder: &Path, out: &str, tied: bool) {
    let tied = format!("model.tied={tied}");
    let extra = [&tied, "pc.level=4", "pc.targets=[\"qk\", \"o\", \"ffn\"]", "pc.per_head=true", "train.steps=2"];
    let rest = ["train.val_every=0", "optimizer.lr=0.02", "train.checkpoint_every=1"];
    train(folder, out, &[&extra[..], &rest].concat()).assert().success();
}

fn export(folder: &Path, run: &str, out: &str, args: &[&str]) {
    llama_pc(folder).args(["export", run, "--out", out, "--format"]).args(args).assert().success();
}

fn loss(folder: &Path, path: &str) -> f64 {
    let args = ["eval", path, "--data", "data/val", "--seq-len", "16", "--json"];
    let report: Value = serde_json::from_str(&text_of(llama_pc(folder).args(args))).expect("JSON");
    report["loss"].as_f64().expect("a loss")
}

/// Tokens of the validation data, as a batch of one for candle.
fn tokens(folder: &Path, count: usize) -> Tensor {
    let bytes = fs::read(folder.join("data/val/00000.bin")).expect("tokens");
    let tokens: Vec<u32> = bytes.as_chunks().0.iter().take(count).copied().map(u32::from_le_bytes).collect();
    Tensor::from_vec(tokens, (1, count), &Device::Cpu).expect("a tensor")
}

/// candle's logits after the last token, from a folder in Hugging Face's layout.
fn candle_folder(folder: &Path, tokens: &Tensor) -> Vec<f32> {
    let config = fs::read(folder.join("config.json")).expect("config.json");
    let config = serde_json::from_slice::<LlamaConfig>(&config).expect("a Llama's configuration").into_config(false);
    let mut files: Vec<_> = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
    let parts = files.iter().map(|path| fs::read(path).expect("a file"));
    let tensors = parts.flat_map(|bytes| candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).expect("safetensors"));
    let weights = VarBuilder::from_tensors(tensors.collect(), DType::F32, &Device::Cpu);
    let model = Llama::load(weights, &config).expect("a model");
    let mut cache = Cache::new(false, DType::F32, &config, &Device::Cpu).expect("a cache");
    model.forward(tokens, 0, &mut cache).and_then(|logits| logits.squeeze(0)?.to_vec1()).expect("logits")
}

/// The same from a GGUF.
fn candle_gguf(path: &Path, tokens: &Tensor) -> Vec<f32> {
    let mut file = fs::File::open(path).expect("a file");
    let content = gguf_file::Content::read(&mut file).expect("a GGUF");
    let mut model = ModelWeights::from_gguf(content, &mut file, &Device::Cpu).expect("a model");
    model.forward(tokens, 0).and_then(|logits| logits.squeeze(0)?.to_vec1()).expect("logits")
}

/// The largest difference, relative to the root mean square of what is wanted.
fn difference(found: &[f32], wanted: &[f32]) -> f32 {
    assert_eq!(found.len(), wanted.len());
    let rms = (wanted.iter().map(|value| value * value).sum::<f32>() / wanted.len() as f32).sqrt();
    found.iter().zip(wanted).map(|(found, wanted)| (found - wanted).abs()).fold(0.0, f32::max) / rms
}

/// What the program itself predicts: with temperature 0 the likeliest token of each of its logits.
fn greedy(folder: &Path, path: &str) -> String {
    let args = ["sample", path, "--prompt", "the cat sat", "--tokens", "8", "--temperature", "0"];
    text_of(llama_pc(folder).args(args))
}

#[test]
fn candle_and_eval_agree_on_every_export() {
    let path = shared();
    export(path, "run", "hf", &["hf"]);
    export(path, "run", "sharded", &["hf", "--max-shard-bytes", "9000"]);
    export(path, "run", "bf16", &["hf", "--dtype", "bf16"]);
    export(path, "run", "f16", &["hf", "--dtype", "f16"]);
    let count = fs::read_dir(path.join("sharded")).expect("a folder").count();
    assert!(count > 8, "{count} files of at most 9000 bytes of tensors");

    let own = loss(path, "run");
    assert_eq!(loss(path, "hf"), own, "float32 loses nothing");
    assert_eq!(loss(path, "sharded"), own);
    // Weights are off by up to 2⁻⁹ and 2⁻¹² of themselves; the loss averages over them.
    assert!((loss(path, "bf16") - own).abs() < 1e-3 * own);
    assert!((loss(path, "f16") - own).abs() < 1e-4 * own);
    assert_eq!(greedy(path, "hf"), greedy(path, "run"));

    let tokens = tokens(path, 16);
    let wanted = candle_folder(&path.join("hf"), &tokens);
    assert_eq!(candle_folder(&path.join("sharded"), &tokens), wanted);
    for (dtype, tolerance) in [("f32", 1e-5), ("f16", 1e-2), ("bf16", 5e-2), ("q8_0", 5e-2)] {
        let out = format!("{dtype}.gguf");
        export(path, "run", &out, &["gguf", "--dtype", dtype]);
        let found = difference(&candle_gguf(&path.join(&out), &tokens), &wanted);
        assert!(found < tolerance, "{dtype}: {found}");
    }
}

/// candle's cross-entropy of the validation data, with its own forward: the third opinion beside `eval` of run and folder.
#[test]
fn candle_gives_the_programs_loss() {
    let path = shared();
    trained(path, "tied", true);
    export(path, "tied", "tied-hf", &["hf"]);
    assert!(fs::read_to_string(path.join("tied-hf/config.json")).expect("config.json").contains("\"tie_word_embeddings\": true"));
    export(path, "tied", "tied.gguf", &["gguf"]);

    let bytes = fs::read(path.join("data/val/00000.bin")).expect("tokens");
    let stream: Vec<u32> = bytes.as_chunks().0.iter().copied().map(u32::from_le_bytes).collect();
    let (mut sum, mut count) = (0.0, 0);
    // Only the last position's logits are given: a window of 16 tokens is 16 calls.
    for (window, length) in (0..2).flat_map(|window| (1..=16).map(move |length| (window, length))) {
        let start = window * 16;
        let tokens = Tensor::from_slice(&stream[start..start + length], (1, length), &Device::Cpu).expect("a tensor");
        let logits = candle_folder(&path.join("tied-hf"), &tokens);
        if length == 16 {
            assert!(difference(&candle_gguf(&path.join("tied.gguf"), &tokens), &logits) < 1e-5);
        }
        let total: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
        sum += total.ln() - f64::from(logits[stream[start + length] as usize]);
        count += 1;
    }
    let short: Vec<u8> = bytes[..4 * (2 * 16 + 1)].to_vec();
    fs::write(path.join("short.bin"), short).expect("it is written");
    let args = ["eval", "tied", "--data", "short.bin", "--seq-len", "16", "--json"];
    let report: Value = serde_json::from_str(&text_of(llama_pc(path).args(args))).expect("JSON");
    let own = report["loss"].as_f64().expect("a loss");
    assert!((own - sum / f64::from(count)).abs() < 1e-4, "{own} and {}", sum / f64::from(count));
}

#[test]
fn a_checkpoint_can_be_chosen_and_nothing_is_overwritten() {
    let path = shared();
    export(path, "run", "first", &["hf", "--step", "1"]);
    export(path, "run", "last", &["hf"]);
    export(path, "last", "again", &["hf"]);
    let weights = |name: &str| fs::read(path.join(name).join("model.safetensors")).expect("weights");
    assert!(weights("first") != weights("last"));
    assert!(weights("again") == weights("last"), "the export of an export is the same");
    let cases: [(&[&str], i32, &str); 7] = [
        (&["run", "--format", "hf", "--out", "first"], 2, "--out first: found an existing path, expected a new folder"),
        (&["run", "--format", "gguf", "--out", "first"], 2, "--out first: found an existing path, expected a new file"),
        (&["run", "--format", "hf", "--dtype", "q8_0", "--out", "x"], 2, "expected f32, f16 or bf16 with --format hf"),
        (
            &["run", "--format", "hf", "--step", "7", "--out", "x"],
            2,
            "found checkpoints of run after step 1, 2, expected one of them",
        ),
        (&["last", "--format", "hf", "--step", "7", "--out", "x"], 2, "found an exported folder, expected a run"),
        (&["data", "--format", "hf", "--out", "x"], 1, "expected a run or an exported folder"),
        (&["run", "--format", "zip", "--out", "x"], 2, "invalid value 'zip'"),
    ];
    for (args, status, expected) in cases {
        let assert = llama_pc(path).arg("export").args(args).assert().code(status);
        let text = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
        assert!(text.contains(expected), "{expected:?} in {text}");
    }
    assert!(!path.join("x").exists() && !path.join(".x.partial").exists(), "a refused export leaves nothing");
}

#[test]
fn what_cannot_be_evaluated_is_an_error() {
    let path = shared();
    export(path, "run", "poisoned", &["hf"]);
    let file = path.join("poisoned/model.safetensors");
    let mut bytes = fs::read(&file).expect("weights");
    // The last value of the head.
    let last = bytes.len() - 4;
    bytes[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&file, bytes).expect("it is written");
    for (run, seq_len, status, expected) in [
        ("poisoned", "16", 1, "error: poisoned: found a loss of NaN, expected a finite one"),
        ("run", "0", 2, "--seq-len: found 0, expected a whole number from 1 to 1048576"),
        ("run", "1048577", 2, "--seq-len: found 1048577, expected a whole number from 1 to 1048576"),
    ] {
        let args = ["eval", run, "--data", "data/val", "--seq-len", seq_len, "--json"];
        let assert = llama_pc(path).args(args).assert().code(status);
        let text = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
        assert!(text.contains(expected) && assert.get_output().stdout.is_empty(), "{expected:?} in {text}");
    }
}

#[test]
fn foreign_and_broken_folders_are_refused_by_name() {
    let path = shared();
    export(path, "run", "broken", &["hf", "--max-shard-bytes", "9000"]);
    let index = fs::read_to_string(path.join("broken/model.safetensors.index.json")).expect("an index");
    let refused = |args: &[&str], expected: &str| {
        let assert = llama_pc(path).args(args).assert().failure();
        let text = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
        assert!(text.contains(expected) && !text.contains("panicked"), "{expected:?} in {text}");
    };
    let eval = ["eval", "broken", "--data", "data/val", "--seq-len", "16"];
    let mut fewer: Value = serde_json::from_str(&index).expect("JSON");
    let lost = fewer["weight_map"]["model.norm.weight"].as_str().expect("a file").to_owned();
    fs::remove_file(path.join("broken").join(&lost)).expect("it was there");
    refused(&eval, &lost);
    fewer["weight_map"].as_object_mut().expect("a map").retain(|_, file| *file != *lost);
    fs::write(path.join("broken/model.safetensors.index.json"), fewer.to_string()).expect("it is written");
    refused(&eval, "is missing");
    let config = fs::read_to_string(path.join("broken/config.json")).expect("config.json");
    fs::write(path.join("broken/config.json"), config.replace("\"llama\"", "\"gpt_neox\"")).expect("it is written");
    refused(&eval, "found model_type \"gpt_neox\", expected \"llama\"");
    let mut train = train(path, "new", &["train.steps=1", "train.val_every=0"]);
    let assert = train.args(["--init", "broken"]).assert().failure();
    let text = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    assert!(text.contains("found model_type \"gpt_neox\", expected \"llama\""), "{text}");
}
