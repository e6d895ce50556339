//! Every reader of untrusted files as a function of bytes, for the property tests and the fuzz targets.
//!
//! A reader may refuse any bytes with an error, but must never panic; and what it accepts must satisfy its invariants, or the
//! function itself panics.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use polytape::safetensors::Reader;

use crate::config::{Config, DataFormat};
use crate::data::documents::{Corpus, Places};
use crate::data::tokenizer::Tokenizer;
use crate::data::tokens::TokenStream;
use crate::inspect::bench::compare;
use crate::inspect::report;
use crate::model::import::index::Index;
use crate::model::{engine, import};
use crate::run::checkpoint::{self, Saved};
use crate::run::metrics::{self, read_metrics};
use crate::run::paths;
use crate::study;
use crate::study::findings::Findings;
use crate::study::record::Kept;
use crate::terminal::failure::Failure;

/// A folder whose files are rewritten by every call.
pub struct Scratch {
    folder: PathBuf,
}

impl Scratch {
    /// In an empty folder.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.folder.join(name);
        fs::write(&path, bytes).expect("the folder can be written to");
        path
    }

    /// Token shards: a `.bin`, its `.idx` if there is one (also Megatron's), and the vocabulary size, in every format.
    pub fn shards(&self, bin: &[u8], idx: Option<&[u8]>, vocab: usize) {
        let path = self.file("0.bin", bin);
        let index = path.with_extension("idx");
        match idx {
            Some(bytes) => fs::write(&index, bytes).expect("the folder can be written to"),
            // The previous call may not have had one either.
            None => drop(fs::remove_file(&index)),
        }
        for format in [DataFormat::Auto, DataFormat::U16, DataFormat::U32] {
            let Some(stream) = taken(TokenStream::open(&path, vocab, format)) else { continue };
            assert!(stream.len() <= bin.len() as u64, "more tokens than bytes");
            let mut tokens = Vec::new();
            if taken(stream.read(0..stream.len(), &mut tokens)).is_some() {
                assert_eq!(tokens.len() as u64, stream.len());
                assert!(tokens.iter().all(|token| (*token as usize) < vocab));
            }
        }
    }

    /// A `tokenizer.json`, which encodes and decodes a text if it loads.
    pub fn tokenizer_json(&self, bytes: &[u8]) {
        use_tokenizer(&self.file("tokenizer.json", bytes));
    }

    /// The `tokenizer_config.json` beside a good tokenizer.
    pub fn tokenizer_config(&self, bytes: &[u8]) {
        const GOOD: &str = r#"{"version": "1.0", "added_tokens": [{"id": 1, "content": "<s>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true}], "normalizer": null, "pre_tokenizer": null,
            "post_processor": null, "decoder": null, "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}"#;
        let path = self.file("tokenizer.json", GOOD.as_bytes());
        let config = self.file("tokenizer_config.json", bytes);
        use_tokenizer(&path);
        fs::remove_file(config).expect("the folder can be written to");
    }

    /// A SentencePiece model.
    pub fn sentencepiece(&self, bytes: &[u8]) {
        use_tokenizer(&self.file("tokenizer.model", bytes));
    }

    /// A run's `config.toml`.
    pub fn config(&self, bytes: &[u8]) {
        let path = self.file("config.toml", bytes);
        let Some(config) = taken(Config::load(Some(&path), &[])) else { return };
        let again = self.file("config.toml", config.to_toml().as_bytes());
        let again = Config::load(Some(&again), &[]);
        assert_eq!(again.expect("what is written is read"), config);
    }

    /// The `config.json` of a folder in Hugging Face's layout.
    pub fn config_json(&self, bytes: &[u8]) {
        self.file("config.json", bytes);
        if let Some((config, _)) = taken(import::describe(&self.folder)) {
            engine::model(&config).check().expect("what is read is a model");
        }
    }

    /// The `state.json` of a checkpoint.
    pub fn state(&self, bytes: &[u8]) {
        self.file("state.json", bytes);
        if let Some(saved) = taken(Saved::open(&self.folder)) {
            let _ = taken(saved.verify(checkpoint::MODEL));
        }
    }

    /// Weights in safetensors.
    pub fn safetensors(&self, bytes: &[u8]) {
        let path = self.file("model.safetensors", bytes);
        let Some(file) = taken(Reader::open(&path).map_err(Failure::from)) else { return };
        for name in &file.names() {
            let values = taken(file.values(name).map_err(Failure::from));
            assert!(values.is_none_or(|values| 2 * values.len() <= bytes.len()), "{name}: more values than bytes");
        }
    }

    /// `model.safetensors.index.json`, of whose files none is there.
    pub fn weights_index(&self, bytes: &[u8]) {
        self.file("model.safetensors.index.json", bytes);
        let Some(index) = taken(Index::read(&self.folder)) else { return };
        let Some(files) = taken(index.files(&self.folder)) else { return };
        let leaves =
            |file: &PathBuf| !file.starts_with(&self.folder) || file.components().any(|part| part == Component::ParentDir);
        assert!(!files.iter().any(leaves), "{files:?}");
        let _ = taken(index.check(&self.folder, &BTreeMap::new(), &files));
    }

    /// A run's `metrics.jsonl`, as the report reads it, and as resuming after three steps leaves it.
    pub fn metrics(&self, bytes: &[u8]) {
        let path = self.file(paths::METRICS, bytes);
        if let Some(rows) = taken(report::rows(&path)) {
            report::page(vec![report::of_rows("run".to_owned(), BTreeMap::new(), &rows, 10)]);
        }
        let _ = taken(read_metrics(&self.folder));
        if taken(metrics::cut(&path, 3)).is_some()
            && let Some(rows) = taken(read_metrics(&self.folder))
        {
            assert!(rows.iter().all(|row| row.step <= 3), "a step beyond the checkpoint");
        }
    }

    /// Lines of `bench --json`, compared with themselves.
    pub fn measurements(&self, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        for report in taken(compare::parse(&text).map_err(Failure::other)).iter().flatten() {
            assert!(!compare::text(report, report).is_empty());
        }
    }

    /// What a study keeps, before it is compressed.
    pub fn study(&self, bytes: &[u8]) {
        let path = self.file("metrics.jsonl.zst", &zstd::encode_all(bytes, 1).expect("compressed"));
        let Some(kept) = taken(Kept::read(&path)) else { return };
        let Some(findings) = taken(Findings::new(&kept)) else { return };
        study::page::page(&findings, "study", "command");
        for record in kept.records.values().take(3) {
            let _ = taken(record.rows(kept.header.tokens_per_step));
        }
    }

    /// JSON lines, with the text at the end of a path.
    pub fn json_lines(&self, bytes: &[u8]) {
        self.documents("documents.jsonl", bytes);
    }

    /// A list of JSON objects, or whatever else a `.json` holds.
    pub fn json(&self, bytes: &[u8]) {
        self.documents("documents.json", bytes);
    }

    /// A Parquet file.
    pub fn parquet(&self, bytes: &[u8]) {
        self.documents("documents.parquet", bytes);
    }

    /// A file of any kind, perhaps compressed.
    pub fn text(&self, bytes: &[u8]) {
        self.documents("document", bytes);
    }

    fn documents(&self, name: &str, bytes: &[u8]) {
        let paths = [self.file(name, bytes)];
        for field in ["text", "texts.text"] {
            let places = Places { paths: &paths, ..Places::default() };
            let Some(corpus) = taken(Corpus::find(&places, field, None)) else { continue };
            let mut within = false;
            let read = corpus.for_each(|piece| {
                assert!(piece.begins() != within && !piece.text.is_empty(), "{piece:?}");
                within = !piece.ends();
                Ok(())
            });
            assert!(taken(read).is_none() || !within, "a document has no end");
        }
    }
}

fn use_tokenizer(path: &Path) {
    let Some(tokenizer) = taken(Tokenizer::load(path)) else { return };
    let Some(tokens) = taken(tokenizer.encode("Naïve text, 12 <s>\u{2581}🦀\n")) else { return };
    let vocab = tokenizer.vocab_size();
    assert!(tokens.iter().all(|token| (*token as usize) < vocab), "{tokens:?} of {vocab}");
    let _ = taken(tokenizer.decode(&tokens));
}

/// Whatever a file holds, its error stays readable: the name of the file and what fits two lines.
const MAX_SENTENCE: usize = 400;

/// What was read; an error must be one short sentence.
fn taken<T>(result: Result<T, Failure>) -> Option<T> {
    let failure = match result {
        Ok(value) => return Some(value),
        Err(failure) => failure,
    };
    let text = failure.to_string();
    let sentence = text.split("\nhint: ").next().unwrap_or_default();
    assert!(!sentence.is_empty() && !sentence.contains('\n') && sentence.chars().count() < MAX_SENTENCE, "{text}");
    None
}

#[cfg(any(test, feature = "samples"))]
pub mod samples;
#[cfg(test)]
mod tests;
