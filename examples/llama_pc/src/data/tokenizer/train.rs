//! Trains a byte-level BPE, as GPT-2's, or one in SentencePiece's way.

use std::collections::HashSet;

use clap::ValueEnum;
use tokenizers::AddedToken;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;

use super::Tokenizer;
use crate::data::sentencepiece_train;
use crate::terminal::failure::Failure;

/// Special tokens of a byte-level BPE; their ids are 0 and 1.
pub const BOS: &str = "<|bos|>";
pub const EOS: &str = "<|eos|>";

/// A kind of BPE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Style {
    /// Merges bytes within words, as GPT-2 does
    ByteLevel,
    /// Merges characters, with bytes for rare ones, as SentencePiece does
    Sentencepiece,
}

impl Style {
    /// The special tokens that documents may stand between.
    pub fn special(self) -> &'static [&'static str] {
        match self {
            Self::ByteLevel => &[BOS, EOS],
            Self::Sentencepiece => &["<unk>", "<s>", "</s>"],
        }
    }
}

/// The smallest byte-level vocabulary: every byte and the two special tokens.
pub const MIN_BYTE_LEVEL: usize = 256 + 2;

/// The smallest vocabulary that can be trained, and what it consists of.
pub const fn min_vocab(style: Style) -> (usize, &'static str) {
    match style {
        Style::ByteLevel => (MIN_BYTE_LEVEL, "the bytes and two special tokens"),
        Style::Sentencepiece => (sentencepiece_train::MIN_VOCAB, "the bytes, three special tokens and the space"),
    }
}

impl Tokenizer {
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
}
