//! Text that a tokenizer has no token for: characters that vanish, and those that become the unknown token; and text that becomes a
//! special token although it only spells it.

use std::collections::BTreeSet;

use tokenizers::{Model, ModelWrapper, OffsetReferential, OffsetType, PreTokenizer};

use super::Tokenizer;
use crate::data::guard::guarded;
use crate::data::pieces::{Edge, Piece};
use crate::terminal::failure::Failure;

/// Share of the characters that may vanish.
const MOST_LOST: f64 = 0.01;

/// Lost characters that a message shows.
const EXAMPLES: usize = 8;

/// What was lost in tokenization.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    characters: u64,
    lost: u64,
    examples: BTreeSet<char>,
    tokens: u64,
    unknown: u64,
    spelt: u64,
    cuts: u64,
}

impl Losses {
    /// Of a text and its tokens, without BOS and EOS.
    pub fn of(tokenizer: &Tokenizer, Piece { text, begin, .. }: &Piece, tokens: &[u32]) -> Result<Self, Failure> {
        let count = |is: &dyn Fn(u32) -> bool| tokens.iter().filter(|token| is(**token)).count() as u64;
        let is_unknown = |token| tokenizer.unknown == Some(token);
        let spelt = count(&|token| tokenizer.special.contains_key(&token) && !is_unknown(token));
        let cuts = match begin {
            Edge::Document => 0,
            Edge::Word => u64::from(!tokenizer.cuts_cleanly),
            Edge::Anywhere => 1,
        };
        let mut losses = Self { tokens: tokens.len() as u64, unknown: count(&is_unknown), spelt, cuts, ..Self::default() };
        if tokenizer.loses {
            losses.characters = text.chars().count() as u64;
            guarded(|| losses.count(tokenizer, text))
                .and_then(|counted| counted.map_err(|error| error.to_string()))
                .map_err(|reason| Failure::other(format!("cannot encode the text: {reason}")))?;
        }
        Ok(losses)
    }

    /// Characters of words that the vocabulary does not have.
    fn count(&mut self, tokenizer: &Tokenizer, text: &str) -> tokenizers::Result<()> {
        let inner = &tokenizer.inner;
        let mut words = inner.get_added_vocabulary().extract_and_normalize(inner.get_normalizer(), text);
        if let Some(cut) = inner.get_pre_tokenizer() {
            cut.pre_tokenize(&mut words)?;
        }
        let known = |text: &str| inner.get_model().token_to_id(text).is_some();
        let ModelWrapper::BPE(model) = inner.get_model() else { return Ok(()) };
        let (prefix, suffix) = (&model.continuing_subword_prefix, &model.end_of_word_suffix);
        for (word, _, tokens) in words.get_splits(OffsetReferential::Normalized, OffsetType::Byte) {
            if tokens.is_some() || model.ignore_merges && known(word) {
                continue;
            }
            for (at, c) in word.char_indices() {
                let before = prefix.as_deref().filter(|_| at > 0).unwrap_or_default();
                let after = suffix.as_deref().filter(|_| at + c.len_utf8() == word.len()).unwrap_or_default();
                let spelt = format!("{before}{c}{after}");
                let in_bytes = || model.byte_fallback && spelt.bytes().all(|byte| known(&format!("<0x{byte:02X}>")));
                if !known(&spelt) && !in_bytes() {
                    self.lost += 1;
                    if self.examples.len() < EXAMPLES {
                        self.examples.insert(c);
                    }
                }
            }
        }
        Ok(())
    }

    pub fn add(&mut self, other: Self) {
        self.characters += other.characters;
        self.lost += other.lost;
        self.tokens += other.tokens;
        self.unknown += other.unknown;
        self.spelt += other.spelt;
        self.cuts += other.cuts;
        let room = EXAMPLES.saturating_sub(self.examples.len());
        self.examples.extend(other.examples.into_iter().take(room));
    }

    /// What to tell the user, or a failure if too much is lost.
    pub fn report(&self) -> Result<Vec<String>, Failure> {
        let mut notes = Vec::new();
        if self.lost > 0 {
            let share = self.lost as f64 / self.characters.max(1) as f64;
            let examples: Vec<String> = self.examples.iter().map(|c| format!("{c:?}")).collect();
            let found = format!(
                "the tokenizer has no token for {} of {} characters ({:.3} %), such as {}",
                self.lost,
                self.characters,
                100.0 * share,
                examples.join(", ")
            );
            if share > MOST_LOST {
                let failure = Failure::other(format!("{found}; expected at most {} %", 100.0 * MOST_LOST));
                return Err(failure.hint("a tokenizer with an unknown token or with tokens for all bytes loses none"));
            }
            notes.push(format!("warning: {found}: they are left out"));
        }
        if self.unknown > 0 {
            let share = 100.0 * self.unknown as f64 / self.tokens as f64;
            let unknown = self.unknown;
            notes.push(format!(
                "note: {unknown} tokens ({share:.3} %) are the unknown token, for text that the tokenizer has no token for"
            ));
        }
        if self.spelt > 0 {
            let spelt = self.spelt;
            notes.push(format!(
                "warning: the text spells special tokens {spelt} times; this kind of tokenizer encodes such text as special tokens"
            ));
        }
        if self.cuts > 0 {
            let cuts = self.cuts;
            notes.push(format!("note: long documents were cut at {cuts} places that this tokenizer's tokens could span"));
        }
        Ok(notes)
    }
}
