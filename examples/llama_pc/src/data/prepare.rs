//! `prepare`: text to tokens, in two passes over the documents.
//!
//! The first pass hashes every document, which settles the split, and keeps a bounded sample for training a tokenizer; the
//! second encodes piece after piece into shards, on all cores. Memory is bounded by the sample, by some pieces for each core, and by
//! the longest line of JSON or row of Parquet; a file of text may have any length.

use super::documents::Corpus;
use super::encode::encode;
use super::meta::Meta;
use super::survey::Survey;
use super::tokenizer::{Tokenizer, min_vocab};
use crate::cli::{self, Style};
use crate::failure::Failure;
use crate::output::{note, print};
use crate::partial::{Partial, refuse_existing};
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
        None => match args.style {
            Style::ByteLevel => "byte-level BPE".to_owned(),
            Style::Sentencepiece => "SentencePiece BPE".to_owned(),
        },
    };
    let tokenizer = match (given, args.train_bpe) {
        (Some(tokenizer), _) => tokenizer,
        (None, vocab) => train(std::mem::take(&mut survey.sample), args.style, vocab.unwrap_or(min_vocab(args.style).0))?,
    };

    let out = Partial::folder(&args.out)?;
    let (train, val) = encode(&corpus, &survey, &tokenizer, out.path())?;
    let vocab = tokenizer.vocab_size();
    tokenizer.save(&out.path().join("tokenizer.json"))?;
    Meta { vocab, tokenizer: kind, seed: args.seed, val_fraction: args.val_fraction, train, val }.save(out.path())?;
    out.finish()?;
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
    let (least, parts) = min_vocab(args.style);
    if let Some(vocab) = args.train_bpe.filter(|vocab| !(least..=MAX_VOCAB).contains(vocab)) {
        return Err(Failure::usage(format!("--train-bpe: found {vocab}, expected {least} ({parts}) to {MAX_VOCAB}")));
    }
    refuse_existing("--out", &args.out, "folder")
}

fn report(survey: &Survey) {
    for path in &survey.skipped {
        note(&format!("note: {} is not UTF-8 text and was skipped", path.display()));
    }
    let megabytes = survey.bytes as f64 / 1e6;
    note(&format!("{} documents, {megabytes:.1} MB of text", grouped(survey.documents)));
}

fn train(sample: Vec<String>, style: Style, vocab: usize) -> Result<Tokenizer, Failure> {
    let megabytes = sample.iter().map(String::len).sum::<usize>() as f64 / 1e6;
    note(&format!("training a tokenizer of {} tokens on {megabytes:.1} MB", grouped(vocab as u64)));
    let tokenizer = match style {
        Style::ByteLevel => Tokenizer::train(&sample, vocab)?,
        Style::Sentencepiece => Tokenizer::train_sentencepiece(&sample, vocab)?,
    };
    let found = tokenizer.vocab_size();
    if found < vocab {
        note(&format!("note: the text has pairs for {} tokens only", grouped(found as u64)));
    }
    Ok(tokenizer)
}
