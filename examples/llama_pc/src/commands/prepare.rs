//! `prepare`: text to tokens, in two passes over the documents.
//!
//! The first pass hashes every document, which settles the split, and keeps a bounded sample for training a tokenizer; the
//! second encodes piece after piece into shards, on all cores. Memory is bounded by the sample, by some pieces for each core, and by
//! the longest record of JSON or rows of Parquet; a file of text may have any length, and so may one that is compressed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::data::documents::{Corpus, Places};
use crate::data::encode::{Written, encode};
use crate::data::meta::{Meta, Part, Special};
use crate::data::source::Seen;
use crate::data::survey::{Sources, Survey};
use crate::data::tokenizer::ends::{self, End, Wishes};
use crate::data::tokenizer::{Style, Tokenizer, min_vocab};
use crate::run::files::{Partial, refuse_existing};
use crate::terminal::failure::Failure;
use crate::terminal::format::{clipped, grouped};
use crate::terminal::output::{note, print};

/// Arguments of `prepare`.
#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("source").required(true).multiple(true).args(["text", "cargo_sources"])))]
#[command(group(clap::ArgGroup::new("vocabulary").required(true).args(["tokenizer", "train_bpe"])))]
pub struct Args {
    /// Files and folders of text, also compressed as .gz, .zst or .bz2: each line of JSON lines (under any name), each object of a
    /// JSON list and each row of a .parquet is a document, any other file is one document
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
    /// Field of JSON or column of Parquet that holds the text; `a.b` is the field b of a, and of all items where a is a list
    #[arg(long, default_value = "text", value_name = "F")]
    text_field: String,
    /// Folder to create
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Files and folders of text for validation, instead of a part of --text
    #[arg(long, num_args = 1.., value_name = "PATH", conflicts_with = "val_fraction")]
    val: Vec<PathBuf>,
    /// Fraction of the documents to use for validation; of a single document, its end
    #[arg(long, default_value_t = 0.05, value_name = "X")]
    val_fraction: f64,
    /// Stop before the document that would bring the text (without that of --val) to more than N bytes
    #[arg(long, value_name = "N")]
    max_bytes: Option<u64>,
    /// Seed for the choice of validation documents
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    check(args)?;
    let sources = sources(args)?;
    let wishes = Wishes { bos: args.bos.clone(), eos: args.eos.clone() };
    let given = args.tokenizer.as_deref().map(|path| Tokenizer::load_with(path, &wishes)).transpose()?;
    sources.notes().for_each(|text| note(&format!("note: {text}")));
    let mut seen = Seen::default();
    let survey = Survey::take(&sources, args.seed, args.val_fraction, given.is_none(), &mut seen);
    report(&seen, &args.text_field);
    let mut survey = survey?;
    summarize(&survey);
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
    let Written { train, val, losses } = encode(&sources, &survey, &tokenizer, out.path())?;
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
        val_fraction: args.val.is_empty().then_some(args.val_fraction),
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
    if args.val.is_empty() {
        check_shares(train, val, args.val_fraction);
    }
    print(&format!("{}\n", args.out.display()))
}

fn sources(args: &Args) -> Result<Sources, Failure> {
    let text = Places { paths: &args.text, lockfile: args.cargo_sources.as_deref(), except: &args.val, for_val: false };
    let text = Corpus::find(&text, &args.text_field, args.max_bytes)?;
    let val = Places { paths: &args.val, for_val: true, ..Places::default() };
    let val = (!args.val.is_empty()).then(|| Corpus::find(&val, &args.text_field, None)).transpose()?;
    Ok(Sources { text, val })
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

/// Tells what was left out or changed.
fn report(seen: &Seen, field: &str) {
    let Seen { skipped, empty, surrogates, joined } = seen;
    // A folder of pictures is reported in a few lines.
    const SHOWN: usize = 5;
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for (path, what) in skipped {
        let count = counts.entry(what).or_default();
        *count += 1;
        if *count <= SHOWN {
            note(&format!("note: {} is {what} and was skipped", path.display()));
        }
    }
    for (what, count) in counts.into_iter().filter(|(_, count)| *count > SHOWN) {
        note(&format!("note: {} more files skipped: {what}", grouped((count - SHOWN) as u64)));
    }
    let field = clipped(field, 60);
    let tallies = [
        (empty, "lines or rows without text were skipped"),
        (surrogates, "halves of surrogate pairs in JSON became U+FFFD"),
        (joined, &format!("documents are several items of \"{field}\", joined by newlines")),
    ];
    for (tally, text) in tallies.into_iter().filter(|(tally, _)| tally.count > 0) {
        note(&format!("note: {} {text}, the first in {}", grouped(tally.count), clipped(&tally.first, 80)));
    }
}

fn summarize(survey: &Survey) {
    let megabytes = survey.bytes as f64 / 1e6;
    note(&format!("{} documents, {megabytes:.1} MB of text", grouped(survey.documents)));
    if let Some(at) = survey.cut {
        let share = 100.0 * (survey.bytes - at) as f64 / survey.bytes as f64;
        note(&format!(
            "note: there is only one document: its last {share:.1} % is used for validation; --val names another text"
        ));
    }
}

/// Warns if there are too few documents, or too uneven ones, for the split to come close to the requested fraction.
fn check_shares(train: Part, val: Part, fraction: f64) {
    let share = val.bytes as f64 / (train.bytes + val.bytes).max(1) as f64;
    if share > (4.0 * fraction).max(0.5) || share < fraction / 10.0 {
        note(&format!(
            "warning: the validation part is {:.1} % of the text, because documents are few or of very different length; \
             --val names its text, another --seed chooses other documents",
            100.0 * share
        ));
    }
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
        note(&format!("note: the text yields only {} tokens", grouped(found as u64)));
    }
    Ok(tokenizer)
}
