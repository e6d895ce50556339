//! `prepare`: text to tokens, in two passes over the documents.
//!
//! The first pass hashes every document, which settles the split, and keeps a bounded sample for training a tokenizer; the
//! second encodes batch after batch into shards. Memory is bounded by the sample, a batch and the longest document.

use std::path::Path;

use super::documents::{Corpus, Document};
use super::meta::{Meta, Part};
use super::shards::{SHARD_TOKENS, ShardWriter};
use super::survey::Survey;
use super::tokenizer::{Tokenizer, min_vocab};
use crate::cli::{self, Style};
use crate::failure::Failure;
use crate::output::{note, print};
use crate::partial::{Partial, refuse_existing};
use crate::progress::{Progress, grouped};

/// Bytes of text that are encoded together, spread over all cores.
const BATCH_BYTES: usize = 4 << 20;

/// Runs the command.
pub fn run(args: &cli::Prepare) -> Result<(), Failure> {
    check(args)?;
    let corpus = Corpus::find(&args.text, args.cargo_sources.as_deref(), &args.text_field, args.max_bytes)?;
    let given = args.tokenizer.as_deref().map(Tokenizer::load).transpose()?;
    let survey = Survey::take(&corpus, args.seed, args.val_fraction, given.is_none())?;
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
        (None, vocab) => train(&survey, args.style, vocab.unwrap_or(min_vocab(args.style).0))?,
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

fn train(survey: &Survey, style: Style, vocab: usize) -> Result<Tokenizer, Failure> {
    let megabytes = survey.sample.iter().map(String::len).sum::<usize>() as f64 / 1e6;
    note(&format!("training a tokenizer of {} tokens on {megabytes:.1} MB", grouped(vocab as u64)));
    let tokenizer = match style {
        Style::ByteLevel => Tokenizer::train(&survey.sample, vocab)?,
        Style::Sentencepiece => Tokenizer::train_sentencepiece(&survey.sample, vocab)?,
    };
    let found = tokenizer.vocab_size();
    if found < vocab {
        note(&format!("note: the text has pairs for {} tokens only", grouped(found as u64)));
    }
    Ok(tokenizer)
}

/// The second pass: every document into its side's shards.
fn encode(corpus: &Corpus, survey: &Survey, tokenizer: &Tokenizer, out: &Path) -> Result<(Part, Part), Failure> {
    let mut train = Side::create(&out.join("train"))?;
    let mut val = Side::create(&out.join("val"))?;
    let mut progress = Progress::new("encoding", 0, survey.bytes);
    let mut batch: Vec<Document> = Vec::new();
    let mut waiting = 0;
    let mut done = 0;
    let mut flush = |batch: &mut Vec<Document>, bytes: usize| {
        let texts = batch.iter().map(|document| document.text.as_str()).collect();
        for (document, tokens) in batch.iter().zip(tokenizer.encode_documents(texts)?) {
            let side = if survey.split.is_val(document) { &mut val } else { &mut train };
            side.write(document, &tokens)?;
        }
        batch.clear();
        done += bytes as u64;
        progress.set(done, "bytes");
        Ok::<(), Failure>(())
    };
    corpus.for_each(|document| {
        waiting += document.text.len();
        batch.push(document);
        if waiting >= BATCH_BYTES {
            flush(&mut batch, std::mem::take(&mut waiting))?;
        }
        Ok(())
    })?;
    flush(&mut batch, waiting)?;
    progress.finish();
    Ok((train.finish()?, val.finish()?))
}

/// The shards of one side and what went into them.
struct Side {
    shards: ShardWriter,
    part: Part,
}

impl Side {
    fn create(folder: &Path) -> Result<Self, Failure> {
        Ok(Self { shards: ShardWriter::create(folder, SHARD_TOKENS)?, part: Part::default() })
    }

    fn write(&mut self, document: &Document, tokens: &[u32]) -> Result<(), Failure> {
        self.part.documents += 1;
        self.part.bytes += document.text.len() as u64;
        self.part.tokens += tokens.len() as u64;
        self.shards.write(tokens)
    }

    fn finish(self) -> Result<Part, Failure> {
        self.shards.finish()?;
        Ok(self.part)
    }
}
