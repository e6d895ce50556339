//! From the configuration to the engine: the model's sizes, the PC layers, the optimizer, the schedule.

use polytape::gpu::KernelTier;
use polytape::llama::{LlamaConfig, names};
use polytape::optim::Schedule;
use polytape::spectral::{PcConfig, level_coefficients};
use polytape::{AdapterChoice, Gpu, GpuOptions};

use crate::config::{self, Config, Pc, Target};
use crate::terminal::failure::Failure;

/// Opens the adapter of a device again, for checks, so that each gets its own compiler errors. Warnings were given the first time.
pub fn open_again(gpu: &Gpu, kernels: KernelTier) -> Result<Gpu, Failure> {
    let adapter = AdapterChoice::Index(gpu.adapter().index);
    Ok(Gpu::open(&GpuOptions { adapter, kernels: Some(kernels), compile_ahead: false, warn: |_| (), ..Default::default() })?)
}

/// The model's sizes; the vocabulary is resolved.
pub fn model(config: &Config) -> LlamaConfig {
    let model = &config.model;
    LlamaConfig {
        kv_heads: model.kv_heads,
        head_dim: Some(model.head_dim),
        intermediate_size: model.intermediate_size,
        max_seq_len: config.data.seq_len,
        norm_eps: model.norm_eps as f32,
        rope_theta: model.rope_theta,
        rope_scaling: model.rope(),
        qk_norm: model.qk_norm,
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
        norm: pc.norm,
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
    let name = |layer: usize, target: Target| (stem(layer, target), blocks(target));
    (0..config.model.layers).flat_map(|layer| pc.targets.iter().map(move |&target| name(layer, target))).collect()
}

/// The matrices whose initial weights are scaled, without `.weight`, each with its factor.
pub fn init_scales(config: &Config) -> Vec<(String, f32)> {
    let factors = &config.model.init_scale;
    let in_layer = |layer| factors.iter().map(move |(&target, &factor)| (stem(layer, target), factor as f32));
    (0..config.model.layers).flat_map(in_layer).collect()
}

/// The name of a matrix, without `.weight`.
pub fn stem(layer: usize, target: Target) -> String {
    let part = match target {
        Target::Q => names::Q,
        Target::K => names::K,
        Target::V => names::V,
        Target::O => names::O,
        Target::Gate => names::GATE,
        Target::Up => names::UP,
        Target::Down => names::DOWN,
    };
    names::in_layer(layer, part)
}

/// The learning-rate schedule.
pub fn schedule(config: &Config) -> Schedule {
    let config::Schedule { kind, warmup_steps, end_ratio, decay_steps, decay } = config.schedule;
    Schedule { kind, total_steps: config.train.steps, warmup_steps, end_ratio, decay_steps, decay }
}
