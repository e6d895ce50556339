//! Text to tokens and back: a `tokenizer.json`, a converted SentencePiece model, or a byte-level BPE trained here.

use std::collections::HashSet;
use std::path::Path;

use clap::ValueEnum;
use tokenizers::AddedToken;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;

use super::foreign;
use super::guard::guarded;
use super::pieces::Piece;
use super::{sentencepiece, sentencepiece_train};
use crate::terminal::failure::Failure;

/// Special tokens of a tokenizer trained here; their ids are 0 and 1.
const BOS: &str = "<|bos|>";
const EOS: &str = "<|eos|>";

/// Common names of the BOS and EOS tokens, since `tokenizer.json` does not say which they are; the first one found is used.
const BOS_NAMES: [&str; 6] = [BOS, "<|begin_of_text|>", "<s>", "<bos>", "[BOS]", "<|startoftext|>"];
const EOS_NAMES: [&str; 6] = [EOS, "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "<|endoftext|>"];

const UNKNOWN_NAMES: [&str; 3] = ["<unk>", "[UNK]", "<|unk|>"];

/// A kind of BPE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Style {
    /// Merges bytes within words, as GPT-2 does
    ByteLevel,
    /// Merges characters, with bytes for rare ones, as SentencePiece does
    Sentencepiece,
}

/// The smallest byte-level vocabulary: every byte and the two special tokens.
const MIN_BYTE_LEVEL: usize = 256 + 2;

/// The smallest vocabulary that can be trained, and what it consists of.
pub const fn min_vocab(style: Style) -> (usize, &'static str) {
    match style {
        Style::ByteLevel => (MIN_BYTE_LEVEL, "the bytes and two special tokens"),
        Style::Sentencepiece => (sentencepiece_train::MIN_VOCAB, "the bytes, three special tokens and the space"),
    }
}

/// A tokenizer with its JSON, which is copied to every run and export.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    json: String,
    bos: Option<u32>,
    eos: Option<u32>,
    /// Whether it prepends a space to every text, which would duplicate a space where a text was split.
    adds_space: bool,
    unknown: Option<u32>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json` or a SentencePiece `.model`.
    pub fn load(path: &Path) -> Result<Self, Failure> {
        foreign::refuse(path, "a tokenizer.json or a SentencePiece model")?;
        let bytes = std::fs::read(path).map_err(|error| Failure::io("read", path, &error))?;
        let named = |reason: String| Failure::other(format!("{}: {reason}", path.display()));
        if path.extension().is_some_and(|extension| extension == "model") {
            let json = sentencepiece::to_json(&bytes).map_err(named)?;
            return Self::from_json(json.to_string()).map_err(named);
        }
        String::from_utf8(bytes)
            .map_err(|_| "found other bytes than UTF-8, expected a tokenizer.json".to_owned())
            .and_then(Self::from_json)
            .map_err(named)
    }

    /// Trains a byte-level BPE of at most `vocab` tokens: fewer if no pair occurs twice any more. The same
    /// texts give the same tokenizer, in any order.
    pub fn train(texts: &[String], vocab: usize) -> Result<Self, Failure> {
        let fail = |error: tokenizers::Error| Failure::other(format!("cannot train a tokenizer: {error}"));
        let special = [BOS, EOS].map(|token| AddedToken::from(token, true));
        let trainer = BpeTrainer::builder()
            .vocab_size(vocab)
            .min_frequency(2)
            .show_progress(false)
            .special_tokens(special.to_vec())
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect::<HashSet<char>>())
            .build();
        let mut inner = tokenizers::Tokenizer::new(BPE::default());
        inner.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
        inner.with_decoder(Some(ByteLevel::default()));
        inner.train(&mut TrainerWrapper::from(trainer), texts.iter()).map_err(fail)?;
        let template = TemplateProcessing::builder()
            .try_single(format!("{BOS} $A"))
            .and_then(|builder| builder.try_pair(format!("{BOS} $A {BOS} $B")))
            .map_err(|error| Failure::other(format!("cannot train a tokenizer: {error}")))?
            .special_tokens(vec![(BOS, 0)])
            .build()
            .map_err(|error| Failure::other(format!("cannot train a tokenizer: {error}")))?;
        inner.with_post_processor(Some(template));
        let json = inner.to_string(true).map_err(fail)?;
        Self::from_json(json).map_err(|reason| Failure::other(format!("cannot train a tokenizer: {reason}")))
    }

    /// Trains a BPE of at most `vocab` tokens in SentencePiece's way: characters, and bytes for rare ones.
    pub fn train_sentencepiece(texts: &[String], vocab: usize) -> Result<Self, Failure> {
        sentencepiece_train::train(texts, vocab)
            .and_then(Self::from_json)
            .map_err(|reason| Failure::other(format!("cannot train a tokenizer: {reason}")))
    }

    /// From the text of a `tokenizer.json`; the error says what was found and expected.
    fn from_json(json: String) -> Result<Self, String> {
        let wrong =
            |error: tokenizers::Error| format!("found {}, expected a tokenizer.json", error.to_string().replace('\n', " "));
        let parsed = guarded(|| tokenizers::Tokenizer::from_bytes(json.as_bytes()));
        let parsed = parsed.map_err(|panic| format!("found damage ({panic}), expected a tokenizer.json"))?;
        let mut inner = parsed.map_err(wrong)?;
        inner.with_truncation(None).map_err(wrong)?;
        inner.with_padding(None);
        // Text that looks like a special token must not be encoded as one.
        inner.set_encode_special_tokens(true);
        let id = |names: &[&str]| names.iter().find_map(|name| inner.token_to_id(name));
        let (bos, eos, unknown) = (id(&BOS_NAMES), id(&EOS_NAMES), id(&UNKNOWN_NAMES));
        let mut this = Self { inner, json, bos, eos, adds_space: false, unknown };
        let ids = |text: &str| this.encode(text).map_err(|failure| failure.to_string());
        let (whole, left, right) = (ids("a b")?, ids("a")?, ids("b")?);
        this.adds_space = whole == [left.clone(), right].concat() && whole != [left, ids(" b")?].concat();
        Ok(this)
    }

    /// The tokens of a text, without any special ones.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Failure> {
        let fail = |reason: String| Failure::other(format!("cannot encode the text: {reason}"));
        let encoding = guarded(|| self.inner.encode_fast(text, false)).map_err(fail)?;
        Ok(encoding.map_err(|error| fail(error.to_string()))?.get_ids().to_vec())
    }

    /// The tokens of a piece, with BOS where its document begins and EOS where it ends, if the tokenizer has them.
    pub fn encode_piece(&self, piece: &Piece) -> Result<Vec<u32>, Failure> {
        let text = match piece.text.strip_prefix(' ') {
            Some(rest) if self.adds_space && !piece.begins => rest,
            _ => &piece.text,
        };
        let mut tokens = self.encode(text)?;
        if piece.begins {
            tokens.splice(..0, self.bos);
        }
        if piece.ends {
            tokens.extend(self.eos);
        }
        Ok(tokens)
    }

    /// Decodes tokens, skipping special ones. Bytes that are not (yet) UTF-8 become U+FFFD.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, Failure> {
        self.inner.decode(tokens, true).map_err(|error| Failure::other(format!("cannot decode tokens: {error}")))
    }

    /// One more than the highest token id.
    pub fn vocab_size(&self) -> usize {
        let highest = self.inner.get_vocab(true).into_values().max();
        highest.map_or(0, |token| token as usize + 1)
    }

    /// The BOS token.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The EOS token.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The unknown token.
    pub fn unknown(&self) -> Option<u32> {
        self.unknown
    }

    /// The text of one token as the vocabulary spells it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The `tokenizer.json` itself.
    pub fn json(&self) -> &str {
        &self.json
    }

    /// Writes `tokenizer.json`.
    pub fn save(&self, path: &Path) -> Result<(), Failure> {
        std::fs::write(path, &self.json).map_err(|error| Failure::io("write", path, &error))
    }
}

#[cfg(test)]
#[path = "tokenizer_tests.rs"]
mod tests;
