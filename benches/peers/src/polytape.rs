//! The step in polytape, whose initial weights the other libraries copy.

use polytape::gpu::{KernelTier, Tuning};
use polytape::llama::{Llama, LlamaConfig};
use polytape::optim::{AdamConfig, AdamW, WeightDecayScope};
use polytape::{Gpu, GpuOptions, Indices, Trainer};

use crate::{BETAS, EPS, Peer, RATE, Result, Setup, WEIGHT_DECAY};

pub struct Run {
    gpu: Gpu,
    model: Llama,
    trainer: Trainer,
    inputs: Indices,
    targets: Indices,
    seq_len: usize,
    micro_batches: usize,
}

impl Run {
    pub fn new(config: LlamaConfig, micro_batches: usize, inputs: Vec<u32>, targets: Vec<u32>) -> Result<(Self, Setup)> {
        let gpu = Gpu::open(&GpuOptions { tuning: Tuning::Process, ..Default::default() })?;
        let (model, params) = Llama::init(&gpu, config.clone(), 7)?;
        let weights = params
            .iter()
            .map(|(_, param)| Ok((param.name.clone(), (param.tensor.shape().to_vec(), param.tensor.to_vec()?))))
            .collect::<Result<_>>()?;
        let adam = AdamConfig { betas: BETAS, eps: EPS, weight_decay: WEIGHT_DECAY, weight_decay_scope: WeightDecayScope::All };
        let run = Self {
            model,
            // No clipping: the peers' optimizers have none.
            trainer: Trainer::new(params, None, Box::new(AdamW::new(adam)), f32::INFINITY)?,
            inputs: Indices::from_slice(&gpu, &inputs)?,
            targets: Indices::from_slice(&gpu, &targets)?,
            seq_len: config.max_seq_len,
            micro_batches,
            gpu,
        };
        Ok((run, Setup { config, micro_batches, weights, inputs, targets }))
    }

    pub fn adapter(&self) -> String {
        let summary = self.gpu.adapter();
        format!("{}, {}", summary.name, summary.driver)
    }

    pub fn kernels(&self) -> KernelTier {
        self.gpu.kernels()
    }
}

impl Peer for Run {
    fn step(&mut self, read: bool) -> Result<Option<f32>> {
        let Self { model, trainer, inputs, targets, seq_len, micro_batches, .. } = self;
        let output = trainer.step(*micro_batches, RATE as f32, |tape, _| model.loss(tape, inputs, targets, *seq_len))?;
        Ok(read.then_some(output.loss))
    }

    fn wait(&self) -> Result<()> {
        Ok(self.gpu.synchronize()?)
    }
}
