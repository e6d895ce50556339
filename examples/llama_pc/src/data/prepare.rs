//! `prepare`: text to tokens, in two passes over the documents.
//!
//! The first pass hashes every document, which settles the split, and keeps a bounded sample for training a tokenizer; the
//! second encodes piece after piece into shards, on all cores. Memory is bounded by the sample, by some pieces for each core, and by
//! the longest line of JSON or row of Parquet; a file of text may have any length.

use std::path::{Path, PathBuf};

use super::documents::Corpus;
use super::encode::encode;
use super::meta::Meta;
use super::survey::Survey;
use super::tokenizer::{MIN_VOCAB, Tokenizer};
use crate::cli;
use crate::failure::Failure;
use crate::output::{note, print};
use crate::progress::grouped;

/// Runs the command.
pub fn run(args: &cli::Prepare) -> Result<(), Failure> {
    check(args)?;
    let corpus = Corpus::find(&args.text, args.cargo_sources.as_deref(), &args.text_field, args.max_bytes)?;
    let given = args.tokenizer.as_deref().map(Tokenizer::load).transpose()?;
    let mut survey = Survey::take(&corpus, args.seed, args.val_fraction, given.is_none())?;
    report(&survey);
    let kind = match &args.tokenizer {
        Some(path) => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        None => "byte-level BPE".to_owned(),
    };
    let tokenizer = match (given, args.train_bpe) {
        (Some(tokenizer), _) => tokenizer,
        (None, vocab) => train(std::mem::take(&mut survey.sample), vocab.unwrap_or(MIN_VOCAB))?,
    };

    let out = Unfinished::create(&args.out)?;
    let (train, val) = encode(&corpus, &survey, &tokenizer, &out.path)?;
    let vocab = tokenizer.vocab_size();
    tokenizer.save(&out.path.join("tokenizer.json"))?;
    Meta { vocab, tokenizer: kind, seed: args.seed, val_fraction: args.val_fraction, train, val }.save(&out.path)?;
    out.finish(&args.out)?;
    for (name, part) in [("train", train), ("val", val)] {
        let (documents, tokens) = (grouped(part.documents), grouped(part.tokens));
        let ratio = part.bytes as f64 / part.tokens as f64;
        note(&format!("{name}: {documents} documents, {tokens} tokens, {ratio:.2} bytes a token"));
    }
    print(&format!("{}\n", args.out.display()))
}

/// What can be refused before any text is read.
fn check(args: &cli::Prepare) -> Result<(), Failure> {
    let fraction = args.val_fraction;
    if !(fraction > 0.0 && fraction < 1.0) {
        return Err(Failure::usage(format!("--val-fraction: found {fraction}, expected a number above 0 to below 1")));
    }
    const MAX_VOCAB: usize = 1 << 20;
    if let Some(vocab) = args.train_bpe.filter(|vocab| !(MIN_VOCAB..=MAX_VOCAB).contains(vocab)) {
        return Err(Failure::usage(format!(
            "--train-bpe: found {vocab}, expected {MIN_VOCAB} (the bytes and two special tokens) to {MAX_VOCAB}"
        )));
    }
    if args.out.exists() {
        return Err(Failure::usage(format!("--out {}: found it exists already, expected a new folder", args.out.display())));
    }
    Ok(())
}

fn report(survey: &Survey) {
    for path in &survey.skipped {
        note(&format!("note: {} is not UTF-8 text and was skipped", path.display()));
    }
    let megabytes = survey.bytes as f64 / 1e6;
    note(&format!("{} documents, {megabytes:.1} MB of text", grouped(survey.documents)));
}

fn train(sample: Vec<String>, vocab: usize) -> Result<Tokenizer, Failure> {
    let megabytes = sample.iter().map(String::len).sum::<usize>() as f64 / 1e6;
    note(&format!("training a tokenizer of {} tokens on {megabytes:.1} MB", grouped(vocab as u64)));
    let tokenizer = Tokenizer::train(&sample, vocab)?;
    let found = tokenizer.vocab_size();
    if found < vocab {
        note(&format!("note: the text has pairs for {} tokens only", grouped(found as u64)));
    }
    Ok(tokenizer)
}

/// A folder under a temporary name beside its final one; removed again unless it is finished.
struct Unfinished {
    path: PathBuf,
}

impl Unfinished {
    fn create(out: &Path) -> Result<Self, Failure> {
        let name = out
            .file_name()
            .ok_or_else(|| Failure::usage(format!("--out {}: found no name, expected a new folder", out.display())))?;
        let path = out.with_file_name(format!(".{}.partial", name.to_string_lossy()));
        if path.exists() {
            // Left by a preparation that was killed.
            std::fs::remove_dir_all(&path).map_err(|error| Failure::io("remove", &path, &error))?;
        }
        std::fs::create_dir_all(&path).map_err(|error| Failure::io("create", &path, &error))?;
        Ok(Self { path })
    }

    fn finish(self, out: &Path) -> Result<(), Failure> {
        std::fs::rename(&self.path, out).map_err(|error| Failure::io("rename to", out, &error))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Gone already if it was renamed; and a failure on the way out has nobody left to tell.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}
