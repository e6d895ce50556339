//! Tests of training, loading and encoding.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::train::MIN_BYTE_LEVEL;
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
        let edge = |is_of_document| if is_of_document { Edge::Document } else { Edge::Word };
        let piece = |begin, end| Piece { name: String::new(), text: text.to_owned(), begin, end };
        let tokens = |begins, ends| tokenizer.encode_piece(&piece(edge(begins), edge(ends))).expect("tokens").0;
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
            let whole_piece = |text: &str| Piece::whole(String::new(), text.to_owned());
            let first = Piece { end: Edge::Word, ..whole_piece(&text[..at]) };
            let rest = Piece { begin: Edge::Word, ..whole_piece(&text[at..]) };
            let mut tokens = tokenizer.encode_piece(&first).expect("tokens").0;
            tokens.extend(tokenizer.encode_piece(&rest).expect("tokens").0);
            let framed: Vec<u32> = tokenizer.bos.id.iter().chain(&whole).chain(&tokenizer.eos.id).copied().collect();
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
    first.save(folder.path()).expect("it is written");
    let again = Tokenizer::load(&folder.path().join("tokenizer.json")).expect("it loads");
    assert_eq!((&again.json, again.fingerprint()), (&first.json, first.fingerprint()));
    assert_eq!((again.bos(), again.eos()), (first.bos(), first.eos()));
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

/// A `tokenizer.json` of a character BPE over `a` to `c`, with added tokens as (id, text, special).
fn json_of(vocab: Value, added: &[(u32, &str, bool)], changes: &[(&str, Value)]) -> Value {
    let added: Vec<Value> = added
        .iter()
        .map(|(id, content, special)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                   "special": special})
        })
        .collect();
    let mut json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
                  "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": []},
    });
    for (pointer, value) in changes {
        *json.pointer_mut(pointer).expect("a key") = value.clone();
    }
    json
}

fn letters() -> Value {
    json!({"a": 0, "b": 1, "c": 2, " ": 3})
}

/// Written to a folder with what lies beside it, and loaded.
fn loaded(json: &Value, beside: &[(&str, Value)], wishes: &Wishes) -> Result<Tokenizer, Failure> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, json) in beside.iter().chain([&("tokenizer.json", json.clone())]) {
        std::fs::write(folder.path().join(name), json.to_string()).expect("it is written");
    }
    Tokenizer::load_with(&folder.path().join("tokenizer.json"), wishes)
}

fn refusal(json: &Value, beside: &[(&str, Value)]) -> String {
    loaded(json, beside, &Wishes::default()).err().expect("a refusal").to_string()
}

#[test]
fn the_first_that_speaks_of_bos_and_eos_counts() {
    let special = [(4, "<s>", true), (5, "</s>", true), (6, "<x>", true), (7, "<y>", true), (8, "<bos>", false)];
    let template = |token: &str, id: u32| {
        json!({"type": "Sequence", "processors": [{"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}}}]})
    };
    let by_name = json_of(letters(), &special, &[]);
    let by_template = json_of(letters(), &special, &[("/post_processor", template("<x>", 6))]);
    let roberta = json!({"type": "RobertaProcessing", "sep": ["<y>", 7], "cls": ["<x>", 6], "trim_offsets": true, "add_prefix_space": false});
    let roberta = json_of(letters(), &special, &[("/post_processor", roberta)]);
    let config = ("tokenizer_config.json", json!({"bos_token": null, "eos_token": {"content": "<y>"}}));
    let map = ("special_tokens_map.json", json!({"bos_token": "<x>", "eos_token": "<x>"}));
    let generation = ("generation_config.json", json!({"bos_token_id": 6, "eos_token_id": [7, 5]}));
    let wish = |text: &str| Some(text.to_owned());
    let none = Wishes::default();
    let all = [config.clone(), map.clone(), generation.clone()];
    for (json, beside, wishes, expected) in [
        (&by_name, &[][..], &none, (Some(4), "its name", Some(5), "its name")),
        (&by_template, &[], &none, (Some(6), "its post-processor", Some(5), "its name")),
        (&roberta, &[], &none, (Some(6), "its post-processor", Some(7), "its post-processor")),
        (
            &by_template,
            std::slice::from_ref(&generation),
            &none,
            (Some(6), "generation_config.json", Some(7), "generation_config.json"),
        ),
        (&by_template, &all[1..], &none, (Some(6), "special_tokens_map.json", Some(6), "special_tokens_map.json")),
        (&by_template, &all, &none, (None, "tokenizer_config.json", Some(7), "tokenizer_config.json")),
        (&by_template, &all, &Wishes { bos: wish("a"), eos: wish("none") }, (Some(0), "--bos", None, "--eos none")),
    ] {
        let tokenizer = loaded(json, beside, wishes).expect("a tokenizer");
        let (bos, eos) = tokenizer.ends();
        assert_eq!((bos.id, bos.why.as_str(), eos.id, eos.why.as_str()), expected);
        // Saved and loaded, it stays, and other programs prepend the same BOS.
        let folder = tempfile::tempdir().expect("a temporary folder");
        tokenizer.save(folder.path()).expect("it is written");
        let again = Tokenizer::load(&folder.path().join("tokenizer.json")).expect("it loads");
        assert_eq!((again.bos(), again.eos()), (bos.id, eos.id));
        let other = tokenizers::Tokenizer::from_bytes(tokenizer.json()).expect("it loads elsewhere");
        let ids = other.encode_fast("ab", true).expect("ids").get_ids().to_vec();
        assert_eq!(ids, bos.id.into_iter().chain([0, 1]).collect::<Vec<_>>());
    }
}

#[test]
fn a_token_that_is_not_there_is_named() {
    let json = json_of(letters(), &[(4, "<s>", true)], &[]);
    let usage = loaded(&json, &[], &Wishes { bos: None, eos: Some("<nope>".to_owned()) }).err().expect("a refusal");
    let said = "--eos: found <nope>, expected a token of the vocabulary, or none\nhint: its special tokens are <s>";
    assert_eq!((usage.status, usage.to_string()), (2, said.to_owned()));
    let reason = refusal(&json, &[("tokenizer_config.json", json!({"eos_token": "<|im_end|>"}))]);
    let said = "tokenizer_config.json: eos_token: found \"<|im_end|>\", expected a token of the tokenizer beside it\nhint: prepare --eos";
    assert!(reason.contains(said), "{reason}");
    let reason = refusal(&json, &[("generation_config.json", json!({"bos_token_id": 99}))]);
    assert!(reason.contains("generation_config.json: bos_token_id: found 99"), "{reason}");
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).expect("it is written");
    std::fs::write(folder.path().join("tokenizer_config.json"), "{").expect("it is written");
    let reason = Tokenizer::load(&folder.path().join("tokenizer.json")).err().expect("a refusal").to_string();
    assert!(reason.contains("tokenizer_config.json: found EOF"), "{reason}");
}

#[test]
fn ids_are_those_of_the_file_or_refused() {
    // A hole in the vocabulary, added tokens in another order, a gap before the last.
    let holes = json!({"a": 0, "b": 1, "c": 4, " ": 3});
    let json = json_of(holes.clone(), &[(9, "<z>", false), (5, "<y>", false), (6, "<s>", true)], &[]);
    let tokenizer = loaded(&json, &[], &Wishes::default()).expect("a tokenizer");
    assert_eq!(tokenizer.encode("a<z>c<y>").expect("ids"), [0, 9, 4, 5]);
    assert_eq!((tokenizer.vocab_size(), tokenizer.bos()), (10, Some(6)));
    assert_eq!(tokenizer.decode(&[9, 5, 0]).expect("text"), "<z><y>a");
    let again = tokenizers::Tokenizer::from_bytes(tokenizer.json()).expect("it loads elsewhere");
    assert_eq!(again.encode_fast("a<z>c<y>", false).expect("ids").get_ids(), [0, 9, 4, 5]);
    // A file without gaps stays as it is, to the byte.
    let plain = json_of(letters(), &[(4, "<s>", true)], &[("/post_processor", sentencepiece::bos_template("<s>", 4))]);
    assert_eq!(loaded(&plain, &[], &Wishes::default()).expect("a tokenizer").json(), plain.to_string());
    for (vocab, added, found) in [
        (letters(), &[(7, "a", false)][..], "found the token \"a\" with the ids 0 and 7"),
        (letters(), &[(2, "<z>", false)], "found the tokens \"<z>\" and \"c\" with the same id 2"),
        (letters(), &[(4, "<y>", false), (4, "<z>", false)], "found the tokens \"<y>\" and \"<z>\" with the same id 4"),
        (json!({"a": 0, "b": 0}), &[], "found the tokens \"a\" and \"b\" with the same id 0"),
        (letters(), &[(900_000, "<z>", false)], "found 899996 ids without a token before \"<z>\""),
        (letters(), &[(u32::MAX, "<z>", false)], "found the id 4294967295 for the token \"<z>\""),
        (letters(), &[(4, "", false)], "found the id 4 for the token \"\""),
    ] {
        let reason = refusal(&json_of(vocab, added, &[]), &[]);
        assert!(reason.contains(found), "{reason}");
    }
}

#[test]
fn dropout_is_off() {
    let model =
        json!({"type": "BPE", "dropout": 0.9, "unk_token": null, "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]});
    let json = json_of(json!({}), &[], &[("/model", model)]);
    let tokenizer = loaded(&json, &[], &Wishes::default()).expect("a tokenizer");
    assert_eq!(tokenizer.encode(&"ab".repeat(50)).expect("ids"), [2; 50]);
    assert!(!tokenizer.json().contains("0.9"));
}

#[test]
fn text_without_tokens_is_counted() {
    let losses = |tokenizer: &Tokenizer, text: &str| {
        let piece = Piece::whole(String::new(), text.to_owned());
        tokenizer.encode_piece(&piece).expect("tokens").1
    };
    let special = [(4, "<s>", true), (5, "</s>", true)];
    let bare = loaded(&json_of(letters(), &special, &[]), &[], &Wishes::default()).expect("a tokenizer");
    assert_eq!(losses(&bare, "abc cab").report().expect("nothing is lost"), [""; 0]);
    let few = losses(&bare, &("abc".repeat(100) + "xyx")).report().expect("just enough");
    let said = "warning: the tokenizer has no token for 3 of 303 characters (0.990 %), such as 'x', 'y': they are left out";
    assert_eq!(few, [said]);
    let many = losses(&bare, &("abc".repeat(100) + "xyxy")).report().expect_err("too much is lost");
    assert!(many.to_string().contains("4 of 304 characters (1.316 %)") && many.to_string().contains("at most 1 %"), "{many}");
    let mut sum = losses(&bare, "x");
    sum.add(losses(&bare, &"a".repeat(199)));
    assert!(sum.report().expect("half of a percent")[0].contains("1 of 200 characters"));

    let unknown = json!({"a": 0, "b": 1, "c": 2, " ": 3, "<unk>": 4});
    let unknown = json_of(unknown, &[], &[("/model/unk_token", json!("<unk>"))]);
    let unknown = loaded(&unknown, &[], &Wishes::default()).expect("a tokenizer");
    assert_eq!(unknown.unknown(), Some(4));
    let said = losses(&unknown, "axby").report().expect("nothing is lost");
    assert_eq!(said, ["note: 2 tokens (50.000 %) are the unknown token, for text that the tokenizer has no token for"]);

    // A prefix and a suffix: the same character has a token in one place only.
    let affixed = json_of(
        json!({"a": 0, "##a": 1, "##a.": 2, "b.": 3}),
        &[],
        &[("/model/continuing_subword_prefix", json!("##")), ("/model/end_of_word_suffix", json!("."))],
    );
    let affixed = loaded(&affixed, &[], &Wishes::default()).expect("a tokenizer");
    assert_eq!(affixed.encode("aaa").expect("ids"), [0, 1, 2]);
    assert_eq!(losses(&affixed, "aaa").report().expect("nothing is lost"), [""; 0]);
    assert!(losses(&affixed, "ab").report().is_err());
    // Bytes for some characters only.
    let bytes = json_of(json!({"a": 0, "<0x78>": 1}), &[], &[("/model/byte_fallback", json!(true))]);
    let bytes = loaded(&bytes, &[], &Wishes::default()).expect("a tokenizer");
    assert_eq!(losses(&bytes, "axa").report().expect("nothing is lost"), [""; 0]);
    assert!(losses(&bytes, "aya").report().is_err());

    // Spaces at the end of words: a token may span a cut between words; a cut elsewhere may split any token.
    let over = json!({"type": "BPE", "vocab": {"a": 0, " ": 1, "a ": 2}, "merges": [["a", " "]]});
    let over = loaded(&json_of(json!({}), &[], &[("/model", over)]), &[], &Wishes::default()).expect("a tokenizer");
    for (tokenizer, begin, is_noted) in [(&over, Edge::Word, true), (&bare, Edge::Word, false), (&bare, Edge::Anywhere, true)] {
        let rest = Piece { begin, ..Piece::whole(String::new(), " a".to_owned()) };
        let said = tokenizer.encode_piece(&rest).expect("tokens").1.report().expect("nothing is lost");
        let notes = said.iter().filter(|line| line.starts_with("note: long documents were cut at 1 places"));
        assert_eq!((said.len(), notes.count()), (usize::from(is_noted), usize::from(is_noted)), "{said:?}");
    }

    let words = json!({"type": "WordLevel", "vocab": {"a": 0, "<s>": 4, "<unk>": 1}, "unk_token": "<unk>"});
    let words = json_of(json!({}), &special[..1], &[("/model", words), ("/pre_tokenizer", json!({"type": "WhitespaceSplit"}))]);
    let words = loaded(&words, &[], &Wishes::default()).expect("a tokenizer");
    let said = losses(&words, "a <s> a").report().expect("nothing is lost");
    assert!(matches!(&said[..], [line] if line.starts_with("warning: the text spells special tokens 1 times")), "{said:?}");
}

#[test]
fn a_fingerprint_is_of_the_meaning() {
    let special = [(4, "<s>", true), (5, "</s>", true)];
    let json = json_of(letters(), &special, &[]);
    let print = |json: &Value| loaded(json, &[], &Wishes::default()).expect("a tokenizer").fingerprint();
    let first = print(&json);
    assert_eq!(first.len(), 16);
    // Left out where it is the default; what does not change ids; BOS and EOS.
    let mut sparse = json.clone();
    let model = json!({"type": "BPE", "vocab": {" ": 3, "c": 2, "b": 1, "a": 0}, "merges": [], "dropout": 0.5});
    sparse["model"] = model;
    sparse["truncation"] = json!({"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0});
    assert_eq!(print(&sparse), first);
    let wishes = Wishes { bos: Some("none".to_owned()), eos: Some("a".to_owned()) };
    assert_eq!(loaded(&json, &[], &wishes).expect("a tokenizer").fingerprint(), first);
    let mut others = vec![first];
    for (pointer, value) in [
        ("/model/vocab", json!({"a": 1, "b": 0, "c": 2, " ": 3})),
        ("/model/unk_token", json!("a")),
        ("/normalizer", json!({"type": "Lowercase"})),
        ("/pre_tokenizer", json!({"type": "Whitespace"})),
        ("/added_tokens/0/special", json!(false)),
    ] {
        let other = print(&json_of(letters(), &special, &[(pointer, value)]));
        assert!(!others.contains(&other), "{pointer}");
        others.push(other);
    }
}

#[test]
fn a_converted_sentencepiece_model_stays_exact() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let model = fixture("sentencepiece/unigram_keep_symbols.model");
    let tokenizer = Tokenizer::load(&model).expect("the model loads");
    tokenizer.save(folder.path()).expect("it is written");
    let path = folder.path().join("tokenizer.json");
    let again = Tokenizer::load(&path).expect("it loads");
    assert_eq!((again.name(), again.fingerprint()), ("unigram_keep_symbols.model", tokenizer.fingerprint()));
    assert_eq!(again.sentencepiece_model(), std::fs::read(&model).ok());
    for text in ["a\n\n\nb </s> <ctl>", "  <sep>the 日本12"] {
        assert_eq!(again.encode(text).expect("ids"), tokenizer.encode(text).expect("ids"));
    }
    let mut json: Value = serde_json::from_str(again.json()).expect("JSON");
    json["added_tokens"][0]["content"] = json!("<other>");
    std::fs::write(&path, json.to_string()).expect("it is written");
    let reason = Tokenizer::load(&path).err().expect("a refusal").to_string();
    assert!(reason.contains("the token") || reason.contains("other tokens than those of the SentencePiece model"), "{reason}");
}

#[test]
fn what_is_no_tokenizer_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    for (name, text, found) in [
        ("tokenizer.json", pointer, "found a Git LFS pointer"),
        ("tokenizer.model", pointer, "found a Git LFS pointer"),
        ("tokenizer.model", "IQ== 0\nIg== 1\n", "found tiktoken's list of tokens"),
        ("tokenizer.model", "{\"version\": \"1.0\"}", "found no SentencePiece model"),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("it is written");
        let reason = Tokenizer::load(&path).err().expect("a refusal").to_string();
        assert!(reason.contains(name) && reason.contains(found), "{reason}");
    }
}
