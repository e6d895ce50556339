//! Losses that transformers computed with the same weights, for every kind of rotary embedding and for Qwen3.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::common::llama_pc;
use crate::{fixtures, loss, refused};

fn cases() -> Vec<Value> {
    let text = fs::read_to_string(fixtures().join("transformers/cases.json")).expect("a fixture");
    let cases: Value = serde_json::from_str(&text).expect("JSON");
    cases["losses"].as_array().expect("a list").clone()
}

/// Lays a case out as the folder `hf` beside `tokens.bin`.
fn lay_out(case: &Value, folder: &Path) {
    let from = fixtures().join("transformers");
    fs::create_dir_all(folder.join("hf")).expect("a folder");
    fs::write(folder.join("hf/config.json"), case["config"].to_string()).expect("it is written");
    fs::copy(from.join(case["weights"].as_str().expect("a name")), folder.join("hf/model.safetensors")).expect("a fixture");
    fs::copy(from.join("tokens.bin"), folder.join("tokens.bin")).expect("a fixture");
}

fn case(name: &str) -> Value {
    cases().into_iter().find(|case| case["name"] == name).expect("a case of that name")
}

fn eval(folder: &Path, path: &str) -> f64 {
    loss(folder, &["eval", path, "--data", "tokens.bin", "--seq-len", "32", "--json"])
}

#[test]
fn every_kind_has_the_loss_of_transformers() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cases = cases();
    assert!(cases.len() > 15);
    for case in cases {
        lay_out(&case, folder.path());
        let (found, wanted) = (eval(folder.path(), "hf"), case["loss"].as_f64().expect("a loss"));
        assert!((found - wanted).abs() < 1e-5, "{}: {found}, transformers {wanted}", case["name"]);
    }
}

/// The settings that a refusal suggests make the same network, which trains from the same loss, and an export has it, too.
#[test]
fn the_suggested_settings_train_the_network_and_the_export_keeps_it() {
    for name in ["llama3, rope_type", "yarn, mscale", "qwen3, yarn"] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let case = case(name);
        lay_out(&case, folder.path());
        let wanted = case["loss"].as_f64().expect("a loss");
        let run = ["data.train=tokens.bin", "data.seq_len=32", "data.order=sequential", "train.steps=1", "train.batch_size=4"];
        let rest = ["train.val_every=0", "model.vocab=32", "schedule.warmup_steps=0", "optimizer.lr=0"];
        let train = |more: &[&str]| {
            let mut command = llama_pc(folder.path());
            command.args(["train", "--init", "hf", "--out", "run", "--set"]).args(run).args(rest).args(more);
            command
        };
        let text = refused(&mut train(&[]), 2);
        let settings = text.split("--set ").nth(1).expect("a hint").trim();
        assert!(settings.contains("model.rope_scaling="), "{text}");
        train(&settings.split(' ').collect::<Vec<_>>()).assert().success();
        let metrics = fs::read_to_string(folder.path().join("run/metrics.jsonl")).expect("metrics");
        let first: Value = serde_json::from_str(metrics.lines().next().expect("a line")).expect("JSON");
        let found = first["loss"].as_f64().expect("a loss");
        assert!((found - wanted).abs() < 1e-5, "{name}: {found}, transformers {wanted}");

        llama_pc(folder.path()).args(["export", "run", "--format", "hf", "--out", "out"]).assert().success();
        assert!((eval(folder.path(), "out") - wanted).abs() < 1e-5, "{name}");
        let exported: Value =
            serde_json::from_slice(&fs::read(folder.path().join("out/config.json")).expect("config.json")).expect("JSON");
        assert_eq!(exported["model_type"], case["config"]["model_type"], "{name}");
        assert_eq!(exported["head_dim"], 6, "{name}");
        assert_eq!(exported["rope_scaling"]["rope_type"], exported["rope_parameters"]["rope_type"], "{name}");
    }
}

/// As llama.cpp names them; its own reading of such files is checked by scripts/check-gguf.mjs.
#[test]
fn a_gguf_says_what_the_model_is() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let gguf = |name: &str| {
        lay_out(&case(name), folder.path());
        let out = format!("{}.gguf", name.replace([' ', ','], "-"));
        llama_pc(folder.path()).args(["export", "hf", "--format", "gguf", "--out", &out]).assert().success();
        fs::read(folder.path().join(out)).expect("a file")
    };
    let has = |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    let llama3 = gguf("llama3, rope_type");
    for text in ["llama.attention.key_length", "llama.rope.dimension_count", "rope_freqs.weight"] {
        assert!(has(&llama3, text), "{text}");
    }
    assert!(!has(&llama3, "rope.scaling"));
    let yarn = gguf("qwen3, yarn, defaults");
    for text in ["qwen3.rope.scaling.type", "yarn", "qwen3.rope.scaling.attn_factor", "blk.1.attn_q_norm.weight"] {
        assert!(has(&yarn, text), "{text}");
    }
    assert!(!has(&yarn, "llama.") && !has(&yarn, "rope_freqs"));

    let refused = |case: &Value| {
        lay_out(case, folder.path());
        refused(llama_pc(folder.path()).args(["export", "hf", "--format", "gguf", "--out", "x.gguf"]), 2)
    };
    let text = refused(&case("yarn, type"));
    assert!(text.contains("model.rope_beta_fast = 4 and model.rope_beta_slow = 0.5, expected 32 and 1"), "{text}");
    let mut both = case("qwen3");
    both["config"]["rope_scaling"] = case("llama3, rope_type")["config"]["rope_scaling"].clone();
    let text = refused(&both);
    assert!(text.contains("model.qk_norm and model.rope_scaling"), "{text}");
    llama_pc(folder.path()).args(["export", "hf", "--format", "hf", "--out", "both"]).assert().success();
    assert_eq!(eval(folder.path(), "both"), eval(folder.path(), "hf"));
}
