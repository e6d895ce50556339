//! Training data as a user may have it: llm.c's files, very long ones, and damaged ones.

use std::fs;
#[cfg(unix)]
use std::fs::File;
#[cfg(unix)]
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use super::{llama_pc, metrics, prepared, train};

const SHARD: &str = "data/train/00000.bin";
const INDEX: &str = "data/train/00000.idx";

/// Writes over part of a file.
#[cfg(unix)]
fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    let mut file = File::options().write(true).open(path).expect("the file is there");
    file.seek(SeekFrom::Start(at)).expect("a place");
    file.write_all(bytes).expect("bytes are written");
}

/// Errors must be this sentence, with the status of a bad file; nothing of a run may be left.
fn refused(folder: &Path, extra: &[&str], expected: &str) {
    let assert = train(folder, "run", &[&["train.steps=2"], extra].concat()).assert().code(1);
    let text = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    let errors: Vec<&str> = text.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors, [format!("error: {expected}")], "{text}");
    assert!(!folder.join("run").exists(), "{expected}: a run that could not begin leaves no folder");
}

#[test]
fn damaged_token_files_are_named_with_the_place() {
    let folder = prepared();
    let path = folder.path();
    let (bin, idx) = (fs::read(path.join(SHARD)).expect("tokens"), fs::read(path.join(INDEX)).expect("an index"));
    let tokens = bin.len() / 4;
    let cut = bin.len() - 2;
    let at = idx.len() - 8;
    let cases: [(&str, Vec<u8>, String); 6] = [
        (SHARD, bin[..cut].to_vec(), format!("{SHARD}: at byte {}: found {cut} bytes, expected a multiple of 4", bin.len() - 4)),
        (
            SHARD,
            bin[..bin.len() - 4].to_vec(),
            format!("{INDEX}: at byte {at}: found a total of {tokens} tokens, expected the {} tokens of {SHARD}", tokens - 1),
        ),
        (
            SHARD,
            [&300u32.to_le_bytes()[..], &bin[4..]].concat(),
            format!("{SHARD}: at byte 0: found token 300, expected one below the vocabulary of 299"),
        ),
        (
            SHARD,
            [&20_240_520u32.to_le_bytes()[..], &3u32.to_le_bytes(), &bin[8..]].concat(),
            format!("{SHARD}: at byte 4: found version 3, expected version 1 after magic 20240520"),
        ),
        (INDEX, idx[..5].to_vec(), format!("{INDEX}: at byte 0: found 5 bytes, expected a multiple of 8, and at least 8")),
        (
            INDEX,
            [&9i64.to_le_bytes()[..], &idx[..8], &idx[16..]].concat(),
            format!("{INDEX}: at byte 8: found document offset 0, expected at least 9, because offsets never fall"),
        ),
    ];
    for (file, bytes, expected) in cases {
        fs::write(path.join(file), bytes).expect("it is damaged");
        refused(path, &["data.order=sequential", "model.vocab=299"], &expected);
        fs::write(path.join(SHARD), &bin).expect("it is restored");
        fs::write(path.join(INDEX), &idx).expect("it is restored");
    }
    fs::write(path.join("text.txt"), "This is no token file.").expect("a file");
    let foreign = "text.txt: at byte 20: found 22 bytes, expected a multiple of 4";
    refused(path, &["data.train=text.txt", "model.vocab=300"], foreign);
    fs::write(path.join("few.bin"), [0; 64]).expect("a file");
    let few = "few.bin: found 16 tokens, expected at least 17 for one window of seq_len 16";
    refused(path, &["data.train=few.bin", "model.vocab=300"], few);
}

/// Ten gigabytes of which the disk holds almost nothing: training reads the beginning and the end, and never meets what no
/// vocabulary has, in the middle. Evaluation over such a file would read it all, as it must.
#[cfg(unix)] // sparse files
#[test]
fn a_token_file_of_ten_gigabytes_is_opened_without_reading_it() {
    const BYTES: u64 = 10 << 30;
    let folder = prepared();
    let path = folder.path();
    let long = path.join("long.bin");
    File::create(&long).and_then(|file| file.set_len(BYTES)).expect("a sparse file");
    overwrite(&long, BYTES / 2, &[0xff; 1 << 16]);
    let extra = ["data.train=long.bin", "data.order=sequential", "model.vocab=300", "train.steps=2", "train.val_every=0"];
    train(path, "run", &extra).assert().success();
    assert_eq!(metrics(path, "run").len(), 2);
    assert_eq!(metrics(path, "run")[1]["tokens"], 2 * 4 * 16);
    // And where it does come to that place, it says so.
    let text = fs::read_to_string(path.join("run/checkpoints/step-2/state.json")).expect("a state");
    let windows = (BYTES / 4 - 1) / 16;
    assert!(text.contains(&format!("\"windows\": {windows}")), "{text}");
}

#[test]
fn llm_c_files_are_trained_on_and_evaluated() {
    let folder = prepared();
    let path = folder.path();
    let bin = fs::read(path.join(SHARD)).expect("tokens");
    let tokens: Vec<u32> = bin.as_chunks().0.iter().copied().map(u32::from_le_bytes).collect();
    let mut file: Vec<u8> = [20_240_520, 1, tokens.len() as u32].map(u32::to_le_bytes).concat();
    file.resize(1024, 0);
    file.extend(tokens.iter().flat_map(|token| (*token as u16).to_le_bytes()));
    fs::write(path.join("llm_c.bin"), file).expect("a file");
    let extra = ["model.vocab=300", "train.steps=3", "train.val_every=0"];
    train(path, "shards", &extra).assert().success();
    train(path, "llm_c", &[&["data.train=llm_c.bin"], &extra[..]].concat()).assert().success();
    let losses = |run| metrics(path, run).iter().map(|row| row["loss"].clone()).collect::<Vec<_>>();
    assert_eq!(losses("shards"), losses("llm_c"));
    let eval = |data: &str| super::text_of(llama_pc(path).args(["eval", "shards", "--json", "--seq-len", "16", "--data", data]));
    let loss = |text: String| serde_json::from_str::<serde_json::Value>(&text).expect("JSON")["loss"].clone();
    assert_eq!(loss(eval("data/train")), loss(eval("llm_c.bin")));

    // nanoGPT's, and Megatron's pair of the same tokens.
    let words: Vec<u8> = tokens.iter().flat_map(|token| (*token as u16).to_le_bytes()).collect();
    fs::write(path.join("nanogpt.bin"), &words).expect("a file");
    fs::create_dir(path.join("megatron")).expect("a folder");
    fs::write(path.join("megatron/a.bin"), &words).expect("a file");
    let counts = [2u64, 2].map(u64::to_le_bytes).concat();
    let lengths = [5, tokens.len() as i32 - 5].map(i32::to_le_bytes).concat();
    let places = [0i64, 10, 0, 2].map(i64::to_le_bytes).concat();
    let index = [b"MMIDIDX\0\0", &1u64.to_le_bytes()[..], &[8], &counts, &lengths, &places].concat();
    fs::write(path.join("megatron/a.idx"), index).expect("a file");
    train(path, "nanogpt", &[&["data.train=nanogpt.bin", "data.format=u16"], &extra[..]].concat()).assert().success();
    assert_eq!(losses("shards"), losses("nanogpt"));
    assert_eq!(loss(eval("data/train")), loss(eval("megatron")));
    let args = ["eval", "shards", "--json", "--seq-len", "16", "--data", "nanogpt.bin"];
    assert_eq!(loss(eval("data/train")), loss(super::text_of(llama_pc(path).args(args).args(["--format", "u16"]))));
    let refused = llama_pc(path).args(args).assert().code(1);
    let text = String::from_utf8_lossy(&refused.get_output().stderr).into_owned();
    assert!(text.contains("hint: these may be 16-bit tokens"), "{text}");
}
