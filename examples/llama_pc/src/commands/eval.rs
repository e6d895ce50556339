//! `eval`: loss, perplexity and bits per byte over all whole windows in order.

use std::path::PathBuf;

use serde::Serialize;

use super::device::Device;
use crate::config::{DataFormat, MAX_SEQ_LEN};
use crate::data::meta::bytes_per_token;
use crate::data::tokenizer::fingerprint;
use crate::data::tokens::TokenStream;
use crate::data::windows::{Order, Windows};
use crate::model::evaluate::mean_loss;
use crate::model::import::{self, Trained};
use crate::terminal::failure::Failure;
use crate::terminal::format::grouped;
use crate::terminal::output;
use crate::terminal::progress::Progress;

/// Arguments of `eval`.
#[derive(clap::Args)]
pub struct Args {
    /// A run or an exported folder
    path: PathBuf,
    /// Tokens to evaluate on: a folder of shards or one .bin; also those of llm.c, nanoGPT and Megatron [default: the run's data.val]
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// What a .bin without header or index holds [default: the run's data.format for its own data, else auto, which is u32]
    #[arg(long, value_enum, value_name = "F")]
    format: Option<DataFormat>,
    /// Sequence length [default: the run's data.seq_len]
    #[arg(long, value_name = "S")]
    seq_len: Option<usize>,
    /// Measure on data prepared with another tokenizer than the model's
    #[arg(long)]
    ignore_tokenizer: bool,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: Device,
}

/// Tokens of a batch: enough to fill the device, few enough for any memory.
const BATCH_TOKENS: usize = 4096;

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    loss: f64,
    perplexity: f64,
    tokens: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    bits_per_byte: Option<f64>,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let config = import::describe(&args.path)?.0;
    let seq_len = args.seq_len.unwrap_or(config.data.seq_len);
    if !(1..=MAX_SEQ_LEN).contains(&seq_len) {
        return Err(Failure::usage(format!("--seq-len: found {seq_len}, expected a whole number from 1 to {MAX_SEQ_LEN}"))
            .hint("its default is the model's own length"));
    }
    let data = args.data.clone().unwrap_or_else(|| PathBuf::from(&config.data.val));
    fingerprint::check(&data, &args.path, args.ignore_tokenizer)?;
    let vocab = config.model.vocab.ok_or_else(|| Failure::other(format!("{}: model.vocab is missing", args.path.display())))?;
    let own = if args.data.is_some() { DataFormat::Auto } else { config.data.format };
    let stream = TokenStream::open(&data, vocab, args.format.unwrap_or(own))?;
    let mut windows = Windows::new(stream, &data.display().to_string(), seq_len, Order::Sequential)?;
    let gpu = args.device.open(false)?;
    let model = Trained::open(&gpu, &args.path, seq_len)?;
    let mut progress = Progress::new("eval", 0, windows.count());
    let (limit, batch) = (windows.count(), (BATCH_TOKENS / seq_len).max(1));
    let measured = mean_loss(&model.llama, &model.params, &mut windows, limit, batch, seq_len, |done| progress.set(done, ""))?;
    progress.finish();
    if !measured.loss.is_finite() {
        let (path, loss) = (args.path.display(), measured.loss);
        return Err(Failure::other(format!("{path}: found a loss of {loss}, expected a finite one")));
    }
    let report = Report {
        loss: measured.loss,
        perplexity: measured.loss.exp(),
        tokens: measured.tokens,
        bits_per_byte: bytes_per_token(&data).map(|bytes| measured.loss / std::f64::consts::LN_2 / bytes),
    };
    output::print(&if args.json { as_json(&report) } else { as_text(&report) })
}

fn as_json(report: &Report) -> String {
    serde_json::to_string(report).expect("bug: the report does not serialise") + "\n"
}

fn as_text(report: &Report) -> String {
    let Report { loss, perplexity, tokens, bits_per_byte } = report;
    let mut text = format!("loss          {loss:.6} nats per token\nperplexity    {perplexity:.4}\n");
    if let Some(bits) = bits_per_byte {
        text.push_str(&format!("bits per byte {bits:.4}\n"));
    }
    text + &format!("tokens        {}\n", grouped(*tokens))
}
