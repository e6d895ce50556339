//! Small good files of every kind, for tests to damage and for the fuzzer to begin with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

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

/// Two columns in two row groups; some values of `text` are null.
pub fn parquet(compression: Compression, dictionary: bool) -> Vec<u8> {
    let schema = "message m { required binary id (UTF8); optional binary text (UTF8); }";
    let schema = Arc::new(parse_message_type(schema).expect("a schema"));
    let properties = WriterProperties::builder().set_compression(compression).set_dictionary_enabled(dictionary).build();
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties)).expect("a writer");
    for _ in 0..2 {
        let mut group = writer.next_row_group().expect("a row group");
        let columns = [(vec!["1", "2", "3", "4"], None), (vec!["one", "größer", "one"], Some([1i16, 0, 1, 1]))];
        for (values, defined) in columns {
            let values: Vec<ByteArray> = values.into_iter().map(ByteArray::from).collect();
            let mut column = group.next_column().expect("a column").expect("one more");
            let defined = defined.as_ref().map(|levels| levels.as_slice());
            column.typed::<ByteArrayType>().write_batch(&values, defined, None).expect("values are written");
            column.close().expect("the column closes");
        }
        group.close().expect("the group closes");
    }
    writer.into_inner().expect("the file closes")
}

/// [`parquet`] in each way that FineWeb and its like are written.
pub fn parquets() -> Vec<Vec<u8>> {
    let zstd = Compression::ZSTD(ZstdLevel::default());
    vec![parquet(zstd, true), parquet(Compression::SNAPPY, true), parquet(Compression::UNCOMPRESSED, false)]
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

/// All of them, each with the fuzz target that reads it.
pub fn by_target() -> Vec<(&'static str, Vec<u8>)> {
    let mut all = vec![
        ("config", config()),
        ("json_lines", json_lines()),
        ("safetensors", safetensors()),
        ("state", state(3)),
        ("tokenizer_config", tokenizer_config()),
    ];
    all.extend(config_json().into_iter().map(|bytes| ("config_json", bytes)));
    all.extend(tokenizer_jsons().into_iter().map(|bytes| ("tokenizer_json", bytes)));
    all.extend(parquets().into_iter().map(|bytes| ("parquet", bytes)));
    all.extend(sentencepiece().into_iter().map(|bytes| ("sentencepiece", bytes)));
    // The target takes the length of the index and the vocabulary from the first two bytes.
    all.extend(shards().into_iter().map(|bytes| ("shards", [&[24, 3], &bytes[..], &index()].concat())));
    all
}
