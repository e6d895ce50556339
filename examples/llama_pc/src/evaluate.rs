//! `eval`: loss, perplexity and bits per byte over all whole windows in order.

use std::path::PathBuf;

use polytape::llama::Llama;
use polytape::{Params, Tape, Tensor};
use serde::Serialize;

use crate::cli;
use crate::data::meta::bytes_per_token;
use crate::data::tokens::TokenStream;
use crate::data::windows::{Order, Windows};
use crate::engine;
use crate::failure::Failure;
use crate::output;
use crate::progress::{Progress, grouped};
use crate::train::upload;
use crate::weights::{self, Trained};

/// Tokens of a batch: enough to fill the device, few enough for any memory.
const BATCH_TOKENS: usize = 4096;

/// Loss in nats per token over a number of tokens.
pub struct Measured {
    pub loss: f64,
    pub tokens: u64,
}

/// Mean loss over up to `limit` windows from the cursor on, `batch` at a time; `seen` is told the windows done.
pub fn mean_loss(
    llama: &Llama,
    params: &Params,
    windows: &mut Windows,
    limit: u64,
    batch: usize,
    seq_len: usize,
    mut seen: impl FnMut(u64),
) -> Result<Measured, Failure> {
    let total = limit.min(windows.count());
    let (mut done, mut losses): (u64, Vec<(Tensor, u64)>) = (0, Vec::new());
    while done < total {
        let count = (batch as u64).min(total - done);
        let (inputs, targets) = upload(params.gpu(), &windows.next_batch(count as usize)?)?;
        let tape = Tape::inference(params);
        losses.push((llama.loss(&tape, &inputs, &targets, seq_len)?.value().clone(), count));
        done += count;
        // Every batch is a few numbers of memory; reading each at once would make the device wait.
        seen(done);
    }
    let mut sum = 0.0;
    for (loss, count) in &losses {
        sum += f64::from(loss.item()?) * *count as f64;
    }
    Ok(Measured { loss: sum / total as f64, tokens: total * seq_len as u64 })
}

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
pub fn run(args: &cli::Eval) -> Result<(), Failure> {
    let config = weights::describe(&args.path)?.0;
    let seq_len = args.seq_len.unwrap_or(config.data.seq_len);
    if seq_len == 0 {
        return Err(Failure::usage("--seq-len: found 0, expected 1 or more"));
    }
    let data = args.data.clone().unwrap_or_else(|| PathBuf::from(&config.data.val));
    let vocab = config.model.vocab.ok_or_else(|| Failure::other(format!("{}: model.vocab is missing", args.path.display())))?;
    let stream = TokenStream::open(&data, vocab)?;
    let mut windows = Windows::new(stream, &data.display().to_string(), seq_len, Order::Sequential)?;
    let gpu = engine::open(&args.device, false)?;
    let model = Trained::open(&gpu, &args.path, Some(seq_len))?;
    let mut progress = Progress::new("eval", 0, windows.count());
    let (limit, batch) = (windows.count(), (BATCH_TOKENS / seq_len).max(1));
    let measured = mean_loss(&model.llama, &model.params, &mut windows, limit, batch, seq_len, |done| progress.set(done, ""))?;
    progress.finish();
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
