//! Converts a SentencePiece `.model` to an equivalent `tokenizer.json`, so that there is one kind of tokenizer.
//!
//! A `.model` is a protocol buffer (sentencepiece_model.proto): pieces with score and kind, how it was trained, how text
//! is normalised. BPE merges are not stored; they follow from the pieces, because every pair of pieces whose concatenation
//! is a piece may merge, the best score first.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::protobuf::{Field, fields};

/// SentencePiece's marker for a space.
pub const SPACE: &str = "\u{2581}";

/// Kinds of pieces by their number in the format.
const NORMAL: u64 = 1;
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;
const BYTE: u64 = 6;

/// Algorithms by their number in the format.
const UNIGRAM: u64 = 1;
const BPE: u64 = 2;

/// Pieces that [`byte_fallback_bpe`] puts before the bytes.
pub const CONTROL_PIECES: usize = 3;

struct Piece {
    text: String,
    score: f32,
    kind: u64,
}

/// What a `.model` says, as far as encoding needs it; the defaults are the format's.
struct Model {
    pieces: Vec<Piece>,
    algorithm: u64,
    byte_fallback: bool,
    space_after_word: bool,
    /// Precompiled map of character replacements; empty for none.
    charsmap: Vec<u8>,
    space_before_text: bool,
    merge_spaces: bool,
}

/// The JSON of an equivalent `tokenizer.json`; the error says what was found and expected.
pub fn to_json(bytes: &[u8]) -> Result<Value, String> {
    Model::parse(bytes).ok_or("found no SentencePiece model, expected its pieces")?.to_json()
}

/// The `tokenizer.json` of a BPE with byte fallback, in SentencePiece's order: unknown, BOS, EOS, the bytes, then `merged` pieces in
/// merge order, then single characters. Text is not normalised, except that a space is prepended.
pub fn byte_fallback_bpe(merged: &[String], characters: &[String]) -> Result<Value, String> {
    let control = |text: &str, kind| Piece { text: text.to_owned(), score: 0.0, kind };
    let mut pieces = vec![control("<unk>", UNKNOWN), control("<s>", CONTROL), control("</s>", CONTROL)];
    pieces.extend((0..=255u8).map(|byte| control(&format!("<0x{byte:02X}>"), BYTE)));
    let ranked = merged.iter().chain(characters).enumerate();
    pieces.extend(ranked.map(|(rank, text)| Piece { text: text.clone(), score: -(rank as f32), kind: NORMAL }));
    let model = Model {
        pieces,
        algorithm: BPE,
        byte_fallback: true,
        space_after_word: false,
        charsmap: Vec::new(),
        space_before_text: true,
        merge_spaces: false,
    };
    model.to_json()
}

impl Model {
    fn to_json(&self) -> Result<Value, String> {
        if self.space_after_word {
            return Err("found spaces marked after words, expected before them".to_owned());
        }
        let unknown = self.pieces.iter().position(|piece| piece.kind == UNKNOWN);
        let unknown = unknown.ok_or("found no unknown piece, expected one")?;
        let inner = match self.algorithm {
            BPE => self.bpe(unknown),
            UNIGRAM => json!({
                "type": "Unigram",
                "unk_id": unknown,
                "vocab": self.pieces.iter().map(|piece| json!([piece.text, piece.score])).collect::<Vec<_>>(),
                "byte_fallback": self.byte_fallback,
            }),
            other => {
                return Err(format!("found algorithm {other}, expected unigram ({UNIGRAM}) or BPE ({BPE})"));
            }
        };
        Ok(json!({
            "version": "1.0",
            "added_tokens": self.added_tokens(),
            "normalizer": self.normalizer(),
            "pre_tokenizer": null,
            "post_processor": self.post_processor(),
            "decoder": self.decoder(),
            "model": inner,
        }))
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut model = Self {
            pieces: Vec::new(),
            algorithm: UNIGRAM,
            byte_fallback: false,
            space_after_word: false,
            charsmap: Vec::new(),
            space_before_text: true,
            merge_spaces: true,
        };
        for (number, field) in fields(bytes)? {
            match (number, field) {
                (1, Field::Bytes(piece)) => model.pieces.push(Piece::parse(piece)?),
                (2, Field::Bytes(trainer)) => {
                    for field in fields(trainer)? {
                        match field {
                            (3, Field::Integer(algorithm)) => model.algorithm = algorithm,
                            (24, Field::Integer(flag)) => model.space_after_word = flag != 0,
                            (35, Field::Integer(flag)) => model.byte_fallback = flag != 0,
                            _ => {}
                        }
                    }
                }
                (3, Field::Bytes(normalizer)) => {
                    for field in fields(normalizer)? {
                        match field {
                            (2, Field::Bytes(charsmap)) => model.charsmap = charsmap.to_vec(),
                            (3, Field::Integer(flag)) => model.space_before_text = flag != 0,
                            (4, Field::Integer(flag)) => model.merge_spaces = flag != 0,
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        (!model.pieces.is_empty()).then_some(model)
    }

    fn bpe(&self, unknown: usize) -> Value {
        let vocab: serde_json::Map<String, Value> =
            self.pieces.iter().enumerate().map(|(id, piece)| (piece.text.clone(), json!(id))).collect();
        json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": self.pieces[unknown].text,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": self.byte_fallback,
            "ignore_merges": false,
            "vocab": vocab,
            "merges": self.merges(),
        })
    }

    /// Every pair of pieces that makes a piece, best score first, ties by the ids.
    fn merges(&self) -> Vec<(&str, &str)> {
        let mergeable = self.pieces.iter().enumerate().filter(|(_, piece)| matches!(piece.kind, NORMAL | USER_DEFINED));
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

    fn added_tokens(&self) -> Vec<Value> {
        let added = self.pieces.iter().enumerate();
        let added = added.filter(|(_, piece)| matches!(piece.kind, UNKNOWN | CONTROL | USER_DEFINED));
        added
            .map(|(id, piece)| {
                json!({
                    "id": id,
                    "content": piece.text,
                    "single_word": false,
                    "lstrip": false,
                    "rstrip": false,
                    "normalized": false,
                    "special": piece.kind != USER_DEFINED,
                })
            })
            .collect()
    }

    fn normalizer(&self) -> Value {
        let mut steps = Vec::new();
        if !self.charsmap.is_empty() {
            steps.push(json!({"type": "Precompiled", "precompiled_charsmap": base64(&self.charsmap)}));
        }
        if self.merge_spaces {
            let extra = r"\A +| +\z|(?<= ) +";
            steps.push(json!({"type": "Replace", "pattern": {"Regex": extra}, "content": ""}));
        }
        if self.space_before_text {
            steps.push(json!({"type": "Prepend", "prepend": SPACE}));
        }
        steps.push(json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE}));
        json!({"type": "Sequence", "normalizers": steps})
    }

    /// Prepends BOS when special tokens are requested.
    fn post_processor(&self) -> Value {
        let bos = self.pieces.iter().position(|piece| piece.kind == CONTROL && piece.text == "<s>");
        let Some(id) = bos else { return Value::Null };
        let bos = json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
        let (a, b) = (json!({"Sequence": {"id": "A", "type_id": 0}}), json!({"Sequence": {"id": "B", "type_id": 0}}));
        json!({
            "type": "TemplateProcessing",
            "single": [bos, a],
            "pair": [bos, a, bos, b],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [id], "tokens": ["<s>"]}},
        })
    }

    fn decoder(&self) -> Value {
        let mut steps = vec![
            json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if self.space_before_text {
            steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        json!({"type": "Sequence", "decoders": steps})
    }
}

impl Piece {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut piece = Self { text: String::new(), score: 0.0, kind: NORMAL };
        for field in fields(bytes)? {
            match field {
                (1, Field::Bytes(text)) => piece.text = std::str::from_utf8(text).ok()?.to_owned(),
                (2, Field::Fixed32(bits)) => piece.score = f32::from_bits(bits),
                (3, Field::Integer(kind)) => piece.kind = kind,
                _ => {}
            }
        }
        Some(piece)
    }
}

/// RFC 4648, as `tokenizer.json` stores a precompiled map.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let group = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            let digit = DIGITS[(group >> (18 - 6 * i)) as usize & 63];
            text.push(if i <= chunk.len() { digit as char } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_pads() {
        assert_eq!(["", "f", "fo", "foo", "foob"].map(|text| base64(text.as_bytes())), ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg=="]);
    }

    #[test]
    fn foreign_bytes_are_refused() {
        for bytes in [&b""[..], b"{\"version\": 1}", &[0x0a, 0xff]] {
            assert!(to_json(bytes).is_err());
        }
    }
}
