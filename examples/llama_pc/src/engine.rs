//! From the configuration to the engine: the device, the model's sizes, the PC layers, the optimizer, the schedule.

use std::path::PathBuf;

use polytape::gpu::{KernelTier, Tuning};
use polytape::llama::LlamaConfig;
use polytape::optim::Schedule;
use polytape::spectral::{PcConfig, level_coefficients};
use polytape::{AdapterChoice, Error, Gpu, GpuOptions};

use crate::cli;
use crate::config::{self, Config, Pc, Target};
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

/// Opens the adapter that the user asked for, or the best, with the kernels that the user asked for, or those that suit it.
pub fn open(device: &cli::Device, profile: bool) -> Result<Gpu, Failure> {
    let adapter = device.adapter.as_ref().map_or(AdapterChoice::Best, |text| text.parse().unwrap_or_else(|never| match never {}));
    let warn = |line: &str| output::note(&format!("warning: {line}"));
    let tuning = if device.no_tune { Tuning::Off } else { cache_folder().map_or(Tuning::Process, Tuning::Folder) };
    let options = GpuOptions { adapter, kernels: device.kernels, profile, tuning, warn, ..Default::default() };
    Gpu::open(&options).map_err(|error| match (&error, &device.adapter, device.kernels) {
        (Error::Adapter(_), Some(name), None) => {
            Failure::usage(format!("--adapter {name}: {error}")).hint("`devices` lists the adapters")
        }
        (Error::Adapter(_), _, Some(kernels)) => Failure::usage(format!("--kernels {kernels}: {error}"))
            .hint("`devices` lists the adapters and the kernels that each can run"),
        (Error::Adapter(_), None, None) => {
            Failure::other(error.to_string()).hint("scripts/demo installs a driver that runs on the CPU")
        }
        _ => error.into(),
    })
}

/// Where programs of this user keep what they can find out again.
fn cache_folder() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = if cfg!(windows) {
        folder("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        folder("HOME").map(|home| home.join("Library/Caches"))
    } else {
        folder("XDG_CACHE_HOME").or_else(|| folder("HOME").map(|home| home.join(".cache")))
    };
    base.map(|base| base.join("polytape"))
}

/// Opens the adapter of a device again, with other kernels. What is worth a warning was said the first time.
pub fn open_again(gpu: &Gpu, kernels: KernelTier) -> Result<Gpu, Failure> {
    let adapter = AdapterChoice::Index(gpu.adapter().index);
    Ok(Gpu::open(&GpuOptions { adapter, kernels: Some(kernels), warn: |_| (), ..Default::default() })?)
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

/// The learning rate's course.
pub fn schedule(config: &Config) -> Schedule {
    let config::Schedule { kind, warmup_steps, end_ratio, decay_steps, decay } = config.schedule;
    Schedule { kind, total_steps: config.train.steps, warmup_steps, end_ratio, decay_steps, decay }
}
