//! Training steps, and sampling, of the published sizes.

use polytape::llama::{Llama, LlamaConfig, PRESETS};
use polytape::optim::{OPTIMIZERS, Optimizer};
use polytape::spectral::{PcConfig, Preconditioner};
use polytape::{Gpu, Indices, Precision, Result, Tape, Tensor, Trainer};

const BATCH: usize = 2;
const SEQ_LEN: usize = 256;

/// A model, with weights of zeros: what they are does not matter to drivers that execute nothing, and a step of zeros is finite.
fn model(gpu: &Gpu, config: LlamaConfig) -> Result<(Llama, polytape::Params)> {
    Llama::load(gpu, config, |_, shape| Tensor::zeros(gpu, shape))
}

fn tokens(gpu: &Gpu, count: usize) -> Result<Indices> {
    Indices::from_slice(gpu, &(0..count as u32).collect::<Vec<_>>())
}

/// One optimizer step of two micro-batches, with PC layers on o and the feed-forward matrices.
pub fn run_step(gpu: &Gpu, config: LlamaConfig, optimizer: Box<dyn Optimizer>, precision: Precision) -> Result<()> {
    let (llama, mut params) = model(gpu, LlamaConfig { max_seq_len: SEQ_LEN, ..config })?;
    let is_target = |name: &str| name.contains(".mlp.") || name.contains(".o_proj.");
    let targets: Vec<_> = params.iter().filter(|(_, param)| is_target(&param.name)).map(|(id, _)| (id, 1)).collect();
    let pc = Preconditioner::attach(&mut params, PcConfig::default(), &targets, 1)?;
    let mut trainer = Trainer::new(params, Some(pc), optimizer, 1.0)?.with_precision(precision);
    let tokens = tokens(gpu, BATCH * SEQ_LEN)?;
    trainer.step(2, 1e-3, |tape, _| llama.loss(tape, &tokens, &tokens, SEQ_LEN))?;
    gpu.synchronize()
}

/// Evaluation, and sampling: a prompt, then a token. At least 64 tokens.
pub(crate) fn sample(gpu: &Gpu, config: LlamaConfig) -> Result<()> {
    let (llama, params) = model(gpu, LlamaConfig { max_seq_len: SEQ_LEN, ..config })?;
    let prompt = tokens(gpu, BATCH * 32)?;
    llama.loss(&Tape::inference(&params), &prompt, &prompt, 32)?;
    let mut cache = llama.cache(BATCH, 64)?;
    llama.next_logits(&params, &prompt, &mut cache)?;
    llama.next_logits(&params, &tokens(gpu, BATCH)?, &mut cache)?;
    gpu.synchronize()
}

/// Records steps and sampling of all published sizes. Two blocks of each: all have the same kernels.
pub(crate) fn rehearse(gpu: &Gpu) -> Result<()> {
    for (name, ..) in PRESETS {
        let config = LlamaConfig { layers: 2, ..LlamaConfig::preset(name)? };
        for (_, optimizer) in OPTIMIZERS {
            for precision in Precision::ALL {
                run_step(gpu, config.clone(), optimizer(), precision)?;
            }
        }
        sample(gpu, config)?;
    }
    Ok(())
}
