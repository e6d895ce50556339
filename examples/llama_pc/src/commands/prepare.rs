//! `prepare`: text to tokens, in two passes over the documents.
//!
//! The first pass hashes every document, which settles the split, and keeps a bounded sample for training a tokenizer; the
//! second encodes piece after piece into shards, on all cores. Memory is bounded by the sample, by some pieces for each core, and by
//! the longest line of JSON or row of Parquet; a file of text may have any length.

use std::path::PathBuf;

use crate::data::documents::Corpus;
use crate::data::encode::{Written, encode};
use crate::data::meta::{Meta, Special};
use crate::data::survey::Survey;
use crate::data::tokenizer::ends::{self, End, Wishes};
use crate::data::tokenizer::{Style, Tokenizer, min_vocab};
use crate::run::files::{Partial, refuse_existing};
use crate::terminal::failure::Failure;
use crate::terminal::format::grouped;
use crate::terminal::output::{note, print};

/// Arguments of `prepare`.
#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("source").required(true).multiple(true).args(["text", "cargo_sources"])))]
#[command(group(clap::ArgGroup::new("vocabulary").required(true).args(["tokenizer", "train_bpe"])))]
pub struct Args {
    /// Files and folders of text: each line of a .jsonl and each row of a .parquet is a document, any other file is one document
    #[arg(long, num_args = 1.., value_name = "PATH")]
    text: Vec<PathBuf>,
    /// Also use the Rust sources that cargo has unpacked for the crates in this Cargo.lock
    #[arg(long, value_name = "LOCKFILE")]
    cargo_sources: Option<PathBuf>,
    /// Tokenizer to use: a tokenizer.json or a SentencePiece .model
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Train a BPE tokenizer with a vocabulary of N tokens on the training documents
    #[arg(long, value_name = "N")]
    train_bpe: Option<usize>,
    /// Kind of BPE to train
    #[arg(long, value_enum, default_value = "byte-level", requires = "train_bpe")]
    style: Style,
    /// Token that begins every document, or none [default: as tokenizer_config.json and other files beside the tokenizer say, else
    /// its post-processor, else the SentencePiece model, else a special token with a usual name]
    #[arg(long, value_name = "TOKEN")]
    bos: Option<String>,
    /// Token that ends every document, or none [default: as for --bos]
    #[arg(long, value_name = "TOKEN")]
    eos: Option<String>,
    /// Field of .jsonl lines or column of .parquet files that holds the text
    #[arg(long, default_value = "text", value_name = "F")]
    text_field: String,
    /// Folder to create
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Fraction of the documents to use for validation
    #[arg(long, default_value_t = 0.05, value_name = "X")]
    val_fraction: f64,
    /// Stop before the document that would bring the text to more than N bytes
    #[arg(long, value_name = "N")]
    max_bytes: Option<u64>,
    /// Seed for the choice of validation documents
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    check(args)?;
    let corpus = Corpus::find(&args.text, args.cargo_sources.as_deref(), &args.text_field, args.max_bytes)?;
    let wishes = Wishes { bos: args.bos.clone(), eos: args.eos.clone() };
    let given = args.tokenizer.as_deref().map(|path| Tokenizer::load_with(path, &wishes)).transpose()?;
    let mut survey = Survey::take(&corpus, args.seed, args.val_fraction, given.is_none())?;
    report(&survey);
    let tokenizer = match (given, args.train_bpe) {
        (Some(tokenizer), _) => tokenizer,
        (None, vocab) => {
            let vocab = vocab.unwrap_or(min_vocab(args.style).0);
            let name = match args.style {
                Style::ByteLevel => "byte-level BPE",
                Style::Sentencepiece => "SentencePiece BPE",
            };
            train(std::mem::take(&mut survey.sample), args.style, vocab)?.with(&wishes, name)?
        }
    };
    ends::report(&tokenizer).iter().for_each(|line| note(line));

    let out = Partial::folder(&args.out)?;
    let Written { train, val, losses } = encode(&corpus, &survey, &tokenizer, out.path())?;
    losses.report()?.iter().for_each(|line| note(line));
    tokenizer.save(out.path())?;
    let special = |end: &End| end.id.map(|id| Special { id, token: tokenizer.token(id).unwrap_or_default() });
    let (bos, eos) = tokenizer.ends();
    let meta = Meta {
        vocab: tokenizer.vocab_size(),
        tokenizer: tokenizer.name().to_owned(),
        fingerprint: Some(tokenizer.fingerprint()),
        bos: special(bos),
        eos: special(eos),
        seed: args.seed,
        val_fraction: args.val_fraction,
        train,
        val,
    };
    meta.save(out.path())?;
    out.finish()?;
    for (name, part) in [("train", train), ("val", val)] {
        let (documents, tokens) = (grouped(part.documents), grouped(part.tokens));
        let ratio = part.bytes as f64 / part.tokens as f64;
        note(&format!("{name}: {documents} documents, {tokens} tokens, {ratio:.2} bytes a token"));
    }
    print(&format!("{}\n", args.out.display()))
}

/// What can be refused before any text is read.
fn check(args: &Args) -> Result<(), Failure> {
    let fraction = args.val_fraction;
    if !(fraction > 0.0 && fraction < 1.0) {
        return Err(Failure::usage(format!("--val-fraction: found {fraction}, expected a number above 0 to below 1")));
    }
    const MAX_VOCAB: usize = 1 << 20;
    let (least, parts) = min_vocab(args.style);
    if let Some(vocab) = args.train_bpe.filter(|vocab| !(least..=MAX_VOCAB).contains(vocab)) {
        return Err(Failure::usage(format!("--train-bpe: found {vocab}, expected {least} ({parts}) to {MAX_VOCAB}")));
    }
    if args.train_bpe.is_some() {
        let known = args.style.special();
        for (flag, wish) in [("--bos", &args.bos), ("--eos", &args.eos)] {
            if let Some(token) = wish.as_deref().filter(|token| *token != ends::NONE && !known.contains(token)) {
                let (flag, known) = (format!("{flag}: found {token}"), known.join(", "));
                return Err(Failure::usage(format!("{flag}, expected none or a special token of the BPE to train: {known}")));
            }
        }
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
