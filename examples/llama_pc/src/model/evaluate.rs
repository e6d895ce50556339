//! The mean loss over windows of tokens.

use polytape::llama::Llama;
use polytape::{Gpu, Indices, Params, Tape, Tensor};

use crate::data::windows::{Batch, Windows};
use crate::terminal::failure::Failure;

/// Mean loss in nats per token, and the number of tokens.
pub struct Measured {
    pub loss: f64,
    pub tokens: u64,
}

/// Mean loss over up to `limit` windows from the current position, `batch` at a time; `seen` gets the number of windows done.
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
        // Losses stay on the device until the end: reading each one back would stall it.
        seen(done);
    }
    let mut sum = 0.0;
    for (loss, count) in &losses {
        sum += f64::from(loss.item()?) * *count as f64;
    }
    Ok(Measured { loss: sum / total as f64, tokens: total * seq_len as u64 })
}

/// Uploads a batch: inputs and targets.
pub fn upload(gpu: &Gpu, batch: &Batch) -> Result<(Indices, Indices), Failure> {
    Ok((Indices::from_slice(gpu, &batch.inputs)?, Indices::from_slice(gpu, &batch.targets)?))
}
