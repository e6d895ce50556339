//! The program from outside: exit statuses, errors in one sentence, and what `prepare` leaves on disk.

use std::fs;
use std::path::Path;
use std::process::Output;

use assert_cmd::Command;
use tempfile::TempDir;

/// Runs the program in a folder.
fn llama_pc(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::cargo_bin("llama_pc").expect("the program is built");
    command.current_dir(folder).args(args).output().expect("the program runs")
}

/// A folder with some short Rust files below `src` and a file of JSON lines.
fn corpus() -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::create_dir(folder.path().join("src")).expect("a folder");
    for i in 0..40 {
        let text = format!("//! Module {i}.\n\npub fn value_{i}() -> usize {{\n    {i}\n}}\n").repeat(5);
        fs::write(folder.path().join(format!("src/m{i:02}.rs")), text).expect("a file");
    }
    let lines: String = (0..20).map(|i| format!("{{\"text\": \"line {i} größer\"}}\n")).collect();
    fs::write(folder.path().join("lines.jsonl"), lines).expect("a file");
    folder
}

/// The command must fail with this status and these lines on standard error.
fn refused(folder: &Path, args: &[&str], status: i32, lines: &[&str]) {
    let output = llama_pc(folder, args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(stderr.lines().collect::<Vec<_>>(), lines, "{args:?}");
    assert_eq!(output.status.code(), Some(status), "{args:?}");
    assert!(output.stdout.is_empty(), "{args:?}");
}

#[test]
fn bad_command_lines_are_usage_errors() {
    let folder = corpus();
    for args in [
        &[][..],
        &["no-such-command"],
        &["train", "--no-such-flag"],
        &["prepare", "--out", "d"],
        &["prepare", "--text", "src", "--out", "d"],
        &["prepare", "--text", "src", "--out", "d", "--train-bpe", "300", "--tokenizer", "t.json"],
        &["sample"],
    ] {
        assert_eq!(llama_pc(folder.path(), args).status.code(), Some(2), "{args:?}");
    }
    for args in [&["--help"][..], &["--version"], &["train", "--help"]] {
        assert_eq!(llama_pc(folder.path(), args).status.code(), Some(0), "{args:?}");
    }
}

#[test]
fn configuration_errors_name_file_key_and_range() {
    let folder = corpus();
    let path = folder.path();
    fs::write(path.join("bad.toml"), "[train]\nstep = 3\n").expect("a file");
    refused(
        path,
        &["train", "--config", "bad.toml"],
        2,
        &["error: bad.toml: unknown key \"step\" in [train]", "hint: did you mean train.steps?"],
    );
    refused(
        path,
        &["train", "--set", "optimizer.lr=fast"],
        2,
        &["error: --set optimizer.lr=fast: optimizer.lr: found \"fast\", expected a number of at least 0"],
    );
    refused(
        path,
        &["train", "--steps", "0"],
        2,
        &["error: --set train.steps=0: train.steps: found 0, expected a whole number of at least 1"],
    );
    refused(path, &["train", "--config", "none.toml"], 1, &["error: cannot read none.toml: no such file or folder"]);
    refused(
        path,
        &["train", "--stpes", "3"],
        2,
        &["error: unexpected argument '--stpes' found", "hint: a similar argument exists: '--steps'"],
    );
    refused(
        path,
        &["eval"],
        2,
        &["error: the following required arguments were not provided: <PATH>", "hint: --help tells what the command takes"],
    );
}

#[test]
fn prepare_refuses_before_it_reads() {
    let folder = corpus();
    let path = folder.path();
    fs::create_dir(path.join("there")).expect("a folder");
    let prepare = |more: &[&'static str]| [&["prepare", "--text", "src"], more].concat();
    refused(
        path,
        &prepare(&["--train-bpe", "300", "--out", "there"]),
        2,
        &["error: --out there: found an existing path, expected a new folder"],
    );
    refused(
        path,
        &prepare(&["--train-bpe", "100", "--out", "d"]),
        2,
        &["error: --train-bpe: found 100, expected 258 (the bytes and two special tokens) to 1048576"],
    );
    refused(
        path,
        &prepare(&["--train-bpe", "300", "--val-fraction", "1.5", "--out", "d"]),
        2,
        &["error: --val-fraction: found 1.5, expected a number above 0 to below 1"],
    );
    refused(
        path,
        &prepare(&["--tokenizer", "none.json", "--out", "d"]),
        1,
        &["error: cannot read none.json: no such file or folder"],
    );
    refused(
        path,
        &["prepare", "--text", "nowhere", "--train-bpe", "300", "--out", "d"],
        1,
        &["error: cannot read nowhere: no such file or folder"],
    );
    assert!(!path.join("d").exists());
}

#[test]
fn prepare_writes_shards_that_its_tokenizer_reads_back() {
    let folder = corpus();
    let path = folder.path();
    let args = ["prepare", "--text", "src", "lines.jsonl", "--train-bpe", "320", "--val-fraction", "0.2", "--out"];
    let output = llama_pc(path, &[&args[..], &["data/new"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stdout, b"data/new\n");

    let meta = fs::read_to_string(path.join("data/new/meta.json")).expect("meta.json");
    let meta: serde_json::Value = serde_json::from_str(&meta).expect("JSON");
    let tokenizer = tokenizers::Tokenizer::from_file(path.join("data/new/tokenizer.json")).expect("a tokenizer");
    assert_eq!(meta["vocab"], tokenizer.get_vocab_size(true));
    let mut documents = 0;
    for part in ["train", "val"] {
        let texts = decoded(&path.join("data/new").join(part), &tokenizer);
        assert_eq!(meta[part]["documents"], texts.len());
        assert_eq!(meta[part]["bytes"], texts.iter().map(String::len).sum::<usize>());
        assert!(texts.iter().all(|text| text.starts_with("//! Module") || text.starts_with("line ")));
        documents += texts.len();
    }
    assert_eq!(documents, 40 + 20);

    let again = llama_pc(path, &[&args[..], &["data/again"]].concat());
    assert_eq!(again.status.code(), Some(0));
    for file in ["meta.json", "tokenizer.json", "train/00000.bin", "train/00000.idx", "val/00000.bin"] {
        let read = |folder: &str| fs::read(path.join(folder).join(file)).expect("a file");
        assert_eq!(read("data/new"), read("data/again"), "{file} differs between two runs");
    }
    assert_eq!(fs::read_dir(path.join("data")).expect("a folder").count(), 2, "a temporary folder is left");
}

/// The documents of a folder's only shard, each checked to lie between its special tokens.
fn decoded(folder: &Path, tokenizer: &tokenizers::Tokenizer) -> Vec<String> {
    let bin = fs::read(folder.join("00000.bin")).expect("tokens");
    let idx = fs::read(folder.join("00000.idx")).expect("an index");
    let tokens: Vec<u32> = bin.as_chunks().0.iter().copied().map(u32::from_le_bytes).collect();
    let offsets: Vec<i64> = idx.as_chunks().0.iter().copied().map(i64::from_le_bytes).collect();
    let document = |ends: &[i64]| {
        let tokens = &tokens[ends[0] as usize..ends[1] as usize];
        assert_eq!((tokens.first(), tokens.last()), (Some(&0), Some(&1)));
        tokenizer.decode(tokens, true).expect("text")
    };
    offsets.windows(2).map(document).collect()
}

#[test]
fn prepare_takes_a_tokenizer_and_reports_foreign_files() {
    let folder = corpus();
    let path = folder.path();
    fs::write(path.join("src/picture.png"), [0xff, 0xd8, 0xff]).expect("a file");
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/bpe.model");
    let output = llama_pc(path, &["prepare", "--text", "src", "--tokenizer", model, "--out", "d"]);
    let stderr = String::from_utf8_lossy(&output.stderr).replace('\\', "/");
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(stderr.contains("note: src/picture.png is not UTF-8 text and was skipped"), "{stderr}");
    let meta = fs::read_to_string(path.join("d/meta.json")).expect("meta.json");
    assert!(meta.contains("\"tokenizer\": \"bpe.model\"") && meta.contains("\"vocab\": 420"), "{meta}");
    let copied = llama_pc(path, &["prepare", "--text", "src", "--tokenizer", "d/tokenizer.json", "--out", "e"]);
    assert_eq!(copied.status.code(), Some(0));
    let shard = |folder: &str| fs::read(path.join(folder).join("train/00000.bin")).expect("tokens");
    assert!(shard("d") == shard("e"), "the converted tokenizer encodes differently");
}

#[test]
fn a_failed_preparation_leaves_nothing() {
    let folder = corpus();
    let path = folder.path();
    fs::write(path.join("bad.jsonl"), "{\"text\": \"fine\"}\n{\"body\": 1}\n").expect("a file");
    refused(
        path,
        &["prepare", "--text", "bad.jsonl", "--train-bpe", "300", "--out", "d"],
        1,
        &[
            "error: bad.jsonl: line 2: found fields body, expected the text in \"text\"",
            "hint: name it with --text-field; `a.b` is the field b of a",
        ],
    );
    fs::write(path.join("one.txt"), "1").expect("a file");
    let output = llama_pc(path, &["prepare", "--text", "one.txt", "--train-bpe", "300", "--out", "d"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.starts_with("error: documents with text: found 1, expected at least 2"), "{stderr}");
    let left = fs::read_dir(path).expect("a folder").count();
    assert_eq!(left, 4, "more than src and the three files");
}

#[test]
fn files_that_prepare_cannot_read_have_their_sentence() {
    let folder = corpus();
    let path = folder.path();
    let files: [(&str, &[u8]); 9] = [
        ("array.jsonl", b"{\"text\": \"fine\"}\n[1]\n"),
        ("cut.jsonl", b"{\"text\": \"fine\"}\n\n{\"text\": \"fi"),
        ("latin.jsonl", b"{\"text\": \"gr\xf6\xdfer\"}\n"),
        ("number.jsonl", b"{\"text\": 3}\n"),
        ("short.parquet", b"PAR1"),
        ("foreign.parquet", b"This is no Parquet file, whatever its name says."),
        ("other.json", b"{\"version\": \"1.0\"}"),
        ("latin.json", b"gr\xf6\xdfer"),
        ("other.model", b"This is no model."),
    ];
    for (name, bytes) in files {
        fs::write(path.join(name), bytes).expect("a file");
    }
    let hint = "hint: name it with --text-field; `a.b` is the field b of a";
    let texts: [(&str, &[&str]); 7] = [
        ("array.jsonl", &["error: array.jsonl: line 2, column 1: found a list, expected a JSON object"]),
        ("cut.jsonl", &["error: cut.jsonl: line 3, column 13: found the end within a string, expected `\"`"]),
        ("latin.jsonl", &["error: latin.jsonl: line 1, column 13: found bytes that are not UTF-8, expected a JSON object"]),
        ("number.jsonl", &["error: number.jsonl: line 1: found a number in \"text\", expected text", hint]),
        (
            "short.parquet",
            &["error: short.parquet: found EOF: Parquet file too small. Size is 4 but need 8, expected a Parquet file"],
        ),
        (
            "foreign.parquet",
            &["error: foreign.parquet: found Parquet error: Invalid Parquet file. Corrupt footer, expected a Parquet file"],
        ),
        ("none.parquet", &["error: cannot read none.parquet: no such file or folder"]),
    ];
    for (name, lines) in texts {
        refused(path, &["prepare", "--text", name, "--train-bpe", "300", "--out", "d"], 1, lines);
    }
    let tokenizers = [
        ("other.json", "other.json: found Model missing. at line 1 column 18, expected a tokenizer.json"),
        ("latin.json", "latin.json: found other bytes than UTF-8, expected a tokenizer.json"),
        ("other.model", "other.model: found no SentencePiece model, expected its pieces"),
        #[cfg(unix)]
        ("src", "cannot read src: Is a directory (os error 21)"),
    ];
    for (name, line) in tokenizers {
        let line = format!("error: {line}");
        refused(path, &["prepare", "--text", "src", "--tokenizer", name, "--out", "d"], 1, &[&line]);
    }
    for name in ["pointer.json", "pointer.model"] {
        fs::write(path.join(name), "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n").expect("a file");
        let output = llama_pc(path, &["prepare", "--text", "src", "--tokenizer", name, "--out", "d"]);
        let text = String::from_utf8_lossy(&output.stderr);
        let expected =
            format!("error: {name}: found a Git LFS pointer, expected a tokenizer.json or a SentencePiece model\nhint: ");
        assert!(text.starts_with(&expected), "{text}");
    }
    assert!(!path.join("d").exists());
}

#[test]
fn validation_text_can_be_named() {
    let folder = corpus();
    let path = folder.path();
    let prepare = ["prepare", "--text", "src", "--train-bpe", "300", "--val", "src/m07.rs", "lines.jsonl", "--out"];
    let output = llama_pc(path, &[&prepare[..], &["d"]].concat());
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.starts_with("note: 1 files of --val are left out of --text\n"), "{text}");
    let meta = fs::read_to_string(path.join("d/meta.json")).expect("meta.json");
    let meta: serde_json::Value = serde_json::from_str(&meta).expect("JSON");
    assert_eq!((meta["train"]["documents"].as_u64(), meta["val"]["documents"].as_u64()), (Some(39), Some(21)));
    assert!(meta.get("val_fraction").is_none());
    let tokenizer = tokenizers::Tokenizer::from_file(path.join("d/tokenizer.json")).expect("a tokenizer");
    let texts = decoded(&path.join("d/val"), &tokenizer);
    assert!(texts[0].starts_with("//! Module 7.") && texts[20] == "line 19 größer");
    let both = llama_pc(path, &[&prepare[..], &["e", "--val-fraction", "0.1"]].concat());
    assert_eq!(both.status.code(), Some(2));
}

/// The beginning of a long text is trained on, its end validates, and nothing is lost between them.
#[test]
fn one_long_compressed_text_is_cut() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path();
    let text = "Some words of a long text, and so on.\n".repeat(20_000);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let packed = std::io::Write::write_all(&mut encoder, text.as_bytes()).and_then(|()| encoder.finish()).expect("gzip");
    fs::write(path.join("a.txt.gz"), packed).expect("a file");
    let output = llama_pc(path, &["prepare", "--text", "a.txt.gz", "--train-bpe", "300", "--out", "d"]);
    let printed = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{printed}");
    assert!(printed.contains("note: there is only one document: its last "), "{printed}");
    let tokenizer = tokenizers::Tokenizer::from_file(path.join("d/tokenizer.json")).expect("a tokenizer");
    let parts = ["train", "val"].map(|part| decoded(&path.join("d").join(part), &tokenizer));
    assert!(parts.iter().all(|texts| texts.len() == 1 && texts[0].ends_with(".\n")));
    assert!(parts.concat().concat() == text, "the parts are not the text");
    let share = parts[1][0].len() as f64 / text.len() as f64;
    assert!((0.05..0.1).contains(&share), "{share}");
}

#[test]
fn settings_that_cannot_be_have_their_sentence() {
    let folder = corpus();
    let path = folder.path();
    fs::write(path.join("syntax.toml"), "seed = 1\n[train\nsteps = 3\n").expect("a file");
    fs::write(path.join("section.toml"), "[optimiser]\nlr = 1\n").expect("a file");
    fs::write(path.join("latin.toml"), b"# gr\xf6\xdfer\n").expect("a file");
    let cases: [(&[&str], i32, &[&str]); 6] = [
        (&["--config", "syntax.toml"], 2, &["error: syntax.toml: line 2: unclosed table, expected `]`"]),
        (
            &["--config", "section.toml"],
            2,
            &["error: section.toml: unknown section [optimiser]", "hint: did you mean [optimizer]?"],
        ),
        (&["--config", "latin.toml"], 1, &["error: cannot read latin.toml: stream did not contain valid UTF-8"]),
        (&["--set", "train.steps"], 2, &["error: --set train.steps: found no \"=\", expected section.key=value"]),
        (
            &["--set", "model.heads=5"],
            2,
            &[
                "error: model.dim: found 256, expected a multiple of 2·heads = 10 (rotary turns pairs within a head), or model.head_dim",
            ],
        ),
        (
            &["--set", "data.train=src", "model.vocab=300"],
            1,
            &["error: src: found no .bin file, expected token shards", "hint: make shards of text with llama_pc prepare"],
        ),
    ];
    for (args, status, lines) in cases {
        refused(path, &[&["train", "--out", "d"], args].concat(), status, lines);
    }
    assert!(!path.join("d").exists());
}

/// A file that is one long document is cut, and its tokens are those of the whole.
#[test]
fn a_long_file_is_prepared_in_bounded_shards_as_one_document() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path();
    let text = "Some words of a long text, and so on. ".repeat(20_000);
    for name in ["a.txt", "b.txt"] {
        fs::write(path.join(name), &text).expect("a file");
    }
    let output = llama_pc(path, &["prepare", "--text", "a.txt", "b.txt", "--train-bpe", "300", "--out", "d"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let tokenizer = tokenizers::Tokenizer::from_file(path.join("d/tokenizer.json")).expect("a tokenizer");
    let ids = tokenizer.encode(text.as_str(), false).expect("tokens");
    for part in ["train", "val"] {
        let bin = fs::read(path.join("d").join(part).join("00000.bin")).expect("tokens");
        let tokens: Vec<u32> = bin.as_chunks().0.iter().copied().map(u32::from_le_bytes).collect();
        assert!(tokens == [&[0], ids.get_ids(), &[1]].concat(), "{part} has other tokens");
        let texts = decoded(&path.join("d").join(part), &tokenizer);
        assert!(texts == [text.as_str()], "{part} is another text");
    }
}

/// Text is read more than once, a tokenizer only once.
#[cfg(unix)]
#[test]
fn a_pipe_may_hold_the_tokenizer_but_not_the_text() {
    let folder = corpus();
    let path = folder.path();
    let piped = |args: &[&str], input: Vec<u8>| {
        let mut command = Command::cargo_bin("llama_pc").expect("the program is built");
        command.current_dir(path).args(args).write_stdin(input).output().expect("the program runs")
    };
    let words = "Some words of a text. ".repeat(1000).into_bytes();
    let output = piped(&["prepare", "--text", "/dev/stdin", "--train-bpe", "300", "--out", "d"], words);
    let text = String::from_utf8_lossy(&output.stderr);
    let expected = [
        "error: /dev/stdin: found a pipe or a device, expected a file",
        "hint: text is read more than once: write it to a file first",
    ];
    assert_eq!((output.status.code(), text.lines().collect::<Vec<_>>()), (Some(1), expected.to_vec()));
    assert!(!path.join("d").exists());

    let made = llama_pc(path, &["prepare", "--text", "src", "--train-bpe", "300", "--out", "d"]);
    assert_eq!(made.status.code(), Some(0), "{}", String::from_utf8_lossy(&made.stderr));
    let tokenizer = fs::read(path.join("d/tokenizer.json")).expect("a tokenizer");
    let output = piped(&["prepare", "--text", "src", "--tokenizer", "/dev/stdin", "--out", "e"], tokenizer);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let shard = |folder: &str| fs::read(path.join(folder).join("train/00000.bin")).expect("tokens");
    assert!(shard("d") == shard("e"), "the tokenizer from the pipe encodes differently");
}

#[test]
fn cargo_sources_are_a_corpus() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path();
    let lock = "[[package]]\nname = \"a\"\nversion = \"1.0.0\"\nsource = \"registry\"\n";
    fs::write(path.join("Cargo.lock"), lock).expect("a file");
    let run = || {
        let mut command = Command::cargo_bin("llama_pc").expect("the program is built");
        command.current_dir(path).env("CARGO_HOME", path.join("home"));
        command.args(["prepare", "--cargo-sources", "Cargo.lock", "--train-bpe", "300", "--out", "d"]);
        command.output().expect("the program runs")
    };
    let output = run();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.ends_with("hint: run `cargo fetch` first\n"), "{stderr}");

    let sources = path.join("home/registry/src/index/a-1.0.0/src");
    fs::create_dir_all(&sources).expect("a folder");
    for name in ["lib.rs", "b.rs", "table.txt"] {
        fs::write(sources.join(name), format!("pub fn f() {{}} // {name}\n")).expect("a file");
    }
    assert_eq!(run().status.code(), Some(0));
    let meta = fs::read_to_string(path.join("d/meta.json")).expect("meta.json");
    let meta: serde_json::Value = serde_json::from_str(&meta).expect("JSON");
    assert_eq!((meta["train"]["documents"].as_u64(), meta["val"]["documents"].as_u64()), (Some(1), Some(1)));
}
