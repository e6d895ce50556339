//! Whole training runs on the device against the golden numbers, and the properties that runs must have.

mod checkpoints;
mod golden_runs;
mod models;
mod precision;
mod properties;
mod ranks;
pub mod small;

use polytape::llama::{Llama, LlamaConfig};
use polytape::optim::{Schedule, ScheduleKind};
use polytape::spectral::{PcConfig, Preconditioner, level_coefficients};
use polytape::{Gpu, Indices, Params, Result, StepOutput, Trainer};

use crate::golden::{self, ExpectedRun, LlamaTiny, hugging_face_name};

/// The golden model with the golden recipe of one run.
pub struct Run {
    pub model: Llama,
    pub trainer: Trainer,
    pub schedule: Schedule,
}

impl Run {
    pub fn new(gpu: &Gpu, tiny: &LlamaTiny, run: &ExpectedRun) -> Result<Self> {
        Self::with_config(gpu, run, model_config(tiny))
    }

    pub fn with_config(gpu: &Gpu, run: &ExpectedRun, config: LlamaConfig) -> Result<Self> {
        let file = polytape::safetensors::Reader::open(&golden::path("llama_tiny/model.safetensors"))?;
        let (model, mut params) = Llama::load(gpu, config, |name, _| file.tensor(gpu, name))?;
        let preconditioner = preconditioner(&file, &mut params, run)?;
        let schedule = Schedule {
            kind: ScheduleKind::Cosine,
            total_steps: run.schedule.total as u64,
            warmup_steps: run.schedule.warmup as u64,
            end_ratio: run.schedule.end_ratio.expect("cosine"),
            ..Schedule::default()
        };
        Ok(Self { model, trainer: Trainer::new(params, preconditioner, small::optimizer(&run.optimizer), 1.0)?, schedule })
    }

    /// Step `step`, counted from 0.
    pub fn step(&mut self, gpu: &Gpu, tiny: &LlamaTiny, run: &ExpectedRun, step: usize) -> Result<StepOutput> {
        let batches = device_batches(gpu, tiny, run, step)?;
        let lr = (run.lr * self.schedule.factor(step as u64)) as f32;
        let model = &self.model;
        self.trainer.step(batches.len(), lr, |tape, i| model.loss(tape, &batches[i].0, &batches[i].1, run.seq_len))
    }
}

pub fn device_batches(gpu: &Gpu, tiny: &LlamaTiny, run: &ExpectedRun, step: usize) -> Result<Vec<(Indices, Indices)>> {
    let upload = |batch: &crate::reference::llama::Batch| {
        Ok((Indices::from_slice(gpu, &batch.inputs)?, Indices::from_slice(gpu, &batch.targets)?))
    };
    tiny.batches(run, step).iter().map(upload).collect()
}

pub fn model_config(tiny: &LlamaTiny) -> LlamaConfig {
    let config = tiny.config;
    LlamaConfig {
        kv_heads: config.kv_heads,
        intermediate_size: config.intermediate_size,
        max_seq_len: 32,
        ..LlamaConfig::new(config.dim, config.layers, config.heads, config.vocab)
    }
}

/// The run's PC layers, with u, v and γ of the golden file.
fn preconditioner(
    file: &polytape::safetensors::Reader,
    params: &mut Params,
    run: &ExpectedRun,
) -> Result<Option<Preconditioner>> {
    let names = || (0..2).flat_map(|layer| run.pc.iter().map(move |part| hugging_face_name(&format!("layers.{layer}.{part}"))));
    let mut targets = Vec::new();
    for name in names() {
        let stem = name.strip_suffix(".weight").expect("a weight");
        for (suffix, role) in
            [("pc_u", polytape::Role::State), ("pc_v", polytape::Role::State), ("pc_gamma", polytape::Role::Vector)]
        {
            let extra = format!("{stem}.{suffix}");
            let tensor = file.tensor(params.gpu(), &extra)?;
            params.add(extra, role, tensor)?;
        }
        targets.push((params.id(&name)?, 1));
    }
    let config = PcConfig { coefficients: level_coefficients(run.level)?, ..PcConfig::default() };
    let made = (!targets.is_empty()).then(|| Preconditioner::attach(params, config, &targets, 0));
    made.transpose()
}
