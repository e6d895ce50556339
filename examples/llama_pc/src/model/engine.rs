//! From the configuration to the engine: the model's sizes, the PC layers, the optimizer, the schedule.

use polytape::gpu::KernelTier;
use polytape::llama::{LlamaConfig, names};
use polytape::optim::{self, AdamConfig, AdamW, Muon, MuonConfig, Optimizer};
use polytape::spectral::{self, NewtonSchulz, PcConfig, level_coefficients};
use polytape::{AdapterChoice, Gpu, GpuOptions, Precision};

use crate::config::{
    self, Config, LrDecay, LrScale, Norm, NsCoefficients, OptimizerKind, Pc, ScheduleKind, Target, WeightDecayScope,
};
use crate::terminal::failure::Failure;

/// Opens the adapter of a device again, with other kernels. What is worth a warning was said the first time.
pub fn open_again(gpu: &Gpu, kernels: KernelTier) -> Result<Gpu, Failure> {
    let adapter = AdapterChoice::Index(gpu.adapter().index);
    Ok(Gpu::open(&GpuOptions { adapter, kernels: Some(kernels), warn: |_| (), ..Default::default() })?)
}

/// What the model's products are rounded to while it is trained.
pub fn precision(config: &Config) -> Precision {
    match config.train.precision {
        config::Precision::F32 => Precision::F32,
        config::Precision::F16x3 => Precision::F16x3,
        config::Precision::F16 => Precision::F16,
    }
}

/// The model's sizes; the vocabulary is resolved.
pub fn model(config: &Config) -> LlamaConfig {
    let model = &config.model;
    LlamaConfig {
        kv_heads: model.kv_heads,
        intermediate_size: model.intermediate_size,
        max_seq_len: config.data.seq_len,
        norm_eps: model.norm_eps as f32,
        rope_theta: model.rope_theta,
        tied: model.tied,
        checkpoint_activations: config.train.checkpoint_activations,
        ..LlamaConfig::new(model.dim, model.layers, model.heads, model.vocab.expect("bug: the vocabulary is not resolved"))
    }
}

/// The PC layers' settings.
pub fn pc(pc: &Pc) -> Result<PcConfig, Failure> {
    let coefficients = match (&pc.coefficients, pc.level) {
        (Some(given), _) => given.iter().map(|&value| value as f32).collect(),
        (None, level) => level_coefficients(usize::from(level.unwrap_or(4)))?,
    };
    Ok(PcConfig {
        coefficients,
        norm: match pc.norm {
            Norm::Spectral => spectral::Norm::Spectral,
            Norm::Frobenius => spectral::Norm::Frobenius,
            Norm::None => spectral::Norm::None,
        },
        power_iterations: pc.power_iterations,
        eps: pc.eps as f32,
        recover_norm: pc.recover_norm,
        learnable_gamma: pc.learnable_gamma,
        gamma_init: pc.gamma_init as f32,
    })
}

/// The names of the preconditioned matrices, without `.weight`, each with the number of its blocks.
pub fn pc_targets(config: &Config) -> Vec<(String, usize)> {
    let Some(pc) = &config.pc else { return Vec::new() };
    let blocks = |target: Target| match (pc.per_head, target) {
        (true, Target::Q) => config.model.heads,
        (true, Target::K | Target::V) => config.model.kv_heads,
        _ => 1,
    };
    let part = |target: Target| match target {
        Target::Q => names::Q,
        Target::K => names::K,
        Target::V => names::V,
        Target::O => names::O,
        Target::Gate => names::GATE,
        Target::Up => names::UP,
        Target::Down => names::DOWN,
    };
    let name = |layer: usize, target: Target| (names::in_layer(layer, part(target)), blocks(target));
    (0..config.model.layers).flat_map(|layer| pc.targets.iter().map(move |&target| name(layer, target))).collect()
}

/// The update rule at its start.
pub fn optimizer(config: &config::Optimizer) -> Box<dyn Optimizer> {
    let adam = AdamConfig {
        betas: config.betas,
        eps: config.eps,
        weight_decay: config.weight_decay,
        decay: match config.decay {
            WeightDecayScope::All => optim::WeightDecayScope::All,
            WeightDecayScope::Matrices => optim::WeightDecayScope::Matrices,
        },
    };
    match config.kind {
        OptimizerKind::Adamw => Box::new(AdamW::new(adam)),
        OptimizerKind::Muon => Box::new(Muon::new(MuonConfig {
            momentum: config.momentum,
            coefficients: match config.ns_coefficients {
                NsCoefficients::Simple => NewtonSchulz::Simple,
                NsCoefficients::Quintic => NewtonSchulz::Quintic,
                NsCoefficients::PolarExpress => NewtonSchulz::PolarExpress,
                NsCoefficients::Aol => NewtonSchulz::Aol,
            },
            newton_schulz_steps: Some(config.ns_steps),
            ratio: match config.lr_ratio {
                LrScale::Moonlight => optim::LrScale::Moonlight,
                LrScale::SpectralMup => optim::LrScale::SpectralMup,
                LrScale::KellerJordan => optim::LrScale::KellerJordan,
            },
            adam,
        })),
    }
}

/// The learning rate's course.
pub fn schedule(config: &Config) -> optim::Schedule {
    let schedule = &config.schedule;
    optim::Schedule {
        total: config.train.steps,
        warmup: schedule.warmup_steps,
        kind: match schedule.kind {
            ScheduleKind::Cosine => optim::ScheduleKind::Cosine { end_ratio: schedule.end_ratio },
            ScheduleKind::Linear => optim::ScheduleKind::Linear,
            ScheduleKind::Constant => optim::ScheduleKind::Constant,
            ScheduleKind::Wsd => optim::ScheduleKind::WarmupStableDecay {
                decay_steps: schedule.decay_steps,
                decay: match schedule.decay {
                    LrDecay::Linear => optim::LrDecay::Linear,
                    LrDecay::Sqrt => optim::LrDecay::Sqrt,
                    LrDecay::Cosine => optim::LrDecay::Cosine,
                },
            },
        },
    }
}
