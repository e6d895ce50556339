//! Converts a model to a `tokenizer.json` for other programs, and reads it back.
//!
//! BPE merges are not stored in a model; they follow from the pieces, because every pair of pieces whose concatenation is a piece may
//! merge, the best score first. What the format cannot express is as near as it can be; the model itself is in the file, too.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::model::{Algorithm, Kind, Model, Piece};
use super::normalize::Normalizer;
use super::{SPACE, base64};

/// The key of the normalizer that holds the model. Other programs ignore it.
const EMBEDDED: &str = "sentencepiece_model";

/// The bytes of the model in a `tokenizer.json` that was converted here; none in another file.
pub fn embedded(normalizer: &Value) -> Result<Option<Vec<u8>>, String> {
    let Some(text) = normalizer.get(EMBEDDED) else { return Ok(None) };
    let bytes = text.as_str().and_then(base64::decode);
    bytes.map(Some).ok_or_else(|| format!("found damage in normalizer.{EMBEDDED}, expected a SentencePiece model in base64"))
}

/// The `tokenizer.json` of a BPE with byte fallback, in SentencePiece's order: unknown, BOS, EOS, the bytes, then `merged` pieces in
/// merge order, then single characters. Text is not normalised, except that a space is prepended.
pub fn byte_fallback_bpe(merged: &[String], characters: &[String]) -> Value {
    let special = |text: &str, kind| Piece { text: text.to_owned(), score: 0.0, kind };
    let mut model = Model { algorithm: Algorithm::Bpe, byte_fallback: true, merge_spaces: false, ..Model::empty() };
    model.pieces = vec![special("<unk>", Kind::Unknown), special("<s>", Kind::Control), special("</s>", Kind::Control)];
    model.pieces.extend((0..=255u8).map(|byte| special(&format!("<0x{byte:02X}>"), Kind::Byte)));
    let ranked = merged.iter().chain(characters).enumerate();
    model.pieces.extend(ranked.map(|(rank, text)| Piece { text: text.clone(), score: -(rank as f32), kind: Kind::Normal }));
    model.to_json()
}

impl Model {
    /// A `tokenizer.json` as near to the model as the format allows, with the model's `bytes` in it.
    pub fn to_json_with(&self, bytes: &[u8]) -> Value {
        let mut json = self.to_json();
        json["normalizer"][EMBEDDED] = base64::encode(bytes).into();
        json
    }

    fn to_json(&self) -> Value {
        let mut cuts = Vec::new();
        if self.first_only() {
            cuts.push(json!({"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first", "split": false}));
        }
        let inner = match self.algorithm {
            Algorithm::Bpe => self.bpe(&self.merges()),
            Algorithm::Char => self.bpe(&[]),
            Algorithm::Unigram => json!({
                "type": "Unigram",
                "unk_id": self.unknown(),
                "vocab": self.pieces.iter().map(|piece| json!([piece.text, piece.score])).collect::<Vec<_>>(),
                "byte_fallback": self.byte_fallback,
            }),
            Algorithm::Word => {
                let pattern = json!({"String": SPACE});
                cuts.push(json!({"type": "Split", "pattern": pattern, "behavior": "MergedWithNext", "invert": false}));
                json!({"type": "WordLevel", "vocab": self.vocab(), "unk_token": self.pieces[self.unknown()].text})
            }
        };
        json!({
            "version": "1.0",
            "added_tokens": self.added_tokens(),
            "normalizer": self.normalizer(),
            "pre_tokenizer": if cuts.is_empty() { Value::Null } else { json!({"type": "Sequence", "pretokenizers": cuts}) },
            "post_processor": self.post_processor(),
            "decoder": self.decoder(),
            "model": inner,
        })
    }

    fn vocab(&self) -> serde_json::Map<String, Value> {
        self.pieces.iter().enumerate().map(|(id, piece)| (piece.text.clone(), json!(id))).collect()
    }

    fn bpe(&self, merges: &[(&str, &str)]) -> Value {
        json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": self.pieces[self.unknown()].text,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": self.byte_fallback,
            "ignore_merges": false,
            "vocab": self.vocab(),
            "merges": merges,
        })
    }

    /// Every pair of pieces that makes a piece, best score first, ties by the ids.
    fn merges(&self) -> Vec<(&str, &str)> {
        let mergeable = self.pieces.iter().enumerate().filter(|(_, piece)| piece.kind == Kind::Normal);
        let ids: HashMap<&str, usize> = mergeable.clone().map(|(id, piece)| (piece.text.as_str(), id)).collect();
        let mut merges = Vec::new();
        for (id, piece) in mergeable {
            for (at, _) in piece.text.char_indices().skip(1) {
                let (left, right) = piece.text.split_at(at);
                if let (Some(l), Some(r)) = (ids.get(left), ids.get(right)) {
                    merges.push((piece.score, id, *l, *r));
                }
            }
        }
        merges.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| (a.1, a.2, a.3).cmp(&(b.1, b.2, b.3))));
        let text = |id: usize| self.pieces[id].text.as_str();
        merges.into_iter().map(|(.., left, right)| (text(left), text(right))).collect()
    }

    /// Whether the space before a text must be added behind the added tokens, because a normalizer would add one after each of them.
    fn first_only(&self) -> bool {
        let defines = self.algorithm != Algorithm::Word && self.pieces.iter().any(|piece| piece.kind == Kind::UserDefined);
        defines && self.dummy_space && self.mark_spaces && !self.space_after_word
    }

    fn added_tokens(&self) -> Vec<Value> {
        let plain = Model { dummy_space: false, ..self.settings() };
        let plain = Normalizer::new(&plain);
        // One that the normalizer leaves as it is can be looked for in the whole text after it.
        let kept = |text: &str| {
            let normal = plain.as_ref().ok().and_then(|plain| plain.normalize(text, true, true).ok());
            normal.is_some_and(|normal| normal == if self.mark_spaces { text.replace(' ', SPACE) } else { text.to_owned() })
        };
        // Spaces are marked before pieces are looked for, so that one with a space in it is never found. Words are not cut at them.
        let found = |piece: &Piece| self.algorithm != Algorithm::Word && !(self.mark_spaces && piece.text.contains(' '));
        let added = self.pieces.iter().enumerate().filter(|(_, piece)| match piece.kind {
            Kind::Unknown | Kind::Control => true,
            Kind::UserDefined => found(piece),
            _ => false,
        });
        added
            .map(|(id, piece)| {
                json!({
                    "id": id,
                    "content": piece.text,
                    "single_word": false,
                    "lstrip": false,
                    "rstrip": false,
                    "normalized": piece.kind == Kind::UserDefined && kept(&piece.text),
                    "special": piece.kind != Kind::UserDefined,
                })
            })
            .collect()
    }

    fn normalizer(&self) -> Value {
        let space = if self.mark_spaces { SPACE } else { " " };
        let mut steps = Vec::new();
        if !self.charsmap.is_empty() {
            steps.push(json!({"type": "Precompiled", "precompiled_charsmap": base64::encode(&self.charsmap)}));
        }
        if self.merge_spaces {
            let extra = r"\A +| +\z|(?<= ) +";
            steps.push(json!({"type": "Replace", "pattern": {"Regex": extra}, "content": ""}));
        }
        match (self.dummy_space, self.space_after_word) {
            (true, false) if self.first_only() => {}
            (true, false) => steps.push(json!({"type": "Prepend", "prepend": space})),
            (true, true) => steps.push(json!({"type": "Replace", "pattern": {"Regex": r"(?<=[\s\S])\z"}, "content": space})),
            (false, _) => {}
        }
        if self.mark_spaces {
            steps.push(json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE}));
        }
        json!({"type": "Sequence", "normalizers": steps})
    }

    /// Prepends BOS when special tokens are requested.
    fn post_processor(&self) -> Value {
        self.control(&self.bos).map_or(Value::Null, |id| bos_template(&self.bos, id))
    }

    fn decoder(&self) -> Value {
        let mut steps = Vec::new();
        if self.mark_spaces {
            steps.push(json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}));
        }
        steps.extend([json!({"type": "ByteFallback"}), json!({"type": "Fuse"})]);
        if self.dummy_space {
            let (start, stop) = if self.space_after_word { (0, 1) } else { (1, 0) };
            steps.push(json!({"type": "Strip", "content": " ", "start": start, "stop": stop}));
        }
        json!({"type": "Sequence", "decoders": steps})
    }
}

/// A `post_processor` that prepends a token when special ones are requested.
pub fn bos_template(token: &str, id: u32) -> Value {
    let bos = json!({"SpecialToken": {"id": token, "type_id": 0}});
    let (a, b) = (json!({"Sequence": {"id": "A", "type_id": 0}}), json!({"Sequence": {"id": "B", "type_id": 0}}));
    json!({
        "type": "TemplateProcessing",
        "single": [bos, a],
        "pair": [bos, a, bos, b],
        "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_converted_file_carries_its_model() {
        assert_eq!(embedded(&Value::Null), Ok(None));
        assert_eq!(embedded(&json!({EMBEDDED: "Zm9v"})), Ok(Some(b"foo".to_vec())));
        assert!(embedded(&json!({EMBEDDED: 3})).is_err() && embedded(&json!({EMBEDDED: "?"})).is_err());
    }
}
