//! The mean loss over windows of tokens.

use std::ops::Range;

use polytape::llama::Llama;
use polytape::{Gpu, Indices, Params, Tape, Tensor};

use crate::data::windows::{Batch, Windows};
use crate::terminal::failure::Failure;

/// Mean loss in nats per token, and the number of tokens.
pub struct Evaluation {
    pub loss: f64,
    pub tokens: u64,
}

/// Loss of each of some batches, with its windows.
pub type Losses = Vec<(f32, u64)>;

/// Mean loss over up to `limit` windows from the current position, `batch` at a time; `seen` gets the number of windows done.
pub fn mean_loss(
    llama: &Llama,
    params: &Params,
    windows: &mut Windows,
    limit: u64,
    batch: usize,
    seq_len: usize,
    seen: impl FnMut(u64),
) -> Result<Evaluation, Failure> {
    let all = 0..batches(windows, limit, batch);
    Ok(mean(&batch_losses(llama, params, windows, (limit, batch, seq_len), all, seen)?, seq_len))
}

/// Number of batches in up to `limit` windows.
pub fn batches(windows: &Windows, limit: u64, batch: usize) -> u64 {
    limit.min(windows.count()).div_ceil(batch as u64)
}

/// The mean over batches.
pub fn mean(losses: &Losses, seq_len: usize) -> Evaluation {
    let total: u64 = losses.iter().map(|(_, count)| count).sum();
    let sum: f64 = losses.iter().map(|(loss, count)| f64::from(*loss) * *count as f64).sum();
    Evaluation { loss: sum / total as f64, tokens: total * seq_len as u64 }
}

/// Losses of the batches `own` out of up to `limit` windows from the current position, `batch` of `seq_len` tokens at a time; `seen` gets the
/// number of windows done.
pub fn batch_losses(
    llama: &Llama,
    params: &Params,
    windows: &mut Windows,
    (limit, batch, seq_len): (u64, usize, usize),
    own: Range<u64>,
    mut seen: impl FnMut(u64),
) -> Result<Losses, Failure> {
    let total = limit.min(windows.count());
    windows.seek(windows.position() + own.start * batch as u64);
    let (mut done, mut losses): (u64, Vec<(Tensor, u64)>) = (own.start * batch as u64, Vec::new());
    for _ in own {
        let count = (batch as u64).min(total - done);
        let (inputs, targets) = upload(params.gpu(), &windows.next_batch(count as usize)?)?;
        let tape = Tape::inference(params);
        losses.push((llama.loss(&tape, &inputs, &targets, seq_len)?.value().clone(), count));
        done += count;
        // Losses stay on the device until the end: reading each one back would stall it.
        seen(done);
    }
    losses.iter().map(|(loss, count)| Ok((loss.item()?, *count))).collect()
}

/// Uploads a batch: inputs and targets.
pub fn upload(gpu: &Gpu, batch: &Batch) -> Result<(Indices, Indices), Failure> {
    Ok((Indices::from_slice(gpu, &batch.inputs)?, Indices::from_slice(gpu, &batch.targets)?))
}
