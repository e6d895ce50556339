//! The mean loss over windows of tokens.

use polytape::llama::Llama;
use polytape::{Gpu, Indices, Params, Tape, Tensor};

use crate::data::windows::{Batch, Windows};
use crate::terminal::failure::Failure;

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

/// A batch on the device.
pub fn upload(gpu: &Gpu, batch: &Batch) -> Result<(Indices, Indices), Failure> {
    Ok((Indices::from_slice(gpu, &batch.inputs)?, Indices::from_slice(gpu, &batch.targets)?))
}
