//! From the configuration to the engine: the device, the model's sizes, the PC layers, the optimizer, the schedule.

use polytape::gpu::Profile;
use polytape::llama::LlamaConfig;
use polytape::optim::{self, AdamConfig, AdamW, Muon, MuonConfig, Optimizer};
use polytape::spectral::{self, NewtonSchulz, PcConfig, level_coefficients};
use polytape::{AdapterChoice, Error, Gpu, GpuOptions, Precision};

use crate::config::{self, Config, Decay, DecayShape, LrRatio, Norm, NsCoefficients, OptimizerKind, Pc, ScheduleKind, Target};
use crate::failure::Failure;
use crate::output;

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let failure = Self::other(error.to_string());
        match error {
            Error::OutOfMemory { .. } => failure.hint(
                "a smaller train.batch_size or train.checkpoint_activations = true needs less memory; `plan` says how much",
            ),
            _ => failure,
        }
    }
}

/// Opens the adapter that the user asked for, or the best.
pub fn open(adapter: Option<&str>, profile: bool) -> Result<Gpu, Failure> {
    open_by(adapter, GpuOptions { profile, ..Default::default() })
}

/// [`open`], with kernels other than those that suit the adapter.
pub fn open_with(adapter: Option<&str>, kernels: Option<Profile>) -> Result<Gpu, Failure> {
    open_by(adapter, GpuOptions { kernels, ..Default::default() })
}

fn open_by(adapter: Option<&str>, options: GpuOptions) -> Result<Gpu, Failure> {
    let choice = adapter.map_or(AdapterChoice::Best, |text| text.parse().unwrap_or_else(|never| match never {}));
    let options = GpuOptions { adapter: choice, warn: |line| output::note(&format!("warning: {line}")), ..options };
    Gpu::open(&options).map_err(|error| match (&error, adapter) {
        (Error::Adapter(_), Some(name)) => {
            Failure::usage(format!("--adapter {name}: {error}")).hint("`devices` lists the adapters")
        }
        (Error::Adapter(_), None) => {
            Failure::other(error.to_string()).hint("scripts/demo installs a driver that runs on the CPU")
        }
        _ => error.into(),
    })
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
        hidden: model.hidden,
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
    let name = |layer: usize, target: Target| {
        let part = match target {
            Target::Q => "self_attn.q_proj",
            Target::K => "self_attn.k_proj",
            Target::V => "self_attn.v_proj",
            Target::O => "self_attn.o_proj",
            Target::Gate => "mlp.gate_proj",
            Target::Up => "mlp.up_proj",
            Target::Down => "mlp.down_proj",
        };
        (format!("model.layers.{layer}.{part}"), blocks(target))
    };
    (0..config.model.layers).flat_map(|layer| pc.targets.iter().map(move |&target| name(layer, target))).collect()
}

/// The update rule at its start.
pub fn optimizer(config: &config::Optimizer) -> Box<dyn Optimizer> {
    let adam = AdamConfig {
        betas: config.betas,
        eps: config.eps,
        weight_decay: config.weight_decay,
        decay: match config.decay {
            Decay::All => optim::Decay::All,
            Decay::Matrices => optim::Decay::Matrices,
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
                LrRatio::Moonlight => optim::LrRatio::Moonlight,
                LrRatio::SpectralMup => optim::LrRatio::SpectralMup,
                LrRatio::KellerJordan => optim::LrRatio::KellerJordan,
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
                    DecayShape::Linear => optim::DecayShape::Linear,
                    DecayShape::Sqrt => optim::DecayShape::Sqrt,
                    DecayShape::Cosine => optim::DecayShape::Cosine,
                },
            },
        },
    }
}
