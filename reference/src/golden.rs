//! Loaders of the golden numbers in tests/fixtures: float64 results on float32 inputs, row-major.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::Array;
use crate::half::Operands;
use crate::llama::{Batch, LlamaConfig};
use crate::newton_schulz::Coefficients;
use crate::optimizer::{Adam, LrScale, Muon};
use crate::pc::{Pc, PowerVectors};
use crate::rotary::Scaling;
use crate::schedule::{Schedule, Shape, WeightDecayScope};
use crate::training::{Recipe, Rule, Trainer};

/// `u0`, `v0` → `u`, `v` after 10 iterations, rounded to f32; from these sigma = uᵀWv + eps, `y` = W_eff, and `dw`, `dgamma`
/// for the gradient `dy`.
#[derive(Deserialize)]
pub struct PcCase {
    pub rows: usize,
    pub cols: usize,
    pub level: usize,
    pub gamma: f64,
    pub eps: f64,
    pub w: Vec<f64>,
    pub u0: Vec<f64>,
    pub v0: Vec<f64>,
    pub u: Vec<f64>,
    pub v: Vec<f64>,
    pub sigma: f64,
    pub dy: Vec<f64>,
    pub y: Vec<f64>,
    pub dw: Vec<f64>,
    pub dgamma: f64,
}

#[derive(Deserialize)]
pub struct NewtonSchulzCase {
    pub rows: usize,
    pub cols: usize,
    pub coefficients: String,
    pub steps: usize,
    pub x: Vec<f64>,
    pub y: Vec<f64>,
}

/// `p[t]` is the parameter after the step with `grads[t]`.
#[derive(Deserialize)]
pub struct OptimizerCase {
    pub rule: String,
    pub shape: Vec<usize>,
    pub lr: f64,
    pub weight_decay: f64,
    pub betas: [f64; 2],
    pub eps: f64,
    pub momentum: f64,
    pub p0: Vec<f64>,
    pub grads: Vec<Vec<f64>>,
    pub p: Vec<Vec<f64>>,
}

impl OptimizerCase {
    /// The golden steps used the factor 1/(t + 1), t from 0.
    pub fn lr_at(&self, t: usize) -> f64 {
        self.lr / (t + 1) as f64
    }
}

#[derive(Deserialize)]
pub struct ScheduleFields {
    pub kind: String,
    pub total: usize,
    pub warmup: usize,
    pub end_ratio: Option<f64>,
    pub decay_steps: Option<usize>,
    pub decay: Option<String>,
}

#[derive(Deserialize)]
pub struct ScheduleCase {
    #[serde(flatten)]
    pub schedule: ScheduleFields,
    pub factor: Vec<f64>,
}

impl ScheduleFields {
    pub fn to_schedule(&self) -> Schedule {
        let shape = match self.kind.as_str() {
            "cosine" => Shape::Cosine { end_ratio: self.end_ratio.expect("end_ratio") },
            "linear" => Shape::Linear,
            "wsd" => Shape::WarmupStableDecay {
                decay_steps: self.decay_steps.expect("decay_steps"),
                decay: match self.decay.as_deref() {
                    Some("linear") => WeightDecayScope::Linear,
                    Some("sqrt") => WeightDecayScope::Sqrt,
                    Some("cosine") => WeightDecayScope::Cosine,
                    other => panic!("unknown decay {other:?}"),
                },
            },
            other => panic!("unknown schedule {other}"),
        };
        Schedule { total: self.total, warmup: self.warmup, shape }
    }
}

/// One of the training runs of llama_tiny.
#[derive(Deserialize)]
pub struct ExpectedRun {
    pub name: String,
    pub optimizer: String,
    pub lr: f64,
    pub seq_len: usize,
    pub batch_size: usize,
    pub grad_accumulation: usize,
    pub steps: usize,
    pub schedule: ScheduleFields,
    pub level: usize,
    /// The preconditioned matrices of every layer, such as `w1`; none for the baseline.
    pub pc: Vec<String>,
    pub first_step_gradient_norms_before_clipping: BTreeMap<String, f64>,
    pub rows: Vec<ExpectedStep>,
    pub final_gamma: BTreeMap<String, f64>,
}

/// `step` counts from 1; `grad_norm` is before clipping.
#[derive(Deserialize)]
pub struct ExpectedStep {
    pub step: usize,
    pub loss: f64,
    pub grad_norm: f64,
    pub lr: f64,
}

/// The fields of config.json that define the model.
#[derive(Deserialize)]
struct HuggingFaceConfig {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    vocab_size: usize,
    rms_norm_eps: f64,
    rope_theta: f64,
    tie_word_embeddings: bool,
}

/// Weights under their short names (`layers.0.wq`, `tok_embeddings`, …), γ as `layers.0.wo.gamma`, and the power vectors
/// under the name of their matrix.
pub struct LlamaTiny {
    pub config: LlamaConfig,
    pub weights: BTreeMap<String, Array>,
    pub vectors: BTreeMap<String, PowerVectors>,
    pub tokens: Vec<u32>,
}

pub fn pc() -> Vec<PcCase> {
    json("pc.json")
}

pub fn newton_schulz() -> Vec<NewtonSchulzCase> {
    json("newton_schulz.json")
}

pub fn optimizers() -> Vec<OptimizerCase> {
    json("optimizers.json")
}

pub fn schedules() -> Vec<ScheduleCase> {
    json("schedules.json")
}

pub fn expected_runs() -> Vec<ExpectedRun> {
    json("llama_tiny/expected.json")
}

pub fn expected_run(name: &str) -> ExpectedRun {
    let run = expected_runs().into_iter().find(|run| run.name == name);
    run.unwrap_or_else(|| panic!("no golden run {name}"))
}

/// An array that was float32 when it was printed, with 12 digits: rounding to f32 gives back every bit.
pub fn f32_array(shape: &[usize], printed: &[f64]) -> Array {
    Array::new(shape, printed.iter().map(|&x| f64::from(x as f32)).collect())
}

pub fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

fn bytes(name: &str) -> Vec<u8> {
    let path = path(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn json<T: DeserializeOwned>(name: &str) -> T {
    serde_json::from_slice(&bytes(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

pub fn llama_tiny() -> LlamaTiny {
    let config: HuggingFaceConfig = json("llama_tiny/config.json");
    let config = LlamaConfig {
        vocab: config.vocab_size,
        dim: config.hidden_size,
        intermediate_size: config.intermediate_size,
        layers: config.num_hidden_layers,
        heads: config.num_attention_heads,
        kv_heads: config.num_key_value_heads,
        head_dim: config.hidden_size / config.num_attention_heads,
        norm_eps: config.rms_norm_eps,
        theta: config.rope_theta,
        scaling: Scaling::None,
        qk_norm: false,
        tied: config.tie_word_embeddings,
        operands: Operands::Whole,
    };
    let mut arrays = safetensors("llama_tiny/model.safetensors");
    let (mut weights, mut vectors) = (BTreeMap::new(), BTreeMap::new());
    for name in config.parameter_names() {
        let stored = hugging_face_name(&name);
        weights.insert(name.clone(), take(&mut arrays, &stored));
        let Some(matrix) = stored.strip_suffix(".weight").filter(|_| LlamaConfig::is_matrix(&name)) else {
            continue;
        };
        weights.insert(format!("{name}.gamma"), take(&mut arrays, &format!("{matrix}.pc_gamma")));
        let mut vector = |suffix| take(&mut arrays, &format!("{matrix}.{suffix}"));
        vectors.insert(name, PowerVectors { u: vector("pc_u"), v: vector("pc_v") });
    }
    assert!(arrays.is_empty(), "unread tensors: {:?}", arrays.keys());
    LlamaTiny { config, weights, vectors, tokens: tokens() }
}

fn take(arrays: &mut BTreeMap<String, Array>, name: &str) -> Array {
    arrays.remove(name).unwrap_or_else(|| panic!("no tensor {name}"))
}

/// `layers.0.wq` → `model.layers.0.self_attn.q_proj.weight`
pub fn hugging_face_name(name: &str) -> String {
    let Some((layer, part)) = name.strip_prefix("layers.").and_then(|rest| rest.split_once('.')) else {
        return match name {
            "tok_embeddings" => "model.embed_tokens.weight",
            "norm" => "model.norm.weight",
            "output" => "lm_head.weight",
            _ => panic!("unknown parameter {name}"),
        }
        .to_string();
    };
    let part = match part {
        "wq" => "self_attn.q_proj",
        "wk" => "self_attn.k_proj",
        "wv" => "self_attn.v_proj",
        "wo" => "self_attn.o_proj",
        "w1" => "mlp.gate_proj",
        "w2" => "mlp.down_proj",
        "w3" => "mlp.up_proj",
        "q_norm" => "self_attn.q_norm",
        "k_norm" => "self_attn.k_norm",
        "attention_norm" => "input_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        _ => panic!("unknown parameter {name}"),
    };
    format!("model.layers.{layer}.{part}.weight")
}

/// Every tensor of a float32 file.
pub fn safetensors(name: &str) -> BTreeMap<String, Array> {
    let bytes = bytes(name);
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
    let array = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        assert_eq!(view.dtype(), safetensors::Dtype::F32, "{name}");
        let data: Vec<f32> = little_endian(view.data(), f32::from_le_bytes);
        (name, Array::from_f32(view.shape(), &data))
    };
    file.tensors().into_iter().map(array).collect()
}

/// The token file holds u32; its index the i64 offsets of the documents, of which there is one.
fn tokens() -> Vec<u32> {
    let tokens = little_endian(&bytes("llama_tiny/tokens.bin"), u32::from_le_bytes);
    let offsets = little_endian(&bytes("llama_tiny/tokens.idx"), i64::from_le_bytes);
    assert_eq!(offsets, [0, tokens.len() as i64]);
    tokens
}

fn little_endian<const N: usize, T>(bytes: &[u8], decode: impl Fn([u8; N]) -> T) -> Vec<T> {
    let (chunks, rest) = bytes.as_chunks::<N>();
    assert!(rest.is_empty());
    chunks.iter().map(|chunk| decode(*chunk)).collect()
}

impl LlamaTiny {
    /// The float64 trainer at the start of a golden run.
    pub fn trainer(&self, run: &ExpectedRun) -> Trainer {
        let is_pc = |name: &str| run.pc.iter().any(|part| name.ends_with(&format!(".{part}")));
        let kept = |name: &str| name.strip_suffix(".gamma").is_none_or(is_pc);
        let params = self.weights.iter().filter(|(name, _)| kept(name)).map(|(n, w)| (n.clone(), w.clone()));
        let vectors = self.vectors.iter().filter(|(name, _)| is_pc(name)).map(|(n, v)| (n.clone(), v.clone()));
        Trainer::new(self.config, run.recipe(), params.collect(), vectors.collect())
    }

    /// The micro-batches of one step, counted from 0. Window j is `tokens[j·seq..][..seq]`, its targets one token later.
    pub fn batches(&self, run: &ExpectedRun, step: usize) -> Vec<Batch> {
        let ExpectedRun { seq_len: seq, batch_size, grad_accumulation, .. } = *run;
        let size = batch_size * seq; // consecutive windows are consecutive tokens
        let batch = |micro| {
            let start = (step * grad_accumulation + micro) * size;
            let tokens = |start: usize| self.tokens[start..][..size].to_vec();
            Batch { seq, inputs: tokens(start), targets: tokens(start + 1) }
        };
        (0..grad_accumulation).map(batch).collect()
    }
}

impl ExpectedRun {
    pub fn recipe(&self) -> Recipe {
        let rule = match self.optimizer.as_str() {
            "adamw" => Rule::AdamW,
            "muon" => Rule::Muon(Muon::new(Coefficients::Simple, LrScale::Moonlight)),
            other => panic!("unknown optimizer {other}"),
        };
        Recipe {
            rule,
            adam: Adam::default(),
            lr: self.lr,
            schedule: self.schedule.to_schedule(),
            weight_decay: 0.1,
            clip: 1.0,
            pc: Pc::of_level(self.level),
        }
    }
}
