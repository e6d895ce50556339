//! The sections, and what each key means; `docs/configuration.md` is generated from these comments.

use polytape::llama::LlamaConfig;
use serde::{Deserialize, Serialize};

use super::load;

/// Everything that decides a run. Written back, resolved, as the run's `config.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Seeds the weights, the power iteration's vectors and the order of the data.
    pub seed: u64,
    /// The model's shape.
    pub model: Model,
    /// `None` trains a plain model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pc: Option<Pc>,
    /// The rule that turns gradients into steps.
    pub optimizer: Optimizer,
    /// The learning rate over time.
    pub schedule: Schedule,
    /// Where the tokens are.
    pub data: Data,
    /// Length and rhythm.
    pub train: Train,
}

/// The Llama's shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Model {
    /// Name of a published size; absent once the configuration is resolved, because the keys below say it all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<String>,
    /// Width of the residual stream.
    pub dim: usize,
    /// Blocks.
    pub layers: usize,
    /// Query heads, of dim/heads each.
    pub heads: usize,
    /// Key and value heads; fewer than `heads` is grouped-query attention. Default: `heads`.
    pub kv_heads: usize,
    /// Width of the feed-forward block. Default: [`LlamaConfig::default_intermediate_size`].
    pub intermediate_size: usize,
    /// Tokens in the vocabulary; `None` until [`Config::resolve_vocab`] has asked the tokenizer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vocab: Option<usize>,
    /// RMSNorm's guard, added to the mean square.
    pub norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Whether the output head shares the embedding's weights.
    pub tied: bool,
}

/// Polynomial preconditioning of the chosen matrices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pc {
    /// The matrices, groups (`qk`, `ffn`) already taken apart, in the order of [`Target`], each once.
    #[serde(deserialize_with = "load::targets")]
    pub targets: Vec<Target>,
    /// Published polynomial, 0 to 4. Exactly one of `level` and `coefficients` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<u8>,
    /// a0, a1, … of P(G) = a0·I + a1·G + …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coefficients: Option<Vec<f64>>,
    /// What a matrix is divided by before the polynomial.
    pub norm: Norm,
    /// Rounds of the power iteration after every optimizer step.
    pub power_iterations: usize,
    /// Added to the norm, and to those of the power iteration.
    pub eps: f64,
    /// Whether W_eff gets the norm of W back, as a factor without gradient.
    pub recover_norm: bool,
    /// Whether each preconditioned matrix has a trained scale γ.
    pub learnable_gamma: bool,
    /// Where γ starts.
    pub gamma_init: f64,
    /// Whether q, k and v are preconditioned head by head.
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

/// The norm of a matrix that preconditioning divides by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Norm {
    Spectral,
    Frobenius,
    None,
}

/// The optimizer; `momentum` and what follows it matter to Muon only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Optimizer {
    /// AdamW for everything, or Muon for matrices.
    pub kind: OptimizerKind,
    /// Peak learning rate.
    pub lr: f64,
    /// Memory of the first and second moment.
    pub betas: [f64; 2],
    /// Guard of Adam's division.
    pub eps: f64,
    /// Decoupled: each step shrinks a weight by lr·weight_decay.
    pub weight_decay: f64,
    /// Which parameters decay.
    pub decay: WeightDecayScope,
    /// Memory of Muon's momentum.
    pub momentum: f64,
    /// Newton–Schulz steps. Default: 5, and 8 for `polar_express`.
    pub ns_steps: usize,
    /// Coefficients of those steps.
    pub ns_coefficients: NsCoefficients,
    /// Scale of the learning rate by a matrix's shape.
    pub lr_ratio: LrScale,
}

/// The rule that turns gradients into steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    Adamw,
    Muon,
}

/// Which parameters weight decay shrinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightDecayScope {
    All,
    Matrices,
}

/// Coefficient set of Muon's Newton–Schulz iteration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NsCoefficients {
    Simple,
    Quintic,
    PolarExpress,
    Aol,
}

/// How Muon scales a matrix's learning rate by its shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrScale {
    Moonlight,
    SpectralMup,
    KellerJordan,
}

/// The learning rate's course over the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Schedule {
    /// Shape after the warm-up.
    pub kind: ScheduleKind,
    /// Steps of linear rise.
    pub warmup_steps: u64,
    /// Final learning rate over its peak, for `cosine`.
    pub end_ratio: f64,
    /// Length of the decay at the end, for `wsd`.
    pub decay_steps: u64,
    /// Shape of that decay.
    pub decay: LrDecay,
}

/// The shape of the learning rate after its linear warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    Cosine,
    Linear,
    Wsd,
    Constant,
}

/// How `wsd` falls from 1 to 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LrDecay {
    Linear,
    Sqrt,
    Cosine,
}

/// Where the tokens are and how they are cut.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Data {
    /// Path of the training tokens: a folder of shards or one `.bin`.
    pub train: String,
    /// Path of the validation tokens.
    pub val: String,
    /// Tokens in a window, S.
    pub seq_len: usize,
    /// Order of the training windows.
    pub order: DataOrder,
}

/// Windows in a seeded order, or in file order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataOrder {
    Shuffled,
    Sequential,
}

/// Length and rhythm of the run; the `_every` keys count steps, and 0 means never.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Train {
    /// Optimizer steps.
    pub steps: u64,
    /// Sequences in a micro-batch.
    pub batch_size: usize,
    /// Micro-batches in a step.
    pub grad_accumulation: usize,
    /// Global L2 norm that gradients are clipped to.
    pub max_grad_norm: f64,
    /// Recompute each block in the backward pass instead of keeping its activations.
    pub checkpoint_activations: bool,
    /// What the products of the linear layers and of the head round their operands to, forward and backward: nothing, the sum of
    /// two halves (about as exact as f32), or one half. The loss of the lower two is scaled, and the gradient norm read back at
    /// every step. All else stays in f32: sums, weights, optimizer, norms, attention, PC layers, and every evaluation. The `matrix`
    /// kernels multiply halves on matrix units; elsewhere the rounding is computed, so that lower is slower.
    pub precision: Precision,
    /// Between validations.
    pub val_every: u64,
    /// Micro-batches in a validation.
    pub val_batches: usize,
    /// 0: only at the end, which always writes one.
    pub checkpoint_every: u64,
    /// The newest so many stay.
    pub keep_checkpoints: usize,
    /// Between lines of metrics.
    pub log_every: u64,
    /// Between measurements of the condition numbers.
    pub log_spectrum_every: u64,
    /// Between measurements of every layer: norms, γ and the residual stream.
    pub log_layers_every: u64,
    /// A step whose gradient norm is more than so many standard deviations above the running mean is left out; 0: none is. Reads
    /// the norm back at every step.
    pub skip_spikes: f64,
}

/// What products round their operands to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    F32,
    F16x3,
    F16,
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
            intermediate_size: LlamaConfig::default_intermediate_size(256),
            vocab: None,
            norm_eps: 1e-5,
            rope_theta: 10_000.0,
            tied: false,
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
            kind: OptimizerKind::Adamw,
            lr: 3e-4,
            betas: [0.9, 0.95],
            eps: 1e-8,
            weight_decay: 0.1,
            decay: WeightDecayScope::All,
            momentum: 0.95,
            ns_steps: 5,
            ns_coefficients: NsCoefficients::Simple,
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
        Self { train: "data/train".to_owned(), val: "data/val".to_owned(), seq_len: 256, order: DataOrder::Shuffled }
    }
}

impl Default for Train {
    fn default() -> Self {
        Self {
            steps: 1000,
            batch_size: 8,
            grad_accumulation: 1,
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
