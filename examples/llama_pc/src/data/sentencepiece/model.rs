//! What a `.model` says, as far as encoding needs it.
//!
//! It is a protocol buffer (sentencepiece_model.proto): pieces with score and kind, how it was trained, how text is normalized. Fields
//! that are missing have the format's defaults. What Google's library refuses is refused, for the same reasons.

use std::collections::HashSet;

use crate::data::protobuf::{Field, fields};

/// The longest piece in bytes, as in Google's library.
const LONGEST: usize = 8000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Normal,
    Unknown,
    /// Begins and ends texts, for instance; no text becomes one.
    Control,
    /// Text that is always one piece and that normalization leaves as it is.
    UserDefined,
    Unused,
    Byte,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    Unigram,
    Bpe,
    Word,
    Char,
}

pub struct Piece {
    pub text: String,
    pub score: f32,
    pub kind: Kind,
}

pub struct Model {
    pub pieces: Vec<Piece>,
    pub algorithm: Algorithm,
    pub byte_fallback: bool,
    /// Whether the marker for spaces follows words, not precedes them.
    pub space_after_word: bool,
    /// Precompiled map of character replacements; empty for none.
    pub charsmap: Vec<u8>,
    /// Whether a text gets a space before it (or after it, if those follow words).
    pub dummy_space: bool,
    pub merge_spaces: bool,
    /// Whether spaces become [`super::SPACE`].
    pub mark_spaces: bool,
    /// The texts of the pieces that begin and end documents.
    pub bos: String,
    pub eos: String,
}

impl Model {
    /// A model without any piece, and the format's defaults.
    pub fn empty() -> Self {
        Self {
            pieces: Vec::new(),
            algorithm: Algorithm::Unigram,
            byte_fallback: false,
            space_after_word: false,
            charsmap: Vec::new(),
            dummy_space: true,
            merge_spaces: true,
            mark_spaces: true,
            bos: "<s>".to_owned(),
            eos: "</s>".to_owned(),
        }
    }

    /// The same without its pieces.
    pub fn settings(&self) -> Self {
        Self { pieces: Vec::new(), charsmap: self.charsmap.clone(), bos: self.bos.clone(), eos: self.eos.clone(), ..*self }
    }

    /// From the bytes of a file; the error says what was found and expected.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let foreign = || "found no SentencePiece model, expected its pieces".to_owned();
        let mut model = Self::empty();
        for (number, field) in fields(bytes).ok_or_else(foreign)? {
            match (number, field) {
                (1, Field::Bytes(piece)) => model.pieces.push(Piece::parse(piece)?),
                (2, Field::Bytes(trainer)) => model.read_trainer(trainer)?,
                (3, Field::Bytes(normalizer)) => model.read_normalizer(normalizer)?,
                _ => {}
            }
        }
        if model.pieces.is_empty() {
            return Err(foreign());
        }
        model.check()?;
        Ok(model)
    }

    fn read_trainer(&mut self, bytes: &[u8]) -> Result<(), String> {
        for field in fields(bytes).ok_or("found damage in trainer_spec, expected a message")? {
            match field {
                (3, Field::Integer(algorithm)) => {
                    self.algorithm = match algorithm {
                        1 => Algorithm::Unigram,
                        2 => Algorithm::Bpe,
                        3 => Algorithm::Word,
                        4 => Algorithm::Char,
                        other => return Err(format!("found model_type {other}, expected 1 (unigram) to 4 (char)")),
                    }
                }
                (24, Field::Integer(flag)) => self.space_after_word = flag != 0,
                (35, Field::Integer(flag)) => self.byte_fallback = flag != 0,
                // An empty name stands for the default.
                (46, Field::Bytes(name)) if !name.is_empty() => self.bos = text(name, "bos_piece")?,
                (47, Field::Bytes(name)) if !name.is_empty() => self.eos = text(name, "eos_piece")?,
                _ => {}
            }
        }
        Ok(())
    }

    fn read_normalizer(&mut self, bytes: &[u8]) -> Result<(), String> {
        for field in fields(bytes).ok_or("found damage in normalizer_spec, expected a message")? {
            match field {
                (2, Field::Bytes(charsmap)) => self.charsmap = charsmap.to_vec(),
                (3, Field::Integer(flag)) => self.dummy_space = flag != 0,
                (4, Field::Integer(flag)) => self.merge_spaces = flag != 0,
                (5, Field::Integer(flag)) => self.mark_spaces = flag != 0,
                _ => {}
            }
        }
        Ok(())
    }

    pub(super) fn check(&self) -> Result<(), String> {
        let mut seen = HashSet::new();
        for piece in &self.pieces {
            let Piece { text, score, kind } = piece;
            if text.is_empty() || text.contains('\0') || text.len() >= LONGEST {
                return Err(format!("found a piece of {} bytes, {text:.20?}, expected 1 to {LONGEST} and no NUL", text.len()));
            }
            if score.is_nan() || self.algorithm == Algorithm::Unigram && score.is_infinite() {
                return Err(format!("found the score {score} for the piece {text:?}, expected a finite number"));
            }
            if !seen.insert(text.as_str()) {
                return Err(format!("found the piece {text:?} twice, expected it once"));
            }
            if *kind == Kind::Byte && byte(text).is_none() {
                return Err(format!("found the byte piece {text:?}, expected <0x00> to <0xFF>"));
            }
        }
        let count = |kind| self.pieces.iter().filter(|piece| piece.kind == kind).count();
        let expected = if self.byte_fallback { 256 } else { 0 };
        match (count(Kind::Unknown), count(Kind::Byte)) {
            (1, bytes) if bytes == expected => Ok(()),
            (1, bytes) => {
                let with = if self.byte_fallback { "with" } else { "without" };
                Err(format!("found {bytes} byte pieces, expected {expected} {with} byte_fallback"))
            }
            (other, _) => Err(format!("found {other} unknown pieces, expected one")),
        }
    }

    /// The id of the unknown piece.
    pub fn unknown(&self) -> usize {
        self.pieces.iter().position(|piece| piece.kind == Kind::Unknown).expect("bug: the model was not checked")
    }

    /// The id of a control piece.
    pub fn control(&self, text: &str) -> Option<u32> {
        let found = self.pieces.iter().position(|piece| piece.kind == Kind::Control && piece.text == text);
        found.map(|id| id as u32)
    }
}

impl Piece {
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut piece = Self { text: String::new(), score: 0.0, kind: Kind::Normal };
        for field in fields(bytes).ok_or("found damage in a piece, expected a message")? {
            match field {
                (1, Field::Bytes(bytes)) => piece.text = text(bytes, "a piece")?,
                (2, Field::Fixed32(bits)) => piece.score = f32::from_bits(bits),
                (3, Field::Integer(kind)) => {
                    piece.kind = match kind {
                        1 => Kind::Normal,
                        2 => Kind::Unknown,
                        3 => Kind::Control,
                        4 => Kind::UserDefined,
                        5 => Kind::Unused,
                        6 => Kind::Byte,
                        other => return Err(format!("found a piece of kind {other}, expected 1 (normal) to 6 (byte)")),
                    }
                }
                _ => {}
            }
        }
        Ok(piece)
    }
}

fn text(bytes: &[u8], name: &str) -> Result<String, String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| format!("found other bytes than UTF-8 in {name}, expected text"))
}

/// The byte that `<0x00>` to `<0xFF>` stand for.
pub fn byte(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let upper = digits.len() == 2 && digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'A'..=b'F'));
    upper.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}
