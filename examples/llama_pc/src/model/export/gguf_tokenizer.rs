//! The tokenizer inside a GGUF. Two kinds can be told to llama.cpp: byte-level BPE (its `gpt2`), which is merges and the name of a
//! known way to cut text into words, and SentencePiece's BPE with bytes to fall back on (its `llama`), which is scores.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value as Json;

use super::gguf_metadata::{Metadata, Value};
use super::merged::Merged;
use crate::data::sentencepiece::SPACE;
use crate::data::tokenizer::Tokenizer;
use crate::terminal::failure::Failure;

/// Kinds of tokens by their number in the format.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// The cuts into words that llama.cpp has a name for, by their regular expression.
const CUTS: [(&str, &str); 3] = [
    (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", "gpt-2"),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "llama-bpe",
    ),
    (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+", "qwen2"),
];

/// What matters of a `tokenizer.json`.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    normalizer: Json,
    #[serde(default)]
    pre_tokenizer: Json,
    model: Model,
}

#[derive(Deserialize)]
struct Added {
    id: usize,
    content: String,
    special: bool,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: Json,
    #[serde(default)]
    merges: Vec<Merge>,
    #[serde(default)]
    byte_fallback: bool,
    unk_token: Option<String>,
}

/// A merge in the newer and in the older form of the file.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Joined(String),
}

impl Merge {
    /// `left right`.
    fn joined(&self) -> String {
        match self {
            Self::Pair(left, right) => format!("{left} {right}"),
            Self::Joined(text) => text.clone(),
        }
    }
}

/// The metadata of the model's tokenizer; llama.cpp's word for none where there is none.
pub fn metadata(model: &Merged) -> Result<Metadata, Failure> {
    let Some(tokenizer) = &model.tokenizer else {
        return Ok(vec![("tokenizer.ggml.model", Value::Text("no_vocab".to_owned()))]);
    };
    describe(tokenizer, model.sizes.vocab).map_err(|reason| Failure::other(format!("{}/tokenizer.json: {reason}", model.name)))
}

fn describe(tokenizer: &Tokenizer, vocab: usize) -> Result<Metadata, String> {
    let file: File = serde_json::from_str(tokenizer.json()).map_err(|error| format!("found {error}, expected a tokenizer"))?;
    let kind = file.model.kind.as_deref().unwrap_or("of no type");
    if kind != "BPE" {
        return Err(format!("found a model {kind}, expected BPE, the one that can be exported to GGUF"));
    }
    let (tokens, kinds) = file.tokens(vocab)?;
    let mut metadata = if file.model.byte_fallback { file.sentencepiece(&tokens)? } else { file.byte_level()? };
    metadata.push(("tokenizer.ggml.tokens", Value::Texts(tokens)));
    metadata.push(("tokenizer.ggml.token_type", Value::Integers(kinds)));
    let ids = [("bos", tokenizer.bos()), ("eos", tokenizer.eos()), ("unknown", tokenizer.unknown())];
    for (name, id) in ids {
        let key = match name {
            "bos" => "tokenizer.ggml.bos_token_id",
            "eos" => "tokenizer.ggml.eos_token_id",
            _ => "tokenizer.ggml.unknown_token_id",
        };
        metadata.extend(id.map(|id| (key, Value::U32(id))));
    }
    // Documents began with BOS in training, see `Tokenizer::encode_piece`.
    metadata.push(("tokenizer.ggml.add_bos_token", Value::Bool(tokenizer.bos().is_some())));
    metadata.push(("tokenizer.ggml.add_eos_token", Value::Bool(false)));
    Ok(metadata)
}

impl File {
    /// The text and the kind of every id below `vocab`; ids that the tokenizer does not know are unused.
    fn tokens(&self, vocab: usize) -> Result<(Vec<String>, Vec<i32>), String> {
        let wrong = || "found a vocabulary of another form, expected numbers by their text".to_owned();
        let mut tokens: Vec<String> = (0..vocab).map(|id| format!("[PAD{id}]")).collect();
        let mut kinds = vec![UNUSED; vocab];
        let mut set = |id: usize, text: &str, kind: i32| {
            let token = tokens.get_mut(id).ok_or_else(|| format!("found token {id}, expected less than the model's {vocab}"))?;
            *token = text.to_owned();
            kinds[id] = kind;
            Ok::<(), String>(())
        };
        for (text, id) in self.model.vocab.as_object().ok_or_else(wrong)? {
            let id = id.as_u64().ok_or_else(wrong)? as usize;
            let is_unknown = self.model.unk_token.as_deref() == Some(text);
            let kind = match () {
                () if is_unknown => UNKNOWN,
                () if self.model.byte_fallback && is_byte(text) => BYTE,
                () => NORMAL,
            };
            set(id, text, kind)?;
        }
        for added in &self.added_tokens {
            let is_unknown = self.model.unk_token.as_deref() == Some(&added.content);
            let kind = match added.special {
                _ if is_unknown => UNKNOWN,
                true => CONTROL,
                false => USER_DEFINED,
            };
            set(added.id, &added.content, kind)?;
        }
        Ok((tokens, kinds))
    }

    fn byte_level(&self) -> Result<Metadata, String> {
        if !self.normalizer.is_null() {
            let found = type_of(&self.normalizer);
            return Err(format!("found a normalizer {found}, expected none: llama.cpp would not apply it"));
        }
        let merges = self.model.merges.iter().map(Merge::joined).collect();
        Ok(vec![
            ("tokenizer.ggml.model", Value::Text("gpt2".to_owned())),
            ("tokenizer.ggml.pre", Value::Text(self.cut()?.to_owned())),
            ("tokenizer.ggml.merges", Value::Texts(merges)),
        ])
    }

    /// llama.cpp's name for the way that text is cut into words.
    fn cut(&self) -> Result<&'static str, String> {
        let steps = match self.pre_tokenizer["pretokenizers"].as_array() {
            Some(steps) => steps.iter().collect(),
            None => vec![&self.pre_tokenizer],
        };
        let bytes = |step: &Json| type_of(step) == "ByteLevel" && step["add_prefix_space"] == Json::Bool(false);
        let regex = match steps[..] {
            [step] if bytes(step) && step["use_regex"] != Json::Bool(false) => Some(CUTS[0].0),
            [split, step] if bytes(step) && step["use_regex"] == Json::Bool(false) => split["pattern"]["Regex"].as_str(),
            _ => None,
        };
        let known = CUTS.iter().find(|(known, _)| regex == Some(known)).map(|(_, name)| *name);
        let names: Vec<&str> = CUTS.iter().map(|(_, name)| *name).collect();
        known.ok_or_else(|| {
            let found = regex.map_or_else(|| type_of(&self.pre_tokenizer).to_owned(), |regex| format!("the regex {regex}"));
            format!("found a pre_tokenizer {found}, expected the byte-level one of {}", names.join(", "))
        })
    }

    /// A merge's rank is the score of its result, negated: llama.cpp merges the pair of the highest score first.
    fn sentencepiece(&self, tokens: &[String]) -> Result<Metadata, String> {
        let steps = match self.normalizer["normalizers"].as_array() {
            Some(steps) => steps.iter().collect(),
            None if self.normalizer.is_null() => Vec::new(),
            None => vec![&self.normalizer],
        };
        let prefix = |step: &&Json| type_of(step) == "Prepend" && step["prepend"] == SPACE;
        let space = |step: &&Json| type_of(step) == "Replace" && step["pattern"]["String"] == " " && step["content"] == SPACE;
        if let Some(other) = steps.iter().find(|step| !prefix(step) && !space(step)) {
            let found = type_of(other);
            return Err(format!("found a normalizer {found}, expected only marks for spaces: llama.cpp would not apply it"));
        }
        let first_only = self.pre_tokenizer["pretokenizers"][0]["type"] == "Metaspace";
        let defined = self.added_tokens.iter().find(|token| !token.special);
        if let Some(token) = defined.filter(|_| first_only || steps.iter().any(prefix)) {
            let found = &token.content;
            return Err(format!("found the user-defined token {found:?}, expected none: llama.cpp would put a space after it"));
        }
        if !self.pre_tokenizer.is_null() {
            let found = type_of(&self.pre_tokenizer);
            return Err(format!("found a pre_tokenizer {found}, expected none beside byte_fallback"));
        }
        let mut ranks: HashMap<String, usize> = HashMap::new();
        for (rank, merge) in self.model.merges.iter().enumerate() {
            ranks.entry(merge.joined().replace(' ', "")).or_insert(rank);
        }
        let last = self.model.merges.len();
        let score = |token: &String| -(ranks.get(token).copied().unwrap_or(last) as f32);
        Ok(vec![
            ("tokenizer.ggml.model", Value::Text("llama".to_owned())),
            ("tokenizer.ggml.pre", Value::Text("default".to_owned())),
            ("tokenizer.ggml.scores", Value::Floats(tokens.iter().map(score).collect())),
            ("tokenizer.ggml.add_space_prefix", Value::Bool(steps.iter().any(prefix))),
        ])
    }
}

/// `<0x00>` to `<0xFF>`.
fn is_byte(text: &str) -> bool {
    let digits = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
}

fn type_of(step: &Json) -> &str {
    step["type"].as_str().unwrap_or("of no type")
}
