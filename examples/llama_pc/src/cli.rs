//! The command line.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use polytape::gpu::KernelTier;

use crate::export::Format;
use crate::export::encode::Dtype;

use crate::plan::limits::parse_bytes;

/// Pre-trains Llama models with PC layers on any GPU.
#[derive(Parser)]
#[command(version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand)]
pub enum Command {
    /// List the adapters: index, name, kind, driver, limits, features and the kernel profile each would get
    Devices,
    /// Run every kernel that an adapter can run against a float64 reference and print a table for a bug report
    Selftest(Selftest),
    /// Turn text into token shards for training and validation
    Prepare(Prepare),
    /// Say what a configuration needs: parameters, memory, arithmetic, and whether it fits
    Plan(Plan),
    /// Train a model
    Train(Train),
    /// Measure loss, perplexity and bits per byte of a run or an exported folder
    Eval(Eval),
    /// Write text with a run or an exported folder
    Sample(Sample),
    /// Merge the PC layers and write a folder for transformers or a file for llama.cpp
    Export(Export),
    /// Measure the singular values of every matrix, before and after the polynomial, and the condition numbers
    Spectrum(Spectrum),
    /// Write one HTML page about one or more runs
    Report(Report),
}

/// Arguments of `selftest`.
#[derive(Args)]
pub struct Selftest {
    #[command(flatten)]
    pub device: Device,
}

/// Arguments of `prepare`.
#[derive(Args)]
#[command(group(clap::ArgGroup::new("source").required(true).multiple(true).args(["text", "cargo_sources"])))]
#[command(group(clap::ArgGroup::new("vocabulary").required(true).args(["tokenizer", "train_bpe"])))]
pub struct Prepare {
    /// Files and folders of text: .jsonl has a document a line, .parquet one a row, any other file is one document
    #[arg(long, num_args = 1.., value_name = "PATH")]
    pub text: Vec<PathBuf>,
    /// Also take the Rust sources that cargo has unpacked for the crates in this Cargo.lock
    #[arg(long, value_name = "LOCKFILE")]
    pub cargo_sources: Option<PathBuf>,
    /// A tokenizer.json or a SentencePiece .model
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// Train a BPE tokenizer of N tokens on the training documents
    #[arg(long, value_name = "N")]
    pub train_bpe: Option<usize>,
    /// Kind of tokenizer to train
    #[arg(long, value_enum, default_value = "byte-level", requires = "train_bpe")]
    pub style: Style,
    /// Field of .jsonl lines and column of .parquet rows that holds the text
    #[arg(long, default_value = "text", value_name = "F")]
    pub text_field: String,
    /// Folder to create
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Share of the documents that go to validation
    #[arg(long, default_value_t = 0.05, value_name = "X")]
    pub val_fraction: f64,
    /// Stop before the document that would exceed so many bytes of text
    #[arg(long, value_name = "N")]
    pub max_bytes: Option<u64>,
    /// Chooses the validation documents
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
}

/// A kind of BPE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Style {
    /// Merges of bytes within words, as GPT-2's
    ByteLevel,
    /// Merges of characters, and bytes for those that are too rare, as SentencePiece's
    Sentencepiece,
}

/// Arguments of `plan`.
#[derive(Args)]
pub struct Plan {
    /// Configuration; without one, every key has its default
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Override keys of the configuration; may be repeated
    #[arg(long, num_args = 1.., value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
    /// Device memory that there is, such as 24GiB; without it, the computer's where the adapter is a software one
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub memory: Option<u64>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub device: Device,
}

/// Arguments of `train`.
#[derive(Args)]
pub struct Train {
    /// Configuration; without one, every key has its default
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Override keys of the configuration; may be repeated
    #[arg(long, num_args = 1.., value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
    /// Run folder to create; without it, the next free runs/NAME-N after the configuration's name
    #[arg(long, value_name = "RUN")]
    pub out: Option<PathBuf>,
    /// Start from the weights of this folder
    #[arg(long, value_name = "DIR")]
    pub init: Option<PathBuf>,
    /// Go on with this run from its newest checkpoint; its own configuration counts, of which --set may change some keys
    #[arg(long, value_name = "RUN", conflicts_with_all = ["config", "out", "init"])]
    pub resume: Option<PathBuf>,
    /// Short for --set train.steps=N
    #[arg(long, value_name = "N")]
    pub steps: Option<u64>,
    #[command(flatten)]
    pub device: Device,
    /// Print the time of every kernel at the end
    #[arg(long)]
    pub profile: bool,
    /// The adapter's peak in TFLOP/s, to show which share of it the model's arithmetic reaches
    #[arg(long, value_name = "X")]
    pub peak_tflops: Option<f64>,
}

/// Arguments of `eval`.
#[derive(Args)]
pub struct Eval {
    /// A run or an exported folder
    pub path: PathBuf,
    /// Tokens to measure on: a folder of shards or one .bin; without it, the run's data.val
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// Tokens in a window; without it, the run's data.seq_len
    #[arg(long, value_name = "S")]
    pub seq_len: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub device: Device,
}

/// Arguments of `sample`.
#[derive(Args)]
pub struct Sample {
    /// A run or an exported folder
    pub path: PathBuf,
    /// Text to continue; may be given several times
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    pub prompt: Vec<String>,
    /// Samples per prompt; sample I is what --seed SEED+I-1 writes alone
    #[arg(long, default_value = "1", value_name = "N")]
    pub samples: NonZeroUsize,
    /// Maximum number of tokens per sample
    #[arg(long, default_value_t = 200, value_name = "N")]
    pub tokens: usize,
    /// 0 always takes the likeliest token, 1 draws as the model predicts
    #[arg(long, default_value_t = 0.8, value_name = "X")]
    pub temperature: f32,
    /// Draw among the K likeliest tokens only; 0 means all
    #[arg(long, default_value_t = 40, value_name = "K")]
    pub top_k: usize,
    /// Draw among the fewest likeliest tokens that hold this share of the probability; 1 means all
    #[arg(long, default_value_t = 1.0, value_name = "P")]
    pub top_p: f64,
    /// The same seed writes the same text
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    #[command(flatten)]
    pub device: Device,
}

/// Arguments of `export`.
#[derive(Args)]
pub struct Export {
    /// A run or an exported folder
    pub path: PathBuf,
    /// The checkpoint after N steps; without it, the newest
    #[arg(long, value_name = "N")]
    pub step: Option<u64>,
    /// What to write
    #[arg(long, value_enum)]
    pub format: Format,
    /// Folder (hf) or file (gguf) to create
    #[arg(long, value_name = "PATH")]
    pub out: PathBuf,
    /// How matrices are stored
    #[arg(long, value_enum, default_value = "f32")]
    pub dtype: Dtype,
    /// Bytes of tensors in one .safetensors file at most; more are spread over several, with an index
    #[arg(long, default_value_t = 5_000_000_000, value_name = "N")]
    pub max_shard_bytes: u64,
    #[command(flatten)]
    pub device: Device,
}

/// Arguments of `spectrum`.
#[derive(Args)]
pub struct Spectrum {
    /// Runs, of which every checkpoint is measured, or exported folders
    #[arg(required = true, value_name = "RUN")]
    pub paths: Vec<PathBuf>,
    /// File to create with everything that was measured
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Folder to create with pictures
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    #[command(flatten)]
    pub device: Device,
}

/// Arguments of `report`.
#[derive(Args)]
pub struct Report {
    /// Runs, in the order of their colours
    #[arg(required = true, value_name = "RUN")]
    pub paths: Vec<PathBuf>,
    /// Page to create
    #[arg(long, value_name = "FILE.html")]
    pub out: PathBuf,
    /// Leave out what needs the checkpoints' matrices: spectra and condition numbers
    #[arg(long)]
    pub no_spectra: bool,
    #[command(flatten)]
    pub device: Device,
}

/// Where to run.
#[derive(Args)]
pub struct Device {
    /// Adapter to run on: an index of `devices`, a part of a name, or cpu
    #[arg(long, value_name = "X")]
    pub adapter: Option<String>,
    /// Kernels to run instead of those that suit the adapter: fallback, portable, subgroup or matrix
    #[arg(long, alias = "profile-kernels", value_name = "TIER")]
    pub kernels: Option<KernelTier>,
    /// Choose kernels by rule instead of trying them out on first use. What was found out is kept in the user's cache folder; it
    /// changes speed, never results
    #[arg(long)]
    pub no_tune: bool,
}

impl Train {
    /// The `--set` list, with `--steps` as its last entry.
    pub fn settings(&self) -> Vec<String> {
        let steps = self.steps.map(|steps| format!("train.steps={steps}"));
        self.set.iter().cloned().chain(steps).collect()
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn steps_come_after_every_set() {
        let cli = Cli::try_parse_from(["llama_pc", "train", "--steps", "3", "--set", "train.steps=9", "seed=2"]);
        let Ok(Cli { command: Command::Train(train) }) = cli else { panic!("a good command line") };
        assert_eq!(train.settings(), ["train.steps=9", "seed=2", "train.steps=3"]);
    }
}
