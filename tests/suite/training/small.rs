//! A model small enough for runs of hundreds of steps: grouped heads, PC layers, any optimizer.

use polytape::llama::{Llama, LlamaConfig};
use polytape::optim::{OPTIMIZERS, Optimizer};
use polytape::spectral::{PcConfig, Preconditioner, level_coefficients};
use polytape::{Gpu, Indices, Params, Precision, Result, StepOutput, Trainer};

pub const SEQ: usize = 8;
const BATCH: usize = 2;
const VOCAB: usize = 50;

pub fn config() -> LlamaConfig {
    LlamaConfig { kv_heads: 2, intermediate_size: 48, max_seq_len: 16, ..LlamaConfig::new(32, 2, 4, VOCAB) }
}

pub fn optimizer(name: &str) -> Box<dyn Optimizer> {
    let (_, new) = OPTIMIZERS.iter().find(|(known, _)| *known == name).expect("an optimizer of the library");
    new()
}

/// PC layers on o and down, and on k per head.
pub fn precondition(params: &mut Params, layers: usize) -> Result<Preconditioner> {
    let mut targets = Vec::new();
    for layer in 0..layers {
        for (part, heads) in [("self_attn.o_proj", 1), ("self_attn.k_proj", 2), ("mlp.down_proj", 1)] {
            targets.push((params.id(&format!("model.layers.{layer}.{part}.weight"))?, heads));
        }
    }
    Preconditioner::attach(params, PcConfig { coefficients: level_coefficients(2)?, ..Default::default() }, &targets, 5)
}

pub struct Small {
    pub model: Llama,
    pub trainer: Trainer,
}

impl Small {
    pub fn new(gpu: &Gpu, config: LlamaConfig, rule: &str) -> Result<Self> {
        let layers = config.layers;
        let (model, mut params) = Llama::init(gpu, config, 3)?;
        let preconditioner = precondition(&mut params, layers)?;
        Ok(Self { model, trainer: Trainer::new(params, Some(preconditioner), optimizer(rule), 1.0)? })
    }

    /// [`Small::new`] at a precision, with a loss scale that grows after three finite steps.
    pub fn at(precision: Precision, gpu: &Gpu, config: LlamaConfig, rule: &str) -> Result<Self> {
        let Self { model, trainer } = Self::new(gpu, config, rule)?;
        let mut trainer = trainer.with_precision(precision);
        trainer.loss_scale.iter_mut().for_each(|loss_scale| loss_scale.interval = 3);
        Ok(Self { model, trainer })
    }

    /// One step of two micro-batches.
    pub fn step(&mut self, step: usize) -> Result<StepOutput> {
        self.step_of(1.0, step)
    }

    /// One step on `factor` times the loss.
    pub fn step_of(&mut self, factor: f32, step: usize) -> Result<StepOutput> {
        let gpu = self.trainer.params.gpu().clone();
        let batches = [batch(&gpu, 2 * step)?, batch(&gpu, 2 * step + 1)?];
        let model = &self.model;
        self.trainer.step(2, 1e-2, |tape, i| model.loss(tape, &batches[i].0, &batches[i].1, SEQ)?.scale(factor))
    }

    /// Losses of N steps, and the bits of every parameter afterwards, u and v included.
    pub fn run(&mut self, steps: std::ops::Range<usize>) -> Result<(Vec<u32>, Vec<Vec<u32>>)> {
        let losses = steps.map(|step| Ok(self.step(step)?.loss.to_bits())).collect::<Result<_>>()?;
        Ok((losses, bits(&self.trainer.params)?))
    }
}

/// Inputs and targets of a learnable rule, different in every batch.
pub fn batch(gpu: &Gpu, number: usize) -> Result<(Indices, Indices)> {
    let token = |i: usize| ((7 * i + i * i / 3 + 11 * number) % VOCAB) as u32;
    let tokens = |first: usize| Indices::from_slice(gpu, &(first..first + BATCH * SEQ).map(token).collect::<Vec<_>>());
    Ok((tokens(0)?, tokens(1)?))
}

pub fn bits(params: &Params) -> Result<Vec<Vec<u32>>> {
    params.iter().map(|(_, param)| Ok(param.tensor.to_vec()?.into_iter().map(f32::to_bits).collect())).collect()
}
