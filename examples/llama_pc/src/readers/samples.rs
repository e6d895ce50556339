//! Small good files of every kind, for tests to damage and for the fuzzer to begin with.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use ::parquet::basic::Compression;

pub use crate::data::parquet_samples::{nested_parquet, parquet, parquets};
use crate::data::tokenizer::Tokenizer;
use crate::run::checkpoint::{self, State};

/// llm.c's two kinds of `.bin` and one without header, each with three tokens.
pub fn shards() -> Vec<Vec<u8>> {
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let with_header = |magic, version, tokens: &[u8]| {
        let mut bytes = words(&[magic, version, 3]);
        bytes.resize(1024, 0);
        [&bytes[..], tokens].concat()
    };
    vec![words(&[1, 2, 3]), with_header(20_240_520, 1, &[1, 0, 2, 0, 3, 0]), with_header(20_240_801, 7, &words(&[1, 2, 3]))]
}

/// Document offsets of three tokens.
pub fn index() -> Vec<u8> {
    [0i64, 1, 3].iter().flat_map(|offset| offset.to_le_bytes()).collect()
}

/// Megatron's index of three tokens in two sequences.
pub fn megatron_index(code: u8, width: i64) -> Vec<u8> {
    let counts = [2u64, 2].map(u64::to_le_bytes).concat();
    let lengths = [1i32, 2].map(i32::to_le_bytes).concat();
    let places = [0, width, 0, 2].map(i64::to_le_bytes).concat();
    [b"MMIDIDX\0\0", &1u64.to_le_bytes()[..], &[code], &counts, &lengths, &places].concat()
}

/// A list of objects, one without text.
pub fn json() -> Vec<u8> {
    "\u{feff}[\n {\"text\": \"größe\", \"texts\": [{\"text\": \"a\"}, {\"text\": \"\\ud83d\"}]},\n {\"text\": null, \"texts\": [], \"n\": NaN}\n]\n".into()
}

/// Text, plain and in every packing, and JSON lines in one.
pub fn texts() -> Vec<Vec<u8>> {
    let text = "größer und kleiner, ".repeat(20);
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("gzip")
    };
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
    let bzip2 = bzip2.write_all(text.as_bytes()).and_then(|()| bzip2.finish()).expect("bzip2");
    let zstd = zstd::encode_all(text.as_bytes(), 3).expect("zstd");
    vec![
        text.as_bytes().to_vec(),
        gzip(text.as_bytes()),
        zstd,
        bzip2,
        [gzip(&json_lines()), gzip(b"\n"), gzip(&json_lines())].concat(),
    ]
}

/// Lines with and without text, one of them blank.
pub fn json_lines() -> Vec<u8> {
    "{\"text\": \"größe\", \"id\": [1, 2e3]}\n\n{\"meta\": null, \"text\": \"\\ud83e\\udd80\"}\r\n{\"text\": \"\"}".into()
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// A byte-level BPE, trained here; one whose ids have a gap; one that was converted from a SentencePiece model.
pub fn tokenizer_jsons() -> Vec<Vec<u8>> {
    let texts = ["the cat sat on the mat ".repeat(9), "größer, größer".to_owned()];
    let trained = Tokenizer::train(&texts, 290).expect("a tokenizer");
    let gap = std::fs::read(fixture("tokenizers/added-token-behind-a-gap/tokenizer.json")).expect("a fixture");
    let converted = Tokenizer::load(&fixture("sentencepiece/unigram_keep_symbols.model")).expect("a good model");
    vec![trained.json().into(), gap, converted.json().into()]
}

/// What lies beside a tokenizer in Hugging Face's layout.
pub fn tokenizer_config() -> Vec<u8> {
    br#"{"bos_token": {"content": "<s>", "special": true}, "eos_token": "a", "name_or_path": "t", "fingerprint": "0"}"#.into()
}

/// The models of the fixtures.
pub fn sentencepiece() -> Vec<Vec<u8>> {
    let names =
        ["bpe.model", "sentencepiece/bpe_bytes.model", "sentencepiece/unigram_fold_symbols.model", "sentencepiece/word.model"];
    names.map(|name| std::fs::read(fixture(name)).expect("a fixture")).to_vec()
}

/// A configuration with something in every section.
pub fn config() -> Vec<u8> {
    let text = "seed = 3\n[model]\npreset = \"20M\"\nvocab = 300\n[pc]\ntargets = [\"o\", \"ffn\"]\nlevel = 2\n[optimizer]\nkind = \"muon\"\n\
                lr = 1e-3\nbetas = [0.9, 0.95]\n[schedule]\nkind = \"wsd\"\ndecay_steps = 5\n[data]\nseq_len = 64\n[train]\nsteps = 10\n";
    text.into()
}

/// Models of both architectures, with each kind of rotary embedding.
pub fn config_json() -> Vec<Vec<u8>> {
    let text = include_str!("../../tests/fixtures/transformers/cases.json");
    let cases: serde_json::Value = serde_json::from_str(text).expect("JSON");
    let cases = cases["losses"].as_array().expect("a list").iter();
    cases.map(|case| serde_json::to_vec(&case["config"]).expect("JSON")).collect()
}

/// Two tensors.
pub fn safetensors() -> Vec<u8> {
    let header: BTreeMap<&str, serde_json::Value> = BTreeMap::from([
        ("__metadata__", serde_json::json!({"format": "pt"})),
        ("a", serde_json::json!({"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]})),
        ("b", serde_json::json!({"dtype": "BF16", "shape": [3], "data_offsets": [8, 14]})),
    ]);
    let header = serde_json::to_vec(&header).expect("JSON");
    [&(header.len() as u64).to_le_bytes()[..], &header, &[7; 14]].concat()
}

/// The `state.json` of a checkpoint without files.
pub fn state(step: u64) -> Vec<u8> {
    checkpoint::text_of(&State { step, tokens: 96, position: 6, windows: 9, ..State::default() }).into_bytes()
}

/// Two tensors in two files.
pub fn weights_index() -> Vec<u8> {
    br#"{"metadata": {"total_size": 24}, "weight_map": {"a.weight": "model-1.safetensors", "b.weight": "part/model-2.safetensors"}}"#.into()
}

/// Five steps with everything that a line of metrics may have; the last line lacks its end.
pub fn metrics() -> Vec<u8> {
    let line = |step: u64| {
        serde_json::json!({
            "step": step, "tokens": 32 * step, "seconds": 0.5 * step as f64, "loss": 5.0, "lr": 1e-3, "grad_norm": 0.5, "loss_scale": null,
            "skipped_steps": 0, "tokens_per_second": 64.0, "memory_bytes": 1024, "val_loss": 5.5, "gmcn": {"all": 20.0, "pc": 3.0, "plain": 40.0},
            "layers": {"gradient_norm": {"a": 1.0}, "weight_norm": {"a": 2.0}, "gamma": {"model.layers.0.mlp.up_proj": [1.0, 2.0]}, "residual_rms": [1.0], "residual_max": [2.0]}, "ranks": {"count": 2, "bytes": 96, "seconds": 0.1, "slowest": 1},
        })
        .to_string()
    };
    let lines = (1..=5).map(line).collect::<Vec<_>>().join("\n");
    [lines.as_bytes(), b"\n{\"step\": 6, \"tok"].concat()
}

/// A measurement of two values.
pub fn measurements() -> Vec<u8> {
    br#"{"version": "0.1.0", "adapter": "a", "kind": "Cpu, Vulkan", "driver": "d", "kernels": "host", "system": "linux", "seconds": 1.5,
        "interrupted": false, "rows": [{"part": "memory", "what": "copy", "column": "f32", "unit": "GB/s", "value": 12.5, "spread": 0.1},
        {"part": "steps", "what": "20M", "column": "plain", "unit": "ms", "value": 3.5, "of_limit": 0.5, "note": "n"}],
        "left_out": [{"part": "steps", "what": "1B", "reason": "memory"}], "failed": []}"#
        .iter()
        .map(|&byte| if byte == b'\n' { b' ' } else { byte })
        .collect()
}

/// A study with the record of one run.
pub fn study() -> Vec<u8> {
    let header = serde_json::json!({
        "format": 1, "program": "llama_pc 0", "scale": "small", "design": {"seeds": 2, "points": 3, "centers": [5, 7]},
        "machine": {"adapter": "a", "driver": "d", "kernels": "host", "cores": 2}, "jobs": 2, "steps": 2, "tokens_per_step": 32,
        "data": {"folder": "data/demo", "tokens": 99, "checksum": 1, "vocab": 300},
        "sizes": [{"dim": 8, "layers": 1, "heads": 1, "intermediate_size": 8, "parameters": 9, "init_scale": {"o": 1.5}},
            {"dim": 16, "layers": 1, "heads": 1, "intermediate_size": 8, "parameters": 9, "init_scale": {}}],
        "times": [{"size": 0, "arm": {"optimizer": "adamw", "treatment": "plain"}, "seconds": 0.1}],
        "plan": [{"what": "all", "runs": 1, "minutes": 0.5}],
    });
    let record = serde_json::json!({
        "spec": {"size": 0, "arm": {"optimizer": "adamw", "treatment": {"level": 2}}, "rate": 5, "seed": 1, "iterations": 10},
        "config": {"seed": "1", "pc.level": "2"}, "diverged_at": null, "loss": [5.0, 4.0], "grad_norm": [0.5, null], "tokens_per_second": [9, 8],
        "validation": [[2, 4.5]], "gmcn": [[2, {"all": 20.0, "pc": 3.0, "plain": 40.0}]], "sigma_error": [[2, {"mean": 0.1, "largest": 0.2}]],
        "gamma": {"model.layers.0.mlp.up_proj": [1.0]}, "gamma_steps": [2],
    });
    format!("{header}\n{record}\n").into_bytes()
}

/// All of them, each with the fuzz target that reads it.
pub fn by_target() -> Vec<(&'static str, Vec<u8>)> {
    let mut all = vec![
        ("config", config()),
        ("json", json()),
        ("json_lines", json_lines()),
        ("measurements", measurements()),
        ("metrics", metrics()),
        ("safetensors", safetensors()),
        ("state", state(3)),
        ("study", study()),
        ("tokenizer_config", tokenizer_config()),
        ("weights_index", weights_index()),
    ];
    all.extend(config_json().into_iter().map(|bytes| ("config_json", bytes)));
    all.extend(tokenizer_jsons().into_iter().map(|bytes| ("tokenizer_json", bytes)));
    all.extend(parquets().into_iter().map(|bytes| ("parquet", bytes)));
    all.push(("parquet", nested_parquet(Compression::SNAPPY)));
    all.extend(texts().into_iter().map(|bytes| ("text", bytes)));
    all.extend(sentencepiece().into_iter().map(|bytes| ("sentencepiece", bytes)));
    // The target takes the length of the index and the vocabulary from the first two bytes.
    all.extend(shards().into_iter().map(|bytes| ("shards", [&[24, 3], &bytes[..], &index()].concat())));
    let megatron = megatron_index(8, 2);
    all.push(("shards", [&[megatron.len() as u8, 3], &[1, 0, 2, 0, 3, 0][..], &megatron].concat()));
    all
}
