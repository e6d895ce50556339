//! The step in polytape, whose initial weights the other libraries copy.

use polytape::gpu::{KernelTier, Tuning};
use polytape::llama::{Llama, LlamaConfig};
use polytape::optim::{AdamConfig, AdamW, WeightDecayScope};
use polytape::{Gpu, GpuOptions, Indices, Trainer};

use crate::{BETAS, EPS, Peer, RATE, Result, SEQ_LEN, Setup, WEIGHT_DECAY};

pub struct Run {
    gpu: Gpu,
    model: Llama,
    trainer: Trainer,
    inputs: Indices,
    targets: Indices,
}

impl Run {
    pub fn new(config: LlamaConfig, inputs: Vec<u32>, targets: Vec<u32>) -> Result<(Self, Setup)> {
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
            gpu,
        };
        Ok((run, Setup { config, weights, inputs, targets }))
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
        let Self { model, trainer, inputs, targets, .. } = self;
        let output = trainer.step(1, RATE as f32, |tape, _| model.loss(tape, inputs, targets, SEQ_LEN))?;
        Ok(read.then_some(output.loss))
    }

    fn wait(&self) -> Result<()> {
        Ok(self.gpu.synchronize()?)
    }
}
