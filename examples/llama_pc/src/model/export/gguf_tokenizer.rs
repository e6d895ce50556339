//! The tokenizer inside a GGUF. Two kinds can be told to llama.cpp: byte-level BPE (its `gpt2`), which is merges and the name of a
//! known way to cut text into words, and SentencePiece's BPE with bytes to fall back on (its `llama`), which is scores.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;
use serde_json::Value as Json;

use super::gguf_metadata::{Metadata, Value};
use super::merged::Merged;
use crate::data::sentencepiece::SPACE;
use crate::data::tokenizer::Tokenizer;
use crate::terminal::failure::Failure;
use crate::terminal::output::note;

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
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    single_word: bool,
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
    let eos = match tokenizer.eos() {
        Some(id) => id,
        None => stand_in(tokenizer.bos(), &tokens, &kinds)?,
    };
    let mut metadata = if file.model.byte_fallback { file.sentencepiece(&tokens)? } else { file.byte_level()? };
    metadata.push(("tokenizer.ggml.tokens", Value::Texts(tokens)));
    metadata.push(("tokenizer.ggml.token_type", Value::Integers(kinds)));
    metadata.push(("tokenizer.ggml.eos_token_id", Value::U32(eos)));
    let ids = [("tokenizer.ggml.bos_token_id", tokenizer.bos()), ("tokenizer.ggml.unknown_token_id", tokenizer.unknown())];
    metadata.extend(ids.into_iter().filter_map(|(key, id)| Some((key, Value::U32(id?)))));
    // Documents began with BOS in training, see `Tokenizer::encode_piece`; where there is none, llama.cpp must not add the one that
    // it presets.
    metadata.push(("tokenizer.ggml.add_bos_token", Value::Bool(tokenizer.bos().is_some())));
    metadata.push(("tokenizer.ggml.add_eos_token", Value::Bool(false)));
    Ok(metadata)
}

/// The token that llama.cpp shall end texts at where there is no EOS. It cannot be told that there is none: it presets an id, that of
/// an ordinary token here. BOS begins the next document; else it is a token that a model hardly ever writes.
fn stand_in(bos: Option<u32>, tokens: &[String], kinds: &[i32]) -> Result<u32, String> {
    let bos = bos.map(|id| id as usize).filter(|id| kinds[*id] == CONTROL);
    let of_kind = |kind: &i32| kinds.iter().position(|other| other == kind);
    let id = bos
        .or_else(|| [UNUSED, CONTROL, UNKNOWN].iter().find_map(of_kind))
        .ok_or("found no EOS and no special token, expected one of them: llama.cpp would end texts at an ordinary token")?;
    note(&format!("note: the tokenizer has no EOS, but llama.cpp needs one: it will end texts at {:?} ({id})", tokens[id]));
    Ok(id as u32)
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
            // Of special ones it does not matter: no text becomes one in training.
            if !added.special && (added.lstrip || added.rstrip || added.single_word) {
                let found = &added.content;
                return Err(format!(
                    "found the token {found:?} with lstrip, rstrip or single_word, expected none of them: llama.cpp would not \
                     apply it"
                ));
            }
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
        self.refuse_other_merges(tokens)?;
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

    /// Refuses a tokenizer that leaves apart what llama.cpp merges: any two neighbours that spell a token, of whatever kind it is.
    fn refuse_other_merges(&self, tokens: &[String]) -> Result<(), String> {
        let merges: HashSet<String> = self.model.merges.iter().map(Merge::joined).collect();
        let known: HashSet<&str> = tokens.iter().map(String::as_str).collect();
        let is_symbol = |part: &str| part.chars().nth(1).is_none() || known.contains(part);
        // llama.cpp cuts user-defined tokens out of a text before it merges.
        let is_cut = |token: &str| self.added_tokens.iter().any(|added| !added.special && token.contains(&added.content));
        for token in tokens {
            let mut halves = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
            let apart =
                halves.find(|(left, right)| is_symbol(left) && is_symbol(right) && !merges.contains(&format!("{left} {right}")));
            if let Some((left, right)) = apart.filter(|_| !is_cut(token)) {
                return Err(format!(
                    "found no merge of {left:?} and {right:?}, expected one: llama.cpp would make the token {token:?} of them"
                ));
            }
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::data::tokenizer::ends::Wishes;

    fn described(json: &Json, wishes: &Wishes, vocab: usize) -> Result<Metadata, String> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("tokenizer.json");
        std::fs::write(&path, json.to_string()).expect("it is written");
        describe(&Tokenizer::load_with(&path, wishes).expect("a tokenizer"), vocab)
    }

    /// A byte-level BPE of 280 tokens: the first, `<doc>`, is special, but of no usual name.
    fn byte_level() -> Json {
        let text = include_str!("../../../tests/fixtures/tokenizers/bos-eos-none/tokenizer.json");
        serde_json::from_str(text).expect("JSON")
    }

    #[test]
    fn no_text_ends_at_an_ordinary_token() {
        let end = |json: &Json, bos: Option<&str>, vocab: usize| {
            let metadata = described(json, &Wishes { bos: bos.map(str::to_owned), eos: None }, vocab)?;
            let adds_bos =
                |(key, value): &(&str, Value)| *key == "tokenizer.ggml.add_bos_token" && matches!(value, Value::Bool(true));
            assert_eq!(metadata.iter().any(adds_bos), bos.is_some());
            Ok::<_, String>(metadata.iter().find_map(|(key, value)| match value {
                Value::U32(id) if *key == "tokenizer.ggml.eos_token_id" => Some(*id),
                _ => None,
            }))
        };
        let mut json = byte_level();
        assert_eq!(end(&json, None, 280), Ok(Some(0)), "the special token");
        assert_eq!(end(&json, None, 300), Ok(Some(280)), "one that no text has");
        assert_eq!(end(&json, Some("<doc>"), 300), Ok(Some(0)), "BOS");
        assert_eq!(end(&json, Some("A"), 300), Ok(Some(280)), "not a BOS that is a letter");
        json["added_tokens"] = json!([]);
        let problem = end(&json, None, 280).expect_err("nothing to end at");
        assert!(problem.starts_with("found no EOS and no special token"), "{problem}");
    }

    #[test]
    fn tokens_that_take_spaces_with_them_are_refused() {
        for key in ["lstrip", "rstrip", "single_word"] {
            let mut json = byte_level();
            json["added_tokens"][0][key] = json!(true);
            assert!(described(&json, &Wishes::default(), 280).is_ok(), "{key} of a special token");
            json["added_tokens"][0]["special"] = json!(false);
            let problem = described(&json, &Wishes::default(), 280).err().expect("a refusal");
            assert!(problem.starts_with("found the token \"<doc>\" with lstrip, rstrip or single_word"), "{problem}");
        }
    }

    #[test]
    fn what_llama_cpp_would_merge_is_merged() {
        let token = |id: usize, content: &str, special: bool| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                   "special": special})
        };
        let problem = |vocab: &[&str], merges: &[[&str; 2]], defined: Option<&str>| {
            let all = [&["<unk>", "</s>", "t", "h", "e"][..], vocab].concat();
            let ids: HashMap<&str, usize> = all.iter().copied().zip(0..).collect();
            let mut added = vec![token(0, "<unk>", true), token(1, "</s>", true)];
            added.extend(defined.map(|text| token(all.len(), text, false)));
            let json = json!({
                "version": "1.0", "added_tokens": added, "pre_tokenizer": null, "post_processor": null, "decoder": null,
                "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
                "model": {"type": "BPE", "unk_token": "<unk>", "byte_fallback": true, "vocab": ids, "merges": merges},
            });
            described(&json, &Wishes::default(), all.len() + 1).err()
        };
        let merges = [["t", "h"], ["th", "e"]];
        assert_eq!(problem(&["th", "the"], &merges, None), None);
        let apart = |left: &str, right: &str| {
            Some(format!(
                "found no merge of {left:?} and {right:?}, expected one: llama.cpp would make the token {:?} of them",
                [left, right].concat()
            ))
        };
        // As an unused piece of a SentencePiece model, and as a BPE that was trained in another way.
        assert_eq!(problem(&["th"], &[], None), apart("t", "h"));
        assert_eq!(problem(&["th", "the", "he"], &[["t", "h"], ["th", "e"], ["h", "e"]], None), apart("t", "he"));
        assert_eq!(problem(&["th", "the"], &merges, Some("he")), None, "never merged");
        assert_eq!(problem(&["the"], &[], Some("he")), None, "never merged");
        // Text must not become a special token.
        assert_eq!(problem(&["</", "s", ">", "s>"], &[["s", ">"]], None), apart("</", "s>"));
    }
}
