//! Reads a `tokenizer.json` or a SentencePiece model, and fixes or refuses what would give other tokens than the file says.
//!
//! The `tokenizers` crate numbers added tokens itself, after the vocabulary, whatever ids the file gives them; and it drops merges at
//! random where the file was saved with dropout.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use crate::data::guard::guarded;
use crate::data::sentencepiece::{SentencePiece, embedded};

/// A tokenizer's file as far as it has been read.
pub struct File {
    pub inner: tokenizers::Tokenizer,
    pub sentencepiece: Option<SentencePiece>,
    pub json: String,
    /// What was changed, as lines for the user.
    pub notes: Vec<String>,
    pub unknown: Option<u32>,
    /// Whether text can vanish.
    pub loses: bool,
}

/// Ids must be below: the largest vocabulary that a model may have.
const MOST_IDS: u32 = 1 << 24;

/// Unused ids that are filled, at most; more are a mistake of the file.
const MOST_UNUSED: usize = 1 << 16;

/// What the checks need.
#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    model: Model,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
}

#[derive(Deserialize)]
struct Model {
    vocab: Vocab,
    merges: Option<IgnoredAny>,
    dropout: Option<f64>,
    unk_token: Option<String>,
    unk_id: Option<u32>,
    #[serde(default)]
    byte_fallback: Option<bool>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Vocab {
    Ids(HashMap<String, u32>),
    /// Of a unigram model: the place is the id.
    List(Vec<(String, IgnoredAny)>),
}

impl File {
    /// From the bytes of a SentencePiece `.model`.
    pub fn model(bytes: &[u8]) -> Result<Self, String> {
        if let Some(found) = other_format(bytes) {
            return Err(format!("found {found}, expected a SentencePiece model"));
        }
        let model = SentencePiece::parse(bytes)?;
        let json = model.model.to_json_with(bytes).to_string();
        Self::json(json.into_bytes())
    }

    /// From the bytes of a `tokenizer.json`.
    pub fn json(bytes: Vec<u8>) -> Result<Self, String> {
        if let Some(found) = other_format(&bytes) {
            return Err(format!("found {found}, expected a tokenizer.json"));
        }
        let json = String::from_utf8(bytes).map_err(|_| "found other bytes than UTF-8, expected a tokenizer.json".to_owned())?;
        let inner = parse(&json)?;
        let parts: Parts = serde_json::from_str(&json).map_err(|error| format!("found {error}, expected a tokenizer.json"))?;
        let mut file = Self { inner, sentencepiece: None, json, notes: Vec::new(), unknown: None, loses: parts.loses() };
        let ids = parts.ids()?;
        let moved = || parts.added_tokens.iter().find(|token| file.inner.token_to_id(&token.content) != Some(token.id));
        let (dropout, gaps) = (parts.model.dropout.filter(|dropout| *dropout != 0.0), moved().is_some());
        if dropout.is_some() || gaps {
            let mut json: Value = serde_json::from_str(&file.json).map_err(|error| error.to_string())?;
            if let Some(dropout) = dropout {
                json["model"]["dropout"] = Value::Null;
                file.notes.push(format!("note: the tokenizer was saved with dropout {dropout}: it is switched off"));
            }
            if gaps {
                file.notes.push(fill(&mut json, &parts, &ids)?);
            }
            file.json = json.to_string();
            file.inner = parse(&file.json)?;
        }
        for (id, text) in &ids {
            let found = file.inner.token_to_id(text);
            if found != Some(*id) {
                let found = found.map_or("none".to_owned(), |found| found.to_string());
                return Err(format!("found the id {id} for the token {text:?}, which can only get {found}"));
            }
        }
        file.unknown = parts.unknown(&file.inner);
        file.sentencepiece = embedded(&parts.normalizer)?.map(|bytes| SentencePiece::parse(&bytes)).transpose()?;
        if let Some(model) = &file.sentencepiece {
            let pieces = model.model.pieces.iter().map(|piece| piece.text.as_str());
            if !pieces.eq(ids.values().copied()) {
                return Err(
                    "found other tokens than those of the SentencePiece model that it was converted from, expected the same \
                            (remove normalizer.sentencepiece_model to use the file as it is)"
                        .to_owned(),
                );
            }
        }
        Ok(file)
    }
}

impl Parts {
    /// Every token by its id, as the file says.
    fn ids(&self) -> Result<BTreeMap<u32, &str>, String> {
        let mut texts: HashMap<&str, u32> = match &self.model.vocab {
            Vocab::Ids(ids) => ids.iter().map(|(text, id)| (text.as_str(), *id)).collect(),
            Vocab::List(list) => list.iter().zip(0..).map(|((text, _), id)| (text.as_str(), id)).collect(),
        };
        for Added { id, content } in &self.added_tokens {
            let known = *texts.entry(content).or_insert(*id);
            if known != *id {
                return Err(format!("found the token {content:?} with the ids {known} and {id}, expected one"));
            }
        }
        let mut ids = BTreeMap::new();
        for (text, id) in texts {
            if id >= MOST_IDS {
                return Err(format!("found the id {id} for the token {text:?}, expected less than {MOST_IDS}"));
            }
            if let Some(other) = ids.insert(id, text) {
                let (first, second) = (text.min(other), text.max(other));
                return Err(format!("found the tokens {first:?} and {second:?} with the same id {id}, expected one"));
            }
        }
        Ok(ids)
    }

    fn unknown(&self, inner: &tokenizers::Tokenizer) -> Option<u32> {
        let by_name = || ["<unk>", "[UNK]", "<|unk|>"].iter().find_map(|name| inner.token_to_id(name));
        let said = self.model.unk_token.as_ref().and_then(|token| inner.token_to_id(token));
        said.or(self.model.unk_id).or_else(by_name)
    }

    /// A BPE leaves characters out that it has no token for, unless it has one for unknown ones or tokens for all bytes.
    fn loses(&self) -> bool {
        let Vocab::Ids(ids) = &self.model.vocab else { return false };
        let byte_level = || ByteLevel::alphabet().into_iter().all(|c| ids.contains_key(c.encode_utf8(&mut [0; 4]) as &str));
        let bytes = || (0..=255u8).all(|byte| ids.contains_key(&format!("<0x{byte:02X}>")));
        let has_bytes = if self.model.byte_fallback == Some(true) {
            bytes()
        } else {
            (mentions(&self.pre_tokenizer, "ByteLevel") || mentions(&self.normalizer, "ByteLevel")) && byte_level()
        };
        self.model.merges.is_some() && self.model.unk_token.is_none() && !has_bytes
    }
}

/// Gives every id up to the highest a token, so that all libraries number the added ones as the file does; returns a note.
fn fill(json: &mut Value, parts: &Parts, ids: &BTreeMap<u32, &str>) -> Result<String, String> {
    let highest = ids.last_key_value().map_or(0, |(id, _)| *id);
    let unused: Vec<u32> = (0..highest).filter(|id| !ids.contains_key(id)).collect();
    if unused.len() > MOST_UNUSED {
        let behind = unused.last().and_then(|last| ids.get(&(last + 1)));
        let (count, behind) = (unused.len(), behind.copied().unwrap_or_default());
        return Err(format!("found {count} ids without a token before {behind:?}, expected at most {MOST_UNUSED}"));
    }
    let in_model = match &parts.model.vocab {
        Vocab::Ids(ids) => ids.values().max().map_or(0, |highest| highest + 1),
        Vocab::List(list) => list.len() as u32,
    };
    let known: HashSet<&str> = ids.values().copied().collect();
    for id in &unused {
        let mut name = format!("<|unused_{id}|>");
        while known.contains(name.as_str()) {
            name.insert(1, '|');
        }
        if *id < in_model {
            json["model"]["vocab"][&name] = json!(id);
        } else if let Some(added) = json["added_tokens"].as_array_mut() {
            let (no, yes) = (false, true);
            added.push(json!({
                "id": id, "content": name, "single_word": no, "lstrip": no, "rstrip": no, "normalized": no, "special": yes,
            }));
        }
    }
    if let Some(added) = json["added_tokens"].as_array_mut() {
        added.sort_by_key(|token| token["id"].as_u64());
    }
    Ok(match (unused.first(), unused.last()) {
        (Some(first), Some(last)) => format!(
            "note: {} ids from {first} to {last} have no token; filled with placeholders, because other programs would renumber later tokens",
            unused.len()
        ),
        _ => "note: the added tokens were not in the order of their ids; now sorted, because other programs would renumber them"
            .to_owned(),
    })
}

fn parse(json: &str) -> Result<tokenizers::Tokenizer, String> {
    let parsed = guarded(|| tokenizers::Tokenizer::from_bytes(json.as_bytes()));
    let parsed = parsed.map_err(|panic| format!("found damage ({panic}), expected a tokenizer.json"))?;
    parsed.map_err(|error| format!("found {}, expected a tokenizer.json", error.to_string().replace('\n', " ")))
}

/// Whether a step, or one of a sequence, is of this type.
fn mentions(steps: &Value, kind: &str) -> bool {
    let inner = ["pretokenizers", "normalizers"].iter().filter_map(|key| steps[key].as_array()).flatten();
    steps["type"] == kind || inner.into_iter().any(|step| mentions(step, kind))
}

/// What a file is that is neither, if that can be told.
fn other_format(bytes: &[u8]) -> Option<&'static str> {
    let line = bytes.split(|byte| *byte == b'\n').next().and_then(|line| std::str::from_utf8(line).ok())?;
    let (token, rank) = line.trim_end().split_once(' ')?;
    let base64 = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=');
    let tiktoken = !token.is_empty() && token.bytes().all(base64) && rank.parse::<u32>().is_ok();
    tiktoken.then_some("tiktoken's list of tokens (use the tokenizer.json beside it)")
}
