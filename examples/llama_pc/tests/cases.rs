//! Small inputs that once went wrong, or could. Each folder below `fixtures/cases` has files and an `expected.json`: commands, run in
//! order in a copy of the folder, and what is right.
//!
//! `right` is an object or a list of which any may hold: `status` (a number or a list; 0 if missing), `says` and `says_not` (expressions
//! to find in what is printed), `message_under` (characters on standard error), `documents` (the token streams of all documents of a
//! prepared folder, in any order), `split` (one text: the beginning to train on, the end for validation), `loss`.

use std::fs;
use std::path::Path;
use std::process::Output;

use assert_cmd::Command;
use regex::RegexBuilder;
use serde_json::Value;

#[test]
fn every_case_is_right() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cases");
    let mut folders: Vec<_> = fs::read_dir(cases).expect("the cases").map(|entry| entry.expect("a case").path()).collect();
    folders.sort();
    let wrong: Vec<String> =
        folders.iter().filter_map(|folder| Some(format!("{}: {}", folder.file_name()?.display(), run(folder).err()?))).collect();
    assert!(wrong.is_empty(), "{} of {} are wrong:\n{}", wrong.len(), folders.len(), wrong.join("\n"));
}

/// Runs the commands of a case; the error says what is wrong.
fn run(case: &Path) -> Result<(), String> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    copy(case, folder.path());
    let expected = fs::read(case.join("expected.json")).expect("what is right");
    let expected: Value = serde_json::from_slice(&expected).expect("JSON");
    for step in expected["steps"].as_array().expect("steps") {
        let command = step["run"].as_str().expect("a command");
        let args = command.strip_prefix("llama_pc ").expect("the program").split_whitespace();
        let mut program = Command::cargo_bin("llama_pc").expect("the program is built");
        let output = program.current_dir(folder.path()).args(args).output().expect("the program runs");
        let wrong = match &step["right"] {
            Value::Array(any) => {
                any.iter().map(|right| check(right, &output, folder.path())).min_by_key(Option::is_some).flatten()
            }
            right => check(right, &output, folder.path()),
        };
        if let Some(wrong) = wrong {
            return Err(format!("{command}: {wrong}\n{}", String::from_utf8_lossy(&output.stderr)));
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let path = entry.expect("a file").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).expect("a copy");
        }
    }
}

/// What is wrong, if anything.
fn check(right: &Value, output: &Output, folder: &Path) -> Option<String> {
    let status = output.status.code().map(i64::from);
    let allowed = match &right["status"] {
        Value::Array(all) => all.iter().map(Value::as_i64).collect(),
        one => vec![one.as_i64().or(Some(0))],
    };
    if !allowed.contains(&status) {
        return Some(format!("status {status:?}, expected one of {allowed:?}"));
    }
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let printed = format!("{out}{err}");
    for (key, wanted) in [("says", true), ("says_not", false)] {
        for pattern in right[key].as_array().into_iter().flatten().filter_map(Value::as_str) {
            let pattern = RegexBuilder::new(pattern).case_insensitive(true).multi_line(true).build().expect("an expression");
            if pattern.is_match(&printed) != wanted {
                return Some(format!("{key} {pattern}"));
            }
        }
    }
    if right["message_under"].as_u64().is_some_and(|limit| err.chars().count() as u64 >= limit) {
        return Some("a long message".to_owned());
    }
    if let Some(loss) = right["loss"].as_f64() {
        let found = serde_json::from_str::<Value>(&out).ok().and_then(|report| report["loss"].as_f64());
        if found.is_none_or(|found| (found - loss).abs() > 1e-4) {
            return Some(format!("a loss of {found:?}, expected {loss}"));
        }
    }
    documents(&right["documents"], folder).or_else(|| split(&right["split"], folder))
}

fn documents(right: &Value, folder: &Path) -> Option<String> {
    let out = folder.join(right["in"].as_str()?);
    let mut expected: Vec<Vec<u32>> = right["are"]
        .as_array()?
        .iter()
        .map(|document| serde_json::from_value(document["tokens"].clone()).expect("tokens"))
        .collect();
    let mut found = [tokens(&out.join("train")), tokens(&out.join("val"))].concat();
    expected.sort();
    found.sort();
    (found != expected).then(|| format!("documents {found:?}"))
}

/// The documents of prepared data.
fn tokens(folder: &Path) -> Vec<Vec<u32>> {
    let read = |name: &str| fs::read(folder.join(name)).expect("a file");
    let tokens: Vec<u32> = read("00000.bin").as_chunks().0.iter().copied().map(u32::from_le_bytes).collect();
    let offsets: Vec<usize> = read("00000.idx").as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as usize).collect();
    offsets.windows(2).map(|ends| tokens[ends[0]..ends[1]].to_vec()).collect()
}

/// A tokenizer of characters gives the same tokens for the text and for its two parts.
fn split(right: &Value, folder: &Path) -> Option<String> {
    let name = |key: &str| right[key].as_str().map(|name| folder.join(name));
    let (out, text) = (name("in")?, fs::read_to_string(name("text")?).expect("a text"));
    let tokenizer = tokenizers::Tokenizer::from_file(name("tokenizer")?).expect("a tokenizer");
    let ids = tokenizer.encode(text, false).expect("tokens").get_ids().to_vec();
    let part = |name: &str| -> Vec<u32> {
        let tokens = tokens(&out.join(name)).concat();
        tokens.into_iter().filter(|token| *token > 1).collect()
    };
    let (train, val) = (part("train"), part("val"));
    let share = val.len() as f64 / ids.len() as f64;
    let (low, high) = (right["share"][0].as_f64()?, right["share"][1].as_f64()?);
    if [train, val].concat() != ids {
        return Some("the parts are not the text".to_owned());
    }
    (!(low..=high).contains(&share)).then(|| format!("a share of {share}"))
}
