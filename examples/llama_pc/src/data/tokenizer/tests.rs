//! Tests of training, loading and encoding.

use std::path::PathBuf;

use super::*;

fn texts() -> Vec<String> {
    (0..50).map(|i| format!("fn number_{i}() -> usize {{\n    {i} // naïve, größer, 日本語 🦀\n}}\n")).collect()
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join("fixtures").join(name)
}

#[test]
fn a_trained_tokenizer_round_trips_any_text() {
    let tokenizer = Tokenizer::train(&texts(), 400).expect("a tokenizer");
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(0), Some(1)));
    assert!((MIN_BYTE_LEVEL..=400).contains(&tokenizer.vocab_size()));
    for text in ["", "fn main() {}", "\t tabs\r\n and ünïcode — 漢字 🦀\0", "  leading", "<|bos|> is text here"] {
        let tokens = tokenizer.encode(text).expect("tokens");
        assert!(tokens.iter().all(|token| *token > 1 && (*token as usize) < tokenizer.vocab_size()));
        assert_eq!(tokenizer.decode(&tokens).expect("text"), text);
    }
}

#[test]
fn documents_begin_and_end() {
    let tokenizer = Tokenizer::train(&texts(), 300).expect("a tokenizer");
    for text in ["a", "fn b"] {
        let piece = |begins, ends| Piece { name: String::new(), text: text.to_owned(), begins, ends };
        let tokens = |begins, ends| tokenizer.encode_piece(&piece(begins, ends)).expect("tokens");
        let (inner, whole) = (tokenizer.encode(text).expect("tokens"), tokens(true, true));
        assert_eq!((whole.first(), whole.last()), (Some(&0), Some(&1)));
        assert_eq!(whole[1..whole.len() - 1], inner);
        assert_eq!(tokens(true, false), whole[..whole.len() - 1]);
        assert_eq!(tokens(false, true), whole[1..]);
        assert_eq!(tokens(false, false), inner);
        assert_eq!(tokenizer.decode(&whole).expect("text"), text);
    }
}

/// Where a long document is cut, its tokens are those that it has uncut.
#[test]
fn pieces_have_the_tokens_of_the_whole() {
    let text = "Some words of a naïve text,  twice  a line; größer 12 34.\n\n\tfn main() {}\n".repeat(40);
    let trained = Tokenizer::train(&texts(), 400).expect("a tokenizer");
    let models = ["bpe.model", "unigram.model"].map(|name| Tokenizer::load(&fixture(name)).expect("the model loads"));
    for tokenizer in models.iter().chain([&trained]) {
        let whole = tokenizer.encode(&text).expect("tokens");
        for (at, _) in text.match_indices(" words").chain(text.match_indices(" a naïve")) {
            let piece = |text: &str, begins| Piece { name: String::new(), text: text.to_owned(), begins, ends: !begins };
            let mut tokens = tokenizer.encode_piece(&piece(&text[..at], true)).expect("tokens");
            tokens.extend(tokenizer.encode_piece(&piece(&text[at..], false)).expect("tokens"));
            let framed: Vec<u32> = tokenizer.bos.iter().chain(&whole).chain(&tokenizer.eos).copied().collect();
            assert_eq!(tokens, framed);
        }
    }
}

#[test]
fn training_is_deterministic_and_saves_what_it_made() {
    let mut reversed = texts();
    reversed.reverse();
    let first = Tokenizer::train(&texts(), 400).expect("a tokenizer");
    assert_eq!(first.json, Tokenizer::train(&reversed, 400).expect("a tokenizer").json);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("tokenizer.json");
    first.save(&path).expect("it is written");
    assert_eq!(Tokenizer::load(&path).expect("it loads").json, first.json);
}

#[test]
fn foreign_files_are_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, bytes) in [("tokenizer.json", &b"{\"a\": 1}"[..]), ("b.json", &[0xff]), ("c.model", b"text")] {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("the file is written");
        let failure = Tokenizer::load(&path).err().expect("a file that must be refused");
        let message = failure.to_string();
        assert!(message.contains(name) && message.contains("expected"), "{message}");
        assert_eq!((failure.status, message.lines().count()), (1, 1));
    }
}

/// The fixtures hold two small models and what the original SentencePiece library makes of some texts with them.
#[test]
fn sentencepiece_models_encode_as_the_original() {
    let expected = std::fs::read_to_string(fixture("sentencepiece.json")).expect("the fixture");
    let expected: serde_json::Value = serde_json::from_str(&expected).expect("JSON");
    for (name, cases) in expected.as_object().expect("an object") {
        let tokenizer = Tokenizer::load(&fixture(name)).expect("the model loads");
        assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), Some(2)), "{name}");
        for case in cases.as_array().expect("cases") {
            let text = case["text"].as_str().expect("a text");
            let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).expect("ids");
            assert_eq!(tokenizer.encode(text).expect("tokens"), ids, "{name}: {text:?}");
            // Null where a piece is unknown, which each library writes in its own way.
            if let Some(decoded) = case["decoded"].as_str() {
                assert_eq!(tokenizer.decode(&ids).expect("text"), decoded, "{name}: {text:?}");
            }
        }
    }
}
