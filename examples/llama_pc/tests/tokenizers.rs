//! Tokenizers of other programs, from outside: every folder of `fixtures/tokenizers` holds the input that shows one thing, and an
//! `expected.json` with commands and what must come of them.
//!
//! Of `right`, or of one of its alternatives, all must hold: `status` (0 unless it is there), `says` (words of what is printed),
//! `documents` (the tokens of prepared data, in any order) and `json` (keys of a file).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;
use serde_json::Value;

/// A copy of a case in a folder of its own.
struct Case {
    folder: tempfile::TempDir,
    expected: Value,
}

impl Case {
    fn new(name: &str) -> Self {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers").join(name);
        let folder = tempfile::tempdir().expect("a temporary folder");
        for entry in fs::read_dir(&from).expect("the fixture") {
            let path = entry.expect("an entry").path();
            fs::copy(&path, folder.path().join(path.file_name().expect("a name"))).expect("a copy");
        }
        let expected = fs::read_to_string(from.join("expected.json")).expect("expected.json");
        Self { folder, expected: serde_json::from_str(&expected).expect("JSON") }
    }

    fn run(&self, command: &str) -> Output {
        let args = command.split(' ').skip(1).map(|word| word.trim_matches('\''));
        let mut program = Command::cargo_bin("llama_pc").expect("the program is built");
        program.current_dir(self.folder.path()).args(args).output().expect("the program runs")
    }

    fn check(&self) {
        for step in self.expected["steps"].as_array().expect("steps") {
            let command = step["run"].as_str().expect("a command");
            let output = self.run(command);
            let rights = match &step["right"] {
                Value::Array(any) => any.clone(),
                one => vec![one.clone()],
            };
            let wrongs: Vec<String> = rights.iter().filter_map(|right| self.wrong(right, &output)).collect();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(wrongs.len() < rights.len(), "{command}: {}\n{said}", wrongs.join("; or: "));
        }
    }

    /// What is not as it must be.
    fn wrong(&self, right: &Value, output: &Output) -> Option<String> {
        let statuses = match &right["status"] {
            Value::Null => vec![0],
            Value::Array(any) => any.iter().filter_map(Value::as_i64).collect(),
            one => vec![one.as_i64().expect("a status")],
        };
        let status = output.status.code().map_or(-1, i64::from);
        if !statuses.contains(&status) {
            return Some(format!("found status {status}, expected {statuses:?}"));
        }
        let said = [&output.stdout[..], &output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        for words in right["says"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            let pattern = regex::RegexBuilder::new(words).case_insensitive(true).multi_line(true).build().expect("a pattern");
            if !pattern.is_match(&said) {
                return Some(format!("found no {words:?} in {said}"));
            }
        }
        if let Some(are) = right["documents"]["are"].as_array() {
            let mut expected: Vec<Vec<u32>> =
                are.iter().map(|document| serde_json::from_value(document["tokens"].clone()).expect("tokens")).collect();
            let mut found = documents(&self.folder.path().join(right["documents"]["in"].as_str().expect("a folder")));
            expected.sort();
            found.sort();
            if found != expected {
                return Some(format!("found {found:?}, expected {expected:?}"));
            }
        }
        for (file, keys) in right["json"].as_object().into_iter().flatten() {
            let found: Value = serde_json::from_slice(&fs::read(self.folder.path().join(file)).expect("a file")).expect("JSON");
            for (key, expected) in keys.as_object().expect("keys") {
                if found[key] != *expected {
                    return Some(format!("{file}: {key}: found {}, expected {expected}", found[key]));
                }
            }
        }
        None
    }
}

/// The token streams of all documents of prepared data.
fn documents(folder: &Path) -> Vec<Vec<u32>> {
    let mut documents = Vec::new();
    for part in ["train", "val"] {
        let entries = fs::read_dir(folder.join(part)).expect("a part").map(|entry| entry.expect("an entry").path());
        let mut bins: Vec<PathBuf> =
            entries.filter(|path| path.extension().is_some_and(|extension| extension == "bin")).collect();
        bins.sort();
        for bin in bins {
            let read = |path: &Path| fs::read(path).expect("a file");
            let tokens: Vec<u32> = read(&bin).as_chunks().0.iter().copied().map(u32::from_le_bytes).collect();
            let ends: Vec<usize> =
                read(&bin.with_extension("idx")).as_chunks().0.iter().map(|end| i64::from_le_bytes(*end) as usize).collect();
            documents.extend(ends.windows(2).map(|ends| tokens[ends[0]..ends[1]].to_vec()));
        }
    }
    documents
}

macro_rules! cases {
    ($($test:ident: $folder:literal,)*) => {
        $(
            #[test]
            fn $test() {
                Case::new($folder).check();
            }
        )*

        #[test]
        fn every_case_is_tested() {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers");
            let entries = fs::read_dir(folder).expect("the fixtures").map(|entry| entry.expect("an entry").file_name());
            let mut found: Vec<String> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
            let mut tested = vec![$($folder),*];
            found.sort();
            tested.sort();
            assert_eq!(found, tested);
        }
    };
}

cases! {
    only_special_tokens_stand_between_documents: "bos-eos-beside-ordinary-tags",
    tokenizer_config_names_bos_and_eos: "bos-eos-from-tokenizer-config",
    without_bos_and_eos_the_user_names_them: "bos-eos-none",
    sentencepiece_protects_user_defined_pieces: "sentencepiece-user-defined-separator",
    sentencepiece_protects_lines: "sentencepiece-user-defined-newline",
    no_text_becomes_a_control_piece: "sentencepiece-control-piece-in-text",
    dropout_is_switched_off: "bpe-dropout",
    lost_characters_are_refused: "bpe-without-unknown-token",
    ids_behind_a_gap_are_kept: "added-token-behind-a-gap",
    data_of_another_tokenizer_are_refused: "data-of-another-tokenizer",
}

/// The special tokens of a BPE that is trained are known before it is.
#[test]
fn a_bpe_to_train_takes_its_own_tokens_only() {
    let case = Case::new("bos-eos-none");
    let prepare = "llama_pc prepare --text texts.jsonl --train-bpe 260 --val-fraction 0.4 --out";
    let refused = case.run(&format!("{prepare} a --eos <nope>"));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2));
    assert!(said.contains("--eos: found <nope>") && said.contains("<|bos|>, <|eos|>"), "{said}");
    let taken = case.run(&format!("{prepare} b --bos none --eos <|bos|>"));
    let said = String::from_utf8_lossy(&taken.stderr).into_owned();
    assert!(taken.status.success() && said.contains("EOS is <|bos|> (0, from --eos)"), "{said}");
    let meta: Value = serde_json::from_slice(&fs::read(case.folder.path().join("b/meta.json")).expect("a file")).expect("JSON");
    assert_eq!((&meta["bos"], &meta["eos"]["id"]), (&Value::Null, &Value::from(0)));
    assert!(documents(&case.folder.path().join("b")).iter().all(|tokens| tokens[0] != 0 && tokens.last() == Some(&0)));
}

/// The refusal says how to insist, and insisting works; so does data without any tokenizer, with a note.
#[test]
fn one_can_insist_on_data_of_another_tokenizer() {
    let case = Case::new("data-of-another-tokenizer");
    let run = |command: &str, status: i32, words: &[&str]| {
        let output = case.run(command);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "{command}: {said}");
        for word in words {
            assert!(said.contains(word), "{command}: found no {word:?} in {said}");
        }
    };
    for color in ["red", "blue"] {
        let prepare =
            format!("llama_pc prepare --text texts.jsonl --tokenizer {color}.json --val-fraction 0.3 --out data-{color}");
        run(&prepare, 0, &[]);
    }
    run("llama_pc train --config tiny.toml --set data.train=data-red/train train.steps=1 --out run", 0, &[]);
    let eval = "llama_pc eval run --data data-blue/val --seq-len 8";
    run(eval, 1, &["data-blue/val", "blue.json", "red.json", "--ignore-tokenizer"]);
    run(&format!("{eval} --ignore-tokenizer"), 0, &["warning: data-blue/val: found tokens of another tokenizer (blue.json"]);
    let resume = "llama_pc train --resume run --set data.train=data-blue/train --steps 2";
    run(resume, 1, &["data-blue/train", "blue.json", "red.json"]);
    let mixed =
        "llama_pc train --config tiny.toml --set data.train=data-red/train data.val=data-blue/val train.val_every=1 --out mixed";
    run(mixed, 1, &["data-blue/val", "blue.json", "red.json"]);

    // Older data say nothing of their tokenizer but have its file; bare tokens have nothing.
    let path = case.folder.path();
    let meta = fs::read_to_string(path.join("data-red/meta.json")).expect("meta.json");
    let mut meta: Value = serde_json::from_str(&meta).expect("JSON");
    meta.as_object_mut().expect("an object").retain(|key, _| !["fingerprint", "bos", "eos"].contains(&key.as_str()));
    fs::write(path.join("data-red/meta.json"), meta.to_string()).expect("it is written");
    fs::remove_file(path.join("data-red/tokenizer_config.json")).expect("it is there");
    run("llama_pc eval run --data data-red/val --seq-len 8", 0, &[]);
    fs::create_dir(path.join("bare")).expect("a folder");
    fs::copy(path.join("data-red/val/00000.bin"), path.join("bare/tokens.bin")).expect("a copy");
    run("llama_pc eval run --data bare/tokens.bin --seq-len 8", 0, &["note: bare/tokens.bin does not say which tokenizer"]);
}
