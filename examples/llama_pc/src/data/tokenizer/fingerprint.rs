//! Whether data and a model use the same tokens.
//!
//! A fingerprint is a hash of what changes the ids of a text: vocabulary, merges, normalizer, pre-tokenizer and added tokens, not the
//! layout of the JSON, nor BOS and EOS. It is in the `meta.json` of prepared data and, beside `tokenizer.json`, in the
//! `tokenizer_config.json` of data, runs and exports.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Tokenizer, ends};
use crate::data::meta;
use crate::data::sentencepiece::SentencePiece;
use crate::terminal::failure::Failure;
use crate::terminal::output::note;

/// Keys of `tokenizer_config.json`.
pub const KEY: &str = "fingerprint";
pub const NAME_KEY: &str = "name_or_path";

/// A tokenizer as a folder records it.
pub struct Recorded {
    pub name: String,
    pub fingerprint: String,
}

/// What the `tokenizer_config.json` in a folder records, if it was written by this program.
pub fn recorded(folder: Option<&Path>) -> Option<Recorded> {
    let text = std::fs::read_to_string(folder?.join(ends::CONFIG)).ok()?;
    let json: Value = serde_json::from_str(&text).ok()?;
    let text = |key: &str| json[key].as_str().map(str::to_owned);
    Some(Recorded { name: text(NAME_KEY)?, fingerprint: text(KEY)? })
}

impl Tokenizer {
    /// The hash, as 16 hexadecimal digits.
    pub fn fingerprint(&self) -> String {
        let mut hash = Hash::new();
        match &self.sentencepiece {
            Some(encoder) => hash_model(encoder, &mut hash),
            None => {
                // What the library writes has every default, whatever the file leaves out.
                let json = self.inner.to_string(false).expect("bug: a tokenizer does not serialise");
                let json: Value = serde_json::from_str(&json).expect("bug: a tokenizer does not serialise to JSON");
                for key in ["added_tokens", "normalizer", "pre_tokenizer", "model"] {
                    hash.json(&json[key]);
                }
            }
        }
        format!("{:016x}", hash.0)
    }
}

fn hash_model(encoder: &SentencePiece, hash: &mut Hash) {
    let model = &encoder.model;
    let flags = [model.byte_fallback, model.space_after_word, model.dummy_space, model.merge_spaces, model.mark_spaces];
    hash.bytes(format!("sentencepiece {:?} {flags:?}", model.algorithm).as_bytes());
    hash.bytes(&model.charsmap);
    for piece in &model.pieces {
        hash.bytes(piece.text.as_bytes());
        hash.bytes(format!("{:08x} {:?}", piece.score.to_bits(), piece.kind).as_bytes());
    }
}

/// 64-bit FNV-1a: guards against accidents, not attacks.
struct Hash(u64);

impl Hash {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn raw(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// With their number, so that neighbours cannot be confused.
    fn bytes(&mut self, bytes: &[u8]) {
        self.raw(&(bytes.len() as u64).to_le_bytes());
        self.raw(bytes);
    }

    /// Keys in order, whatever order the file has.
    fn json(&mut self, value: &Value) {
        match value {
            Value::Array(values) => {
                self.bytes(format!("array {}", values.len()).as_bytes());
                values.iter().for_each(|value| self.json(value));
            }
            Value::Object(values) => {
                self.bytes(format!("object {}", values.len()).as_bytes());
                let mut sorted: Vec<(&String, &Value)> = values.iter().collect();
                sorted.sort_by_key(|(key, _)| *key);
                for (key, value) in sorted {
                    self.bytes(key.as_bytes());
                    self.json(value);
                }
            }
            Value::String(text) => self.bytes(format!("text {text}").as_bytes()),
            value => self.bytes(value.to_string().as_bytes()),
        }
    }
}

/// The tokenizer of data or of a model.
pub struct Origin {
    /// The data or the model, as the user calls it.
    of: String,
    name: String,
    recorded: Option<String>,
    /// Files of the tokenizer: several in a folder that has it in two formats.
    files: Vec<PathBuf>,
}

impl Origin {
    /// Of tokens: a folder of shards or a `.bin`.
    pub fn of_data(data: &Path) -> Option<Self> {
        let mut origin = Self::of_model(data);
        if let Some(parent) = data.parent() {
            origin = origin.or_else(|| Self::of_model(parent));
        }
        let described = meta::of(data).and_then(|meta| Some((meta.tokenizer, meta.fingerprint?)));
        if let Some((name, fingerprint)) = described {
            let files = origin.map_or_else(Vec::new, |origin| origin.files);
            origin = Some(Self { of: String::new(), name, recorded: Some(fingerprint), files });
        }
        origin.map(|origin| Self { of: data.display().to_string(), ..origin })
    }

    /// Of a run or an exported folder.
    pub fn of_model(folder: &Path) -> Option<Self> {
        let files: Vec<PathBuf> = ["tokenizer.json", "tokenizer.model"].iter().map(|name| folder.join(name)).collect();
        let recorded = recorded(Some(folder));
        let exist = files.iter().any(|path| path.is_file());
        (exist || recorded.is_some()).then(|| Self {
            of: folder.display().to_string(),
            name: recorded.as_ref().map_or_else(|| "tokenizer.json".to_owned(), |recorded| recorded.name.clone()),
            recorded: recorded.map(|recorded| recorded.fingerprint),
            files: files.into_iter().filter(|path| path.is_file()).collect(),
        })
    }

    /// All fingerprints: the recorded one and those of the files, as today's program takes them. A file that cannot be read has none.
    fn fingerprints(&self) -> Vec<String> {
        let files = self.files.iter().filter_map(|path| Some(Tokenizer::load(path).ok()?.fingerprint()));
        self.recorded.iter().cloned().chain(files).collect()
    }

    /// `NAME, FINGERPRINT`.
    fn describe(&self, fingerprints: &[String]) -> String {
        format!("{}, {}", self.name, fingerprints.first().map_or("unreadable", String::as_str))
    }
}

/// Refuses data that was prepared with another tokenizer than the model's: its tokens would mean something else. With `insist`, that
/// is a warning.
pub fn check(data: &Path, model: &Path, insist: bool) -> Result<(), Failure> {
    let (of_data, of_model) = (Origin::of_data(data), Origin::of_model(model));
    let missing = |what: &Path, other: &Origin| {
        let (what, name, of) = (what.display(), &other.name, &other.of);
        note(&format!("note: {what} does not say which tokenizer it goes with; it must be that of {of} ({name})"));
    };
    match (of_data, of_model) {
        (Some(found), Some(expected)) => compare(&found, &expected, insist),
        (Some(found), None) => {
            missing(model, &found);
            Ok(())
        }
        (None, Some(expected)) => {
            missing(data, &expected);
            Ok(())
        }
        (None, None) => Ok(()),
    }
}

/// The same of two parts of the data.
pub fn check_parts(first: &Path, second: &Path, insist: bool) -> Result<(), Failure> {
    match (Origin::of_data(second), Origin::of_data(first)) {
        (Some(found), Some(expected)) => compare(&found, &expected, insist),
        _ => Ok(()),
    }
}

fn compare(found: &Origin, expected: &Origin, insist: bool) -> Result<(), Failure> {
    if found.recorded.is_some() && found.recorded == expected.recorded {
        return Ok(());
    }
    let (left, right) = (found.fingerprints(), expected.fingerprints());
    if left.iter().any(|fingerprint| right.contains(fingerprint)) {
        return Ok(());
    }
    let (of, other) = (&found.of, &expected.of);
    let (left, right) = (found.describe(&left), expected.describe(&right));
    let message = format!("{of}: found tokens of another tokenizer ({left}), expected that of {other} ({right})");
    if insist {
        note(&format!("warning: {message}"));
        return Ok(());
    }
    Err(Failure::other(message).hint("the tokens would mean something else; --ignore-tokenizer uses them anyway"))
}
