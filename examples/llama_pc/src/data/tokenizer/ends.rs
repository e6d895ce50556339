//! Which tokens begin and end documents (BOS and EOS).
//!
//! A `tokenizer.json` does not say, so the first of these that does is used: the user's flags; the files beside it in Hugging
//! Face's layout; its post-processor; the SentencePiece model itself; a special token with a usual name.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::{Tokenizer, train};
use crate::terminal::failure::Failure;

/// The file beside a tokenizer that says most of it.
pub const CONFIG: &str = "tokenizer_config.json";

/// Usual names; the first one that is a special token is used.
const BOS_NAMES: [&str; 6] = [train::BOS, "<|begin_of_text|>", "<s>", "<bos>", "[BOS]", "<|startoftext|>"];
const EOS_NAMES: [&str; 6] = [train::EOS, "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "<|endoftext|>"];

/// What the user asks for: a token, or `none`.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    pub bos: Option<String>,
    pub eos: Option<String>,
}

/// The user's word for no token.
pub const NONE: &str = "none";

/// BOS or EOS, if there is one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct End {
    pub id: Option<u32>,
    /// Who says so; empty if nobody does.
    pub why: String,
}

/// The part of a `tokenizer.json` that may name them.
#[derive(Deserialize)]
struct Processor {
    #[serde(default)]
    post_processor: Value,
}

/// One of the two.
#[derive(Clone, Copy)]
struct Side {
    /// `bos` or `eos`, as keys and flags have it.
    key: &'static str,
    names: [&'static str; 6],
    /// Its place among what a post-processor adds: before the text and after it.
    place: usize,
}

/// BOS and EOS of a tokenizer whose file is in `folder`.
pub fn choose(tokenizer: &Tokenizer, folder: Option<&Path>, wishes: &Wishes) -> Result<(End, End), Failure> {
    let bos = Side { key: "bos", names: BOS_NAMES, place: 0 };
    let eos = Side { key: "eos", names: EOS_NAMES, place: 1 };
    Ok((bos.choose(tokenizer, folder, wishes.bos.as_deref())?, eos.choose(tokenizer, folder, wishes.eos.as_deref())?))
}

impl Side {
    fn choose(self, tokenizer: &Tokenizer, folder: Option<&Path>, wish: Option<&str>) -> Result<End, Failure> {
        if let Some(token) = wish {
            return self.wished(tokenizer, token);
        }
        let beside = folder.map_or(Ok(None), |folder| self.beside(tokenizer, folder))?;
        if let Some(end) = beside {
            return Ok(end);
        }
        if let Some(model) = tokenizer.sentencepiece.as_ref().map(|encoder| &encoder.model) {
            // Before the post-processor, which was made from it.
            let id = model.control(if self.place == 0 { &model.bos } else { &model.eos });
            if id.is_some() {
                return Ok(End { id, why: "the SentencePiece model".to_owned() });
            }
        } else if let Some(end) = self.by_post_processor(tokenizer)? {
            return Ok(end);
        }
        let named = self.names.iter().find_map(|name| tokenizer.special.iter().find(|(_, token)| token == name));
        Ok(named.map_or_else(End::default, |(id, _)| End { id: Some(*id), why: "its name".to_owned() }))
    }

    fn wished(self, tokenizer: &Tokenizer, token: &str) -> Result<End, Failure> {
        let key = self.key;
        if token == NONE {
            return Ok(End { id: None, why: format!("--{key} none") });
        }
        if let Some(id) = tokenizer.inner.token_to_id(token) {
            return Ok(End { id: Some(id), why: format!("--{key}") });
        }
        let special: Vec<&str> = tokenizer.special.values().map(String::as_str).take(20).collect();
        let failure = Failure::usage(format!("--{key}: found {token}, expected a token of the vocabulary, or none"));
        Err(if special.is_empty() { failure } else { failure.hint(format!("its special tokens are {}", special.join(", "))) })
    }

    fn by_post_processor(self, tokenizer: &Tokenizer) -> Result<Option<End>, Failure> {
        let json: Processor = serde_json::from_str(&tokenizer.json).map_err(|error| Failure::other(error.to_string()))?;
        let Some((token, id)) = added(&json.post_processor)[self.place].clone() else { return Ok(None) };
        let known = tokenizer.inner.token_to_id(&token);
        if known == Some(id) {
            return Ok(Some(End { id: known, why: "its post-processor".to_owned() }));
        }
        let known = known.map_or("none".to_owned(), |known| known.to_string());
        let message = format!("the post-processor adds {token:?} as {id}, expected its id in the vocabulary, {known}");
        Err(Failure::other(message).hint(self.hint()))
    }

    /// What the files beside the tokenizer say; the first that speaks of it counts, even if it says that there is none.
    fn beside(self, tokenizer: &Tokenizer, folder: &Path) -> Result<Option<End>, Failure> {
        let key = self.key;
        let (token, number) = (format!("{key}_token"), format!("{key}_token_id"));
        for (name, key) in [(CONFIG, &token), ("special_tokens_map.json", &token), ("generation_config.json", &number)] {
            let path = folder.join(name);
            let Some(said) = read(&path)?.and_then(|json| json.get(key).cloned()) else { continue };
            // A token with its properties, or several EOS of which the first is the usual one.
            let value = said.get("content").or_else(|| said.get(0)).unwrap_or(&said);
            let id = match value {
                Value::Null => None,
                Value::String(text) => {
                    tokenizer.inner.token_to_id(text).map(Some).ok_or_else(|| self.foreign(&path, key, value))?
                }
                value => {
                    let id = value.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|id| tokenizer.token(*id).is_some());
                    id.map(Some).ok_or_else(|| self.foreign(&path, key, value))?
                }
            };
            return Ok(Some(End { id, why: name.to_owned() }));
        }
        Ok(None)
    }

    fn foreign(self, path: &Path, key: &str, value: &Value) -> Failure {
        let found = format!("{}: {key}: found {value}, expected a token of the tokenizer beside it", path.display());
        Failure::other(found).hint(self.hint())
    }

    fn hint(self) -> String {
        format!("prepare --{0} TOKEN sets another, --{0} none omits it", self.key)
    }
}

/// The JSON of a file, if there is one.
fn read(path: &PathBuf) -> Result<Option<Value>, Failure> {
    if !path.is_file() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(path).map_err(|error| Failure::io("read", path, &error))?;
    let json = serde_json::from_str(&text);
    json.map(Some).map_err(|error| Failure::other(format!("{}: found {error}, expected JSON", path.display())))
}

/// The token that a post-processor adds before a text, and the one after it, where it is one.
fn added(processor: &Value) -> [Option<(String, u32)>; 2] {
    if let Some(steps) = processor["processors"].as_array() {
        let mut found = [None, None];
        for step in steps {
            let [before, after] = added(step);
            found = [found[0].take().or(before), found[1].take().or(after)];
        }
        return found;
    }
    // [CLS] and [SEP] of BERT and RoBERTa.
    let pair = |key: &str| Some((processor[key][0].as_str()?.to_owned(), u32::try_from(processor[key][1].as_u64()?).ok()?));
    let Some(template) = processor["single"].as_array() else { return [pair("cls"), pair("sep")] };
    let text = template.iter().position(|part| part.get("Sequence").is_some());
    let (before, after) = template.split_at(text.unwrap_or(template.len()));
    let token = |parts: &[Value]| {
        let [part] = parts else { return None };
        let name = part["SpecialToken"]["id"].as_str()?;
        let special = &processor["special_tokens"][name];
        let [token] = &special["tokens"].as_array()?[..] else { return None };
        Some((token.as_str()?.to_owned(), u32::try_from(special["ids"][0].as_u64()?).ok()?))
    };
    [token(before), token(after.get(1..).unwrap_or_default())]
}

/// Lines that tell the user which tokens documents stand between.
pub fn report(tokenizer: &Tokenizer) -> Vec<String> {
    let (bos, eos) = tokenizer.ends();
    let describe = |name: &str, end: &End| {
        let id = end.id?;
        let token = tokenizer.token(id).unwrap_or_default();
        Some(format!("{name} is {token} ({id}, from {})", end.why))
    };
    let mut lines = Vec::new();
    let found: Vec<String> = [describe("BOS", bos), describe("EOS", eos)].into_iter().flatten().collect();
    if !found.is_empty() {
        lines.push(found.join(", "));
    }
    for end in [bos, eos] {
        if let Some(token) = end.id.filter(|id| !tokenizer.special.contains_key(id)).and_then(|id| tokenizer.token(id)) {
            lines.push(format!("note: {token} is an ordinary token: text may contain it, too"));
        }
    }
    let asked = eos.why.starts_with("--");
    let kind = if asked { "note" } else { "warning" };
    let advice = if asked { "" } else { "; --eos TOKEN sets one" };
    match (bos.id, eos.id) {
        (None, None) => lines.push(format!("{kind}: no BOS and no EOS: documents will not be separated{advice}")),
        (Some(_), None) => {
            lines.push(format!(
                "{kind}: no EOS: documents will be separated by BOS only, and a model will not learn to stop{advice}"
            ));
        }
        _ => {}
    }
    lines
}
