//! Trains a BPE as SentencePiece does: over characters instead of bytes, with a marker for spaces, pieces that never cross the end of
//! a word or a line, and byte fallback for rare characters.

use std::collections::{HashMap, HashSet};

use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{SplitDelimiterBehavior, Tokenizer};

use super::sentencepiece::{CONTROL_PIECES, SPACE, byte_fallback_bpe};

/// Character coverage: the share of the text made up by characters with a piece of their own. SentencePiece's default.
const COVERAGE: f64 = 0.9995;

/// SentencePiece's longest piece, in characters.
const LONGEST: usize = 16;

/// Units that no piece may cross: a word with the space before it, a digit, punctuation, a run of spaces.
const WORD: &str = r"▁?\p{L}[\p{L}\p{M}]*|▁?\p{N}|▁?[^▁\p{L}\p{N}]+|▁+";

/// The smallest vocabulary: the special pieces, every byte and the marker for spaces, which bytes cannot represent.
pub const MIN_VOCAB: usize = CONTROL_PIECES + 256 + 1;

const MARK: char = '\u{2581}';

/// The JSON of a tokenizer of at most `vocab` pieces. The same texts give the same tokenizer, in any order.
pub fn train(texts: &[String], vocab: usize) -> Result<String, String> {
    let room = vocab - CONTROL_PIECES - 256;
    let characters = covering_characters(texts, room);
    let known: HashSet<char> = characters.iter().copied().collect();
    // Lines, because SentencePiece treats each as a sentence; a character without a piece ends a word, because it never merges.
    let lines = texts.iter().flat_map(|text| text.lines()).flat_map(|line| {
        let marked = line.replace(' ', SPACE);
        marked.split(|c| !known.contains(&c)).filter(|part| !part.is_empty()).map(str::to_owned).collect::<Vec<_>>()
    });
    let fail = |error: tokenizers::Error| error.to_string();
    let trainer = BpeTrainer::builder()
        .vocab_size(room)
        .min_frequency(2)
        .show_progress(false)
        .max_token_length(Some(LONGEST))
        .initial_alphabet(known.iter().copied().collect())
        .build();
    let mut inner = Tokenizer::new(BPE::default());
    let words = Split::new(SplitPattern::Regex(WORD.to_owned()), SplitDelimiterBehavior::Isolated, false).map_err(fail)?;
    inner.with_pre_tokenizer(Some(words));
    inner.train(&mut TrainerWrapper::from(trainer), lines).map_err(fail)?;

    let mut pieces: Vec<(u32, String)> = inner.get_vocab(false).into_iter().map(|(text, id)| (id, text)).collect();
    pieces.sort();
    let merged: Vec<String> = pieces.into_iter().map(|(_, text)| text).filter(|text| text.chars().nth(1).is_some()).collect();
    let characters: Vec<String> = characters.iter().map(char::to_string).collect();
    Ok(byte_fallback_bpe(&merged, &characters).to_string())
}

/// The marker for spaces, then the most frequent other characters, up to [`COVERAGE`] of the text or `room` characters.
fn covering_characters(texts: &[String], room: usize) -> Vec<char> {
    let mut counts: HashMap<char, u64> = HashMap::new();
    for c in texts.iter().flat_map(|text| text.chars()).filter(|c| !matches!(c, '\n' | '\r')) {
        let c = if c == ' ' { MARK } else { c };
        *counts.entry(c).or_default() += 1;
    }
    let wanted = (counts.values().sum::<u64>() as f64 * COVERAGE).ceil() as u64;
    let spaces = counts.get(&MARK).copied().unwrap_or(0);
    let mut ranked: Vec<(char, u64)> = counts.into_iter().collect();
    ranked.retain(|(c, _)| *c != MARK);
    ranked.sort_by_key(|(c, count)| (std::cmp::Reverse(*count), *c));
    let mut covered = spaces;
    let enough = ranked.iter().take_while(|(_, count)| {
        let more = covered < wanted;
        covered += count;
        more
    });
    std::iter::once(MARK).chain(enough.map(|(c, _)| *c)).take(room).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tokenizer::Tokenizer;

    fn texts() -> Vec<String> {
        let text = "fn main() {\n        let größe = 12345;\n        println!(\"größe {größe}\");\n}\n";
        vec![text.repeat(200), "the cat sat on the mat, and the dog sat on the log. ".repeat(200) + "日"]
    }

    fn trained(vocab: usize) -> Tokenizer {
        Tokenizer::train_sentencepiece(&texts(), vocab).expect("a tokenizer")
    }

    #[test]
    fn every_text_comes_back_whole() {
        let tokenizer = trained(335);
        for text in ["the cat", " größe\n\n\tx  y ", "日本 🦀", "", "a\r\nb", "\u{2581}"] {
            let tokens = tokenizer.encode(text).expect("tokens");
            let back = tokenizer.decode(&tokens).expect("text");
            // SentencePiece's own mark is the one text that it cannot tell from a space.
            assert_eq!(back, text.replace('\u{2581}', " "));
        }
    }

    #[test]
    fn pieces_are_ordered_as_sentencepiece_orders_them() {
        let tokenizer = trained(335);
        assert_eq!(tokenizer.vocab_size(), 335);
        let piece = |id: u32| tokenizer.token(id).expect("a piece");
        assert_eq!([piece(0), piece(1), piece(2), piece(3), piece(258)].join(" "), "<unk> <s> </s> <0x00> <0xFF>");
        assert_eq!((tokenizer.unknown(), tokenizer.bos(), tokenizer.eos()), (Some(0), Some(1), Some(2)));
        let merged = (259..335).map(piece).take_while(|text| text.chars().count() > 1).count();
        assert!(merged > 20 && (259 + merged as u32..335).all(|id| piece(id).chars().count() == 1), "{merged}");
    }

    #[test]
    fn pieces_stay_within_words_and_rare_characters_are_bytes() {
        let tokenizer = trained(335);
        let pieces: Vec<String> = (259..335).map(|id| tokenizer.token(id).expect("a piece")).collect();
        let space = '\u{2581}';
        for piece in &pieces {
            let inner_space = piece.trim_start_matches(space).contains(space);
            let digits = piece.chars().filter(char::is_ascii_digit).count();
            assert!(!inner_space && digits <= 1 && piece.chars().count() <= LONGEST, "{piece:?}");
        }
        assert!(pieces.iter().any(|piece| piece == "\u{2581}the"), "{pieces:?}");
        assert!(pieces.iter().any(|piece| piece.len() > 3 && piece.chars().all(|c| c == space)), "{pieces:?}");
        assert!(!pieces.iter().any(|piece| piece.contains('日')));
        // The prefix, then three bytes.
        assert_eq!(tokenizer.encode("日").expect("tokens").len(), 4);
    }

    #[test]
    fn the_order_of_texts_does_not_matter_and_small_vocabularies_hold() {
        let mut reversed = texts();
        reversed.reverse();
        let reversed = Tokenizer::train_sentencepiece(&reversed, 330).expect("a tokenizer");
        assert_eq!(trained(330).json(), reversed.json());
        let least = trained(MIN_VOCAB);
        assert_eq!(least.vocab_size(), MIN_VOCAB);
        assert_eq!(least.decode(&least.encode("größe").expect("tokens")).expect("text"), "größe");
    }
}
