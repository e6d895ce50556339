//! The sections, and what each key means; `docs/configuration.md` is generated from these comments.

use std::collections::BTreeMap;

use polytape::Precision;
use polytape::exchange::Wire;
use polytape::llama::LlamaConfig;
use polytape::optim::{LrDecay, LrScale, ScheduleKind, WeightDecayScope};
use polytape::spectral::{NewtonSchulz, Norm};
use serde::{Deserialize, Serialize};

use super::load;

/// Everything that determines a run. The resolved configuration is written to the run's `config.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Seed of the initial weights, of the power iteration's vectors and of the data order.
    pub seed: u64,
    /// The model's architecture.
    pub model: Model,
    /// `None` trains a plain model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pc: Option<Pc>,
    /// The optimizer.
    pub optimizer: Optimizer,
    /// The learning-rate schedule.
    pub schedule: Schedule,
    /// The tokens.
    pub data: Data,
    /// The training loop.
    pub train: Train,
}

/// Architecture of the Llama.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Model {
    /// Name of a published size, which sets `dim`, `layers` and `heads`; absent from a resolved configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<String>,
    /// Width of the residual stream.
    pub dim: usize,
    /// Number of transformer blocks.
    pub layers: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads; fewer than `heads` means grouped-query attention. Default: `heads`.
    pub kv_heads: usize,
    /// Width of a head, an even number. Default: `dim / heads`.
    pub head_dim: usize,
    /// Width of the MLP. Default: 8·dim/3, rounded up to a multiple of 256.
    pub intermediate_size: usize,
    /// Vocabulary size. Default: the tokenizer's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vocab: Option<usize>,
    /// Added to the mean square in RMSNorm for numerical stability.
    pub norm_eps: f64,
    /// Base of the rotary embedding's frequencies.
    pub rope_theta: f64,
    /// How rotary frequencies are scaled for sequences longer than in the original training, as in transformers. A table, `{ type = "llama3",
    /// factor = 8.0, original_max_seq_len = 8192 }`, sets the keys that follow, too.
    pub rope_scaling: RopeScaling,
    /// Scaling factor, for `linear`, `llama3` and `yarn`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope_factor: Option<f64>,
    /// Sequence length of the earlier training, for `llama3` and `yarn`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope_original_seq_len: Option<usize>,
    /// Rotations within that length below which a frequency is divided by the factor, for `llama3`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope_low_freq_factor: Option<f64>,
    /// Rotations above which a frequency is unchanged, for `llama3`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope_high_freq_factor: Option<f64>,
    /// Rotations within that length above which frequencies are unchanged, for `yarn`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope_beta_fast: Option<f64>,
    /// Rotations below which they are divided by the factor, for `yarn`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope_beta_slow: Option<f64>,
    /// Factor of rotated queries and keys, for `yarn`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope_attention_factor: Option<f64>,
    /// Normalize every query and key head before its rotary embedding (RMSNorm), as Qwen3 does.
    pub qk_norm: bool,
    /// Tie the output head to the token embedding.
    pub tied: bool,
    /// Factors of the initial weights of these matrices, as in `{ o = 1.9, ffn = 1.5 }`; `qk` stands for q and k, `ffn` for gate, up and
    /// down. A control for PC layers: they enlarge the weights that the model computes with, which alone may change how it trains.
    #[serde(deserialize_with = "load::factors", skip_serializing_if = "BTreeMap::is_empty")]
    pub init_scale: BTreeMap<Target, f64>,
}

/// How rotary frequencies are stretched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RopeScaling {
    None,
    Linear,
    Llama3,
    Yarn,
}

/// Polynomial preconditioning (PC layers).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pc {
    /// Matrices to precondition; `qk` stands for q and k, `ffn` for gate, up and down.
    #[serde(deserialize_with = "load::targets")]
    pub targets: Vec<Target>,
    /// Level of the published polynomials. Excludes `coefficients`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<u8>,
    /// Coefficients a0, a1, … of P(G) = a0·I + a1·G + …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coefficients: Option<Vec<f64>>,
    /// Norm that a matrix is divided by before the polynomial.
    pub norm: Norm,
    /// Power iterations after every optimizer step.
    pub power_iterations: usize,
    /// Added to the norms, here and in the power iteration, for numerical stability.
    pub eps: f64,
    /// Rescale W_eff to the norm of W, as a factor without gradient.
    pub recover_norm: bool,
    /// Train a scale γ for each preconditioned matrix.
    pub learnable_gamma: bool,
    /// Initial value of γ.
    pub gamma_init: f64,
    /// Precondition q, k and v head by head.
    pub per_head: bool,
}

/// A kind of matrix in a Llama block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
}

/// The optimizer; the keys from `momentum` on apply to the optimizers that orthogonalize.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Optimizer {
    /// AdamW for all parameters; the others for matrices, with Adam for the rest.
    pub kind: String,
    /// Peak learning rate.
    pub lr: f64,
    /// Adam's decay rates of the first and second moment.
    pub betas: [f64; 2],
    /// Added to Adam's denominator for numerical stability.
    pub eps: f64,
    /// Decoupled weight decay: each step multiplies a weight by 1 - lr·weight_decay.
    pub weight_decay: f64,
    /// Parameters that weight decay applies to.
    pub decay: WeightDecayScope,
    /// Muon's momentum.
    pub momentum: f64,
    /// Number of Newton–Schulz steps. Default: 5, and 8 for `polar_express`.
    pub ns_steps: usize,
    /// Coefficients of the Newton–Schulz iteration.
    pub ns_coefficients: NewtonSchulz,
    /// How Muon scales the learning rate with a matrix's shape.
    pub lr_ratio: LrScale,
}

/// The learning-rate schedule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Schedule {
    /// Shape of the schedule after the warmup.
    pub kind: ScheduleKind,
    /// Steps of linear warmup.
    pub warmup_steps: u64,
    /// Final learning rate as a fraction of its peak, for `cosine`.
    pub end_ratio: f64,
    /// Steps of the final decay, for `wsd`.
    pub decay_steps: u64,
    /// Shape of the final decay, for `wsd`.
    pub decay: LrDecay,
}

/// The tokens, and how they are split into sequences.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Data {
    /// Training tokens: a folder of shards or one `.bin`; also those of llm.c, nanoGPT and Megatron.
    pub train: String,
    /// Validation tokens.
    pub val: String,
    /// Sequence length.
    pub seq_len: usize,
    /// Type of the tokens of a `.bin` that has no header and no index: `u16` for nanoGPT's; `auto` is `u32`. Files that say what they
    /// hold need none.
    pub format: DataFormat,
    /// Order of the training sequences: reshuffled every epoch, or sequential.
    pub order: DataOrder,
}

/// What a `.bin` holds that does not say so itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DataFormat {
    /// What its header or index says, else u32
    Auto,
    /// 16-bit tokens, as nanoGPT writes them
    U16,
    /// 32-bit tokens
    U32,
}

/// Sequences in a seeded order, or in file order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataOrder {
    Shuffled,
    Sequential,
}

/// The training loop; 0 turns an `_every` key off.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Train {
    /// Number of optimizer steps.
    pub steps: u64,
    /// Sequences per micro-batch.
    pub batch_size: usize,
    /// Micro-batches per optimizer step.
    pub grad_accumulation: usize,
    /// Leaves of the tree in which a step's gradients are summed: a power of two that divides `grad_accumulation`. Any number of ranks
    /// (`mpirun -n`) that divides it gives the same bits, one process included. A new run on several ranks replaces 1 by their number, if that
    /// is such a power of two.
    pub replicas: usize,
    /// Gradients and weights between ranks: f32, or rounded to bf16, half the bytes. No effect in a single process.
    pub exchange: Wire,
    /// Maximum global L2 norm of the gradients; larger ones are clipped.
    pub max_grad_norm: f64,
    /// Recompute each block in the backward pass instead of keeping its activations.
    pub checkpoint_activations: bool,
    /// Operands of the matrix products of the linear layers and the head, forward and backward: f32, the sum of two f16 (about as
    /// accurate as f32), or f16. The latter two scale the loss. The `matrix` kernels compute these products on matrix units, and with
    /// f16 those of attention as well; other kernels emulate the rounding, which is slower than f32, and leave attention in f32. All
    /// else stays in f32: accumulation, weights, optimizer, norms, softmax, PC layers, and every evaluation.
    pub precision: Precision,
    /// Steps between validations.
    pub val_every: u64,
    /// Micro-batches per validation.
    pub val_batches: usize,
    /// Steps between checkpoints; the end of a run always writes one.
    pub checkpoint_every: u64,
    /// Number of checkpoints to keep.
    pub keep_checkpoints: usize,
    /// Steps between lines of metrics.
    pub log_every: u64,
    /// Steps between measurements of the condition numbers, and of the error of the PC layers' norms.
    pub log_spectrum_every: u64,
    /// Steps between per-layer measurements: norms, γ and the residual stream.
    pub log_layers_every: u64,
    /// Skip a step whose gradient norm is more than this many standard deviations above its running mean; 0 skips none.
    pub skip_spikes: f64,
}

impl Train {
    /// The replicas of a run that begins on this many ranks: where there is 1, which is for a single process, one for each rank.
    pub fn replicas_on(&self, ranks: usize) -> usize {
        let is_allowed = ranks.is_power_of_two() && self.grad_accumulation.is_multiple_of(ranks);
        if self.replicas == 1 && is_allowed { ranks } else { self.replicas }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            seed: 1,
            model: Model::default(),
            pc: None,
            optimizer: Optimizer::default(),
            schedule: Schedule::default(),
            data: Data::default(),
            train: Train::default(),
        }
    }
}

impl Default for Model {
    fn default() -> Self {
        Self {
            preset: None,
            dim: 256,
            layers: 4,
            heads: 4,
            kv_heads: 4,
            head_dim: 64,
            intermediate_size: LlamaConfig::default_intermediate_size(256),
            vocab: None,
            norm_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_scaling: RopeScaling::None,
            rope_factor: None,
            rope_original_seq_len: None,
            rope_low_freq_factor: None,
            rope_high_freq_factor: None,
            rope_beta_fast: None,
            rope_beta_slow: None,
            rope_attention_factor: None,
            qk_norm: false,
            tied: false,
            init_scale: BTreeMap::new(),
        }
    }
}

impl Default for Pc {
    fn default() -> Self {
        Self {
            targets: vec![Target::O, Target::Gate, Target::Up, Target::Down],
            level: Some(4),
            coefficients: None,
            norm: Norm::Spectral,
            power_iterations: 10,
            eps: 1e-7,
            recover_norm: true,
            learnable_gamma: true,
            gamma_init: 1.0,
            per_head: false,
        }
    }
}

impl Default for Optimizer {
    fn default() -> Self {
        Self {
            kind: "adamw".to_owned(),
            lr: 3e-4,
            betas: [0.9, 0.95],
            eps: 1e-8,
            weight_decay: 0.1,
            decay: WeightDecayScope::All,
            momentum: 0.95,
            ns_steps: 5,
            ns_coefficients: NewtonSchulz::Simple,
            lr_ratio: LrScale::Moonlight,
        }
    }
}

impl Default for Schedule {
    fn default() -> Self {
        Self { kind: ScheduleKind::Cosine, warmup_steps: 100, end_ratio: 0.1, decay_steps: 0, decay: LrDecay::Linear }
    }
}

impl Default for Data {
    fn default() -> Self {
        Self {
            train: "data/train".to_owned(),
            val: "data/val".to_owned(),
            seq_len: 256,
            format: DataFormat::Auto,
            order: DataOrder::Shuffled,
        }
    }
}

impl Default for Train {
    fn default() -> Self {
        Self {
            steps: 1000,
            batch_size: 8,
            grad_accumulation: 1,
            replicas: 1,
            exchange: Wire::F32,
            max_grad_norm: 1.0,
            checkpoint_activations: false,
            precision: Precision::F32,
            val_every: 100,
            val_batches: 20,
            checkpoint_every: 500,
            keep_checkpoints: 3,
            log_every: 1,
            log_spectrum_every: 0,
            log_layers_every: 0,
            skip_spikes: 0.0,
        }
    }
}
