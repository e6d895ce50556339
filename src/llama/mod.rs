//! Llama: pre-norm blocks without biases, RMSNorm, rotary positions, causal attention with grouped key and value heads, SwiGLU.
//! With `qk_norm` it is Qwen3's dense model.
//!
//! Parameters carry Hugging Face's names and order (rotary in half-split form). The model reads them from the tape it is given,
//! so the same code runs on raw parameters and on the effective weights of a [`Preconditioner`](crate::spectral::Preconditioner).

mod cache;
pub mod names;
mod rope;

pub use cache::KvCache;
pub use rope::RopeScaling;

use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::ChaCha12Rng;

use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::ops::{AttentionShape, MAX_HEAD_DIM, RotaryTable, frequencies};
use crate::params::{ParamId, Params, Role};
use crate::random::normals;
use crate::tape::{Tape, Var};
use crate::tensor::{Indices, Tensor};
use cache::CachedLayer;

/// Sizes of a Llama.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct LlamaConfig {
    /// Width of the residual stream.
    pub dim: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads, a divisor of `heads`.
    pub kv_heads: usize,
    /// Width of a head; `None` is dim / heads.
    pub head_dim: Option<usize>,
    /// Width of the SwiGLU's inner side.
    pub intermediate_size: usize,
    /// Number of tokens.
    pub vocab: usize,
    /// Longest sequence.
    pub max_seq_len: usize,
    /// Added to the mean square under RMSNorm's root.
    pub norm_eps: f32,
    /// Base of the rotary angles.
    pub rope_theta: f64,
    /// How they are scaled for long sequences.
    pub rope_scaling: Option<RopeScaling>,
    /// Every query and key head has an RMSNorm before the rotary embedding, as in Qwen3.
    pub qk_norm: bool,
    /// The head is the embedding's matrix.
    pub tied: bool,
    /// Keep only the input of each block for the backward, which then computes the block again.
    pub checkpoint_activations: bool,
}

/// Name, role, shape and initialization of a parameter.
#[derive(Debug, Clone, PartialEq)]
pub struct ParameterShape {
    /// Its name, as in the checkpoint.
    pub name: String,
    /// What it is.
    pub role: Role,
    /// Sizes of its dimensions.
    pub shape: Vec<usize>,
    /// Standard deviation of its initial values; 0 means all ones.
    pub std: f64,
}

impl ParameterShape {
    /// Number of values.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Published sizes: name, dim, layers, heads.
pub const PRESETS: [(&str, usize, usize, usize); 6] = [
    ("20M", 256, 4, 4),
    ("35M", 384, 6, 6),
    ("60M", 512, 8, 8),
    ("134M", 768, 12, 12),
    ("271M", 1024, 16, 16),
    ("1B", 2048, 18, 16),
];

/// Number of tokens of the published sizes.
pub const PRESET_VOCAB: usize = 32_000;

impl LlamaConfig {
    /// A configuration of the given width with the usual choices for the rest.
    pub fn new(dim: usize, layers: usize, heads: usize, vocab: usize) -> Self {
        Self {
            dim,
            layers,
            heads,
            kv_heads: heads,
            head_dim: None,
            intermediate_size: Self::default_intermediate_size(dim),
            vocab,
            max_seq_len: 8192,
            norm_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_scaling: None,
            qk_norm: false,
            tied: false,
            checkpoint_activations: false,
        }
    }

    /// One of the published sizes: 20M, 35M, 60M, 134M, 271M, 1B, with 32000 tokens.
    pub fn preset(name: &str) -> Result<Self> {
        let found = PRESETS.iter().find(|preset| preset.0 == name);
        let names: Vec<&str> = PRESETS.iter().map(|preset| preset.0).collect();
        let &(_, dim, layers, heads) =
            found.ok_or_else(|| Error::Value(format!("preset `{name}`: one of {} expected", names.join(", "))))?;
        Ok(Self::new(dim, layers, heads, PRESET_VOCAB))
    }

    /// ⌊2·4·dim/3⌋ rounded up to a multiple of 256.
    pub const fn default_intermediate_size(dim: usize) -> usize {
        (8 * dim / 3).next_multiple_of(256)
    }

    /// Width of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or_else(|| self.dim / self.heads)
    }

    /// Width of all query heads.
    pub fn q_dim(&self) -> usize {
        self.heads * self.head_dim()
    }

    /// Width of all key heads, and of all value heads.
    pub fn kv_dim(&self) -> usize {
        self.kv_heads * self.head_dim()
    }

    /// Rotary frequencies, in radians per position, for `i < head_dim / 2`.
    pub fn rope_frequencies(&self) -> Vec<f64> {
        let head_dim = self.head_dim();
        match &self.rope_scaling {
            None => frequencies(head_dim, self.rope_theta),
            Some(scaling) => scaling.frequencies(head_dim, self.rope_theta),
        }
    }

    /// How attention sees `batch` sequences.
    pub fn attention_shape(&self, batch: usize) -> AttentionShape {
        AttentionShape { batch, heads: self.heads, kv_heads: self.kv_heads, head_dim: self.head_dim() }
    }

    /// An error unless the sizes are consistent.
    pub fn check(&self) -> Result<()> {
        let sizes = [self.dim, self.layers, self.heads, self.kv_heads, self.intermediate_size, self.vocab, self.max_seq_len];
        let problem = if sizes.contains(&0) {
            "sizes above 0".to_string()
        } else if self.head_dim.is_none() && !self.dim.is_multiple_of(2 * self.heads) {
            format!("a dim of {} divided by {} heads into heads of even width", self.dim, self.heads)
        } else if !self.head_dim().is_multiple_of(2) || !(2..=MAX_HEAD_DIM).contains(&self.head_dim()) {
            format!("heads of an even width up to {MAX_HEAD_DIM}")
        } else if !self.heads.is_multiple_of(self.kv_heads) {
            format!("{} heads to be a multiple of {} kv_heads", self.heads, self.kv_heads)
        } else if !(self.rope_theta > 0.0 && self.rope_theta.is_finite()) {
            "a rope_theta above 0".to_string()
        } else if let Some(problem) = self.rope_scaling.as_ref().and_then(|scaling| scaling.problem(self.rope_theta)) {
            problem.to_string()
        } else {
            return Ok(());
        };
        Err(Error::Value(format!("llama: found {self:?}, expected {problem}")))
    }

    /// Every parameter, in the order of [`Llama::init`].
    pub fn parameters(&self) -> Vec<ParameterShape> {
        let (dim, q_dim, kv_dim) = (self.dim, self.q_dim(), self.kv_dim());
        let mut list = Vec::new();
        let mut add = |name: String, role, shape: &[usize], std| {
            list.push(ParameterShape { name, role, shape: shape.to_vec(), std });
        };
        // As a head, a table of std 1 would give the token that was just read a logit of dim.
        let table = if self.tied { 0.02 } else { 1.0 };
        add(names::weight(names::EMBEDDING), Role::Embedding, &[self.vocab, dim], table);
        for layer in 0..self.layers {
            let small = 0.02 / (2.0 * (layer + 1) as f64).sqrt();
            let name = |part| names::weight(&names::in_layer(layer, part));
            let mut matrix = |part, rows, columns, std| add(name(part), Role::Matrix, &[rows, columns], std);
            matrix(names::Q, q_dim, dim, 0.02);
            matrix(names::K, kv_dim, dim, 0.02);
            matrix(names::V, kv_dim, dim, 0.02);
            matrix(names::O, dim, q_dim, small);
            matrix(names::GATE, self.intermediate_size, dim, 0.02);
            matrix(names::UP, self.intermediate_size, dim, small);
            matrix(names::DOWN, dim, self.intermediate_size, small);
            for norm in [names::ATTENTION_NORM, names::MLP_NORM] {
                add(name(norm), Role::Vector, &[dim], 0.0);
            }
            for norm in [names::Q_NORM, names::K_NORM].into_iter().filter(|_| self.qk_norm) {
                add(name(norm), Role::Vector, &[self.head_dim()], 0.0);
            }
        }
        add(names::weight(names::FINAL_NORM), Role::Vector, &[dim], 0.0);
        if !self.tied {
            add(names::weight(names::HEAD), Role::Head, &[self.vocab, dim], (dim as f64).powf(-0.5));
        }
        list
    }
}

#[derive(Debug, Clone, Copy)]
struct Block {
    attention_norm: ParamId,
    q: ParamId,
    k: ParamId,
    v: ParamId,
    o: ParamId,
    q_norm: Option<ParamId>,
    k_norm: Option<ParamId>,
    ffn_norm: ParamId,
    gate: ParamId,
    up: ParamId,
    down: ParamId,
}

/// A Llama's structure over the ids of its parameters. Cheap to clone; holds no weights.
#[derive(Debug, Clone)]
pub struct Llama {
    config: Arc<LlamaConfig>,
    rotary: RotaryTable,
    embedding: ParamId,
    blocks: Vec<Block>,
    norm: ParamId,
    head: ParamId,
}

impl Llama {
    /// A model with initial weights drawn from `seed`.
    pub fn init(gpu: &Gpu, config: LlamaConfig, seed: u64) -> Result<(Self, Params)> {
        config.check()?;
        let mut params = Params::new(gpu);
        let mut rng = ChaCha12Rng::seed_from_u64(seed);
        for ParameterShape { name, role, shape, std } in config.parameters() {
            let count = shape.iter().product();
            let cut = if role == Role::Head { 3.0 } else { f64::INFINITY };
            let values = if std == 0.0 { vec![1.0; count] } else { normals(&mut rng, count, std, cut) };
            params.add(name, role, Tensor::from_slice(gpu, &values, &shape)?)?;
        }
        Self::bind(config, params)
    }

    /// A model over existing parameters, which `tensor` returns by name and expected shape.
    pub fn load(
        gpu: &Gpu,
        config: LlamaConfig,
        mut tensor: impl FnMut(&str, &[usize]) -> Result<Tensor>,
    ) -> Result<(Self, Params)> {
        config.check()?;
        let mut params = Params::new(gpu);
        for ParameterShape { name, role, shape, .. } in config.parameters() {
            let loaded = tensor(&name, &shape)?;
            if loaded.shape() != shape {
                return Err(Error::shape(
                    "load",
                    &[loaded.shape(), &shape],
                    format!("`{name}` has shape {:?}, {shape:?} expected", loaded.shape()),
                ));
            }
            params.add(name, role, loaded)?;
        }
        Self::bind(config, params)
    }

    /// Puts matrices that multiply one input one after the other, where they have one shape: they are one product then.
    fn bind(config: LlamaConfig, mut params: Params) -> Result<(Self, Params)> {
        let block = |layer: usize| {
            let id = |part| params.id(&names::weight(&names::in_layer(layer, part)));
            Ok(Block {
                attention_norm: id(names::ATTENTION_NORM)?,
                q: id(names::Q)?,
                k: id(names::K)?,
                v: id(names::V)?,
                o: id(names::O)?,
                q_norm: config.qk_norm.then(|| id(names::Q_NORM)).transpose()?,
                k_norm: config.qk_norm.then(|| id(names::K_NORM)).transpose()?,
                ffn_norm: id(names::MLP_NORM)?,
                gate: id(names::GATE)?,
                up: id(names::UP)?,
                down: id(names::DOWN)?,
            })
        };
        let embedding = params.id(&names::weight(names::EMBEDDING))?;
        let model = Self {
            rotary: Self::rotary(params.gpu(), &config)?,
            embedding,
            blocks: (0..config.layers).map(block).collect::<Result<_>>()?,
            norm: params.id(&names::weight(names::FINAL_NORM))?,
            head: if config.tied { embedding } else { params.id(&names::weight(names::HEAD))? },
            config: Arc::new(config),
        };
        let is_grouped = model.config.kv_heads < model.config.heads;
        let attention = |block: &Block| if is_grouped { vec![block.k, block.v] } else { vec![block.q, block.k, block.v] };
        params.put_groups_together(model.blocks.iter().map(attention).collect())?;
        params.put_groups_together(model.blocks.iter().map(|block| vec![block.gate, block.up]).collect())?;
        Ok((model, params))
    }

    fn rotary(gpu: &Gpu, config: &LlamaConfig) -> Result<RotaryTable> {
        let factor = config.rope_scaling.map_or(1.0, |scaling| scaling.attention_factor());
        RotaryTable::with_frequencies(gpu, config.max_seq_len, &config.rope_frequencies(), factor)
    }

    /// The sizes.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// Mean cross-entropy, in nats, of predicting `targets` after `inputs`, both `[batch·seq_len]` → `[1]`.
    pub fn loss<'t>(&self, tape: &'t Tape<'t>, inputs: &Indices, targets: &Indices, seq_len: usize) -> Result<Var<'t>> {
        self.observed_loss(tape, inputs, targets, seq_len, |_| Ok(()))
    }

    /// [`Llama::loss`], showing `observe` the residual stream [batch·seq_len, dim] after each block in order.
    pub fn observed_loss<'t>(
        &self,
        tape: &'t Tape<'t>,
        inputs: &Indices,
        targets: &Indices,
        seq_len: usize,
        observe: impl FnMut(&Tensor) -> Result<()>,
    ) -> Result<Var<'t>> {
        let x = self.observed_hidden(tape, inputs, seq_len, observe)?;
        x.head_cross_entropy(&tape.param(self.head)?, targets)
    }

    /// Logits [batch·seq_len, vocab] after each of `inputs` [batch·seq_len].
    pub fn logits<'t>(&self, tape: &'t Tape<'t>, inputs: &Indices, seq_len: usize) -> Result<Var<'t>> {
        self.hidden(tape, inputs, seq_len)?.matmul_nt(&tape.param(self.head)?)
    }

    /// The normalised residual stream [batch·seq_len, dim] after the last block.
    pub fn hidden<'t>(&self, tape: &'t Tape<'t>, inputs: &Indices, seq_len: usize) -> Result<Var<'t>> {
        self.observed_hidden(tape, inputs, seq_len, |_| Ok(()))
    }

    fn observed_hidden<'t>(
        &self,
        tape: &'t Tape<'t>,
        inputs: &Indices,
        seq_len: usize,
        observe: impl FnMut(&Tensor) -> Result<()>,
    ) -> Result<Var<'t>> {
        if seq_len == 0 || !inputs.len().is_multiple_of(seq_len) {
            let problem = format!("{} tokens: whole sequences of {seq_len} expected", inputs.len());
            return Err(Error::shape("llama", &[&[inputs.len()]], problem));
        }
        let x = self.residual(tape, inputs, seq_len, None, observe)?;
        x.rms_norm(&tape.param(self.norm)?, self.config.norm_eps)
    }

    /// The residual stream [batch·seq_len, dim] after the last block, of sequences that continue those in `cache`.
    fn residual<'t>(
        &self,
        tape: &'t Tape<'t>,
        inputs: &Indices,
        seq_len: usize,
        cache: Option<&KvCache>,
        mut observe: impl FnMut(&Tensor) -> Result<()>,
    ) -> Result<Var<'t>> {
        let mut x = tape.param(self.embedding)?.embedding(inputs)?;
        for (layer, &block) in self.blocks.iter().enumerate() {
            let cached = cache.map(|cache| cache.layer(layer));
            x = if self.config.checkpoint_activations && cached.is_none() {
                let model = self.clone();
                tape.checkpoint(&[&x], move |tape, inputs| model.block(tape, block, &inputs[0], seq_len, None))?
            } else {
                self.block(tape, block, &x, seq_len, cached)?
            };
            observe(x.value())?;
        }
        Ok(x)
    }

    /// With `cached`, the new keys and values join it, and no gradient flows through the attention.
    fn block<'t>(
        &self,
        tape: &'t Tape<'t>,
        block: Block,
        x: &Var<'t>,
        seq_len: usize,
        cached: Option<CachedLayer<'_>>,
    ) -> Result<Var<'t>> {
        let config = &*self.config;
        let shape = config.attention_shape(x.shape()[0] / seq_len);
        let first = cached.map_or(0, |cached| cached.tokens);
        let h = x.rms_norm(&tape.param(block.attention_norm)?, config.norm_eps)?;
        let [q, k, v] = [block.q, block.k, block.v].map(|matrix| tape.param(matrix));
        let mut products = h.matmul_nt_each(&[&q?, &k?, &v?])?.into_iter();
        let mut next = |norm: Option<ParamId>| {
            let x = products.next().expect("bug: a product for each matrix");
            match norm {
                None => Ok(x),
                Some(norm) => self.norm_heads(tape, norm, &x),
            }
        };
        let (q, k, v) = (next(block.q_norm)?, next(block.k_norm)?, next(None)?);
        let [q, k] = tape.rotary_each([q, k], &self.rotary, seq_len, first)?;
        let attended = match cached {
            None => q.attention(&k, &v, shape)?,
            Some(cached) => tape.constant(cached.attend(q.value(), k.value(), v.value(), shape)?),
        };
        let x = attended.matmul_nt_add(&tape.param(block.o)?, x)?;
        self.feed_forward(tape, block, &x)
    }

    /// The norm of each head of x [batch·seq_len, heads·head_dim].
    fn norm_heads<'t>(&self, tape: &'t Tape<'t>, norm: ParamId, x: &Var<'t>) -> Result<Var<'t>> {
        let head_dim = self.config.head_dim();
        let heads = x.reshape(&[x.value().len() / head_dim, head_dim])?;
        heads.rms_norm(&tape.param(norm)?, self.config.norm_eps)?.reshape(x.shape())
    }

    fn feed_forward<'t>(&self, tape: &'t Tape<'t>, block: Block, x: &Var<'t>) -> Result<Var<'t>> {
        let h = x.rms_norm(&tape.param(block.ffn_norm)?, self.config.norm_eps)?;
        let products = h.matmul_nt_each(&[&tape.param(block.gate)?, &tape.param(block.up)?])?;
        products[0].swiglu(&products[1])?.matmul_nt_add(&tape.param(block.down)?, x)
    }

    /// An empty cache for `batch` sequences of up to `capacity` tokens.
    pub fn cache(&self, batch: usize, capacity: usize) -> Result<KvCache> {
        let config = &*self.config;
        KvCache::new(self.rotary.gpu(), config.layers, [batch, capacity, config.kv_dim()])
    }

    /// The logits [batch, vocab] after the last of `tokens` [batch·count], which continue the sequences in `cache` by `count` each.
    pub fn next_logits(&self, params: &Params, tokens: &Indices, cache: &mut KvCache) -> Result<Tensor> {
        let (batch, dim) = (cache.batch(), self.config.dim);
        let count = cache.check(self.config.layers, self.config.kv_dim(), tokens.len())?;
        let tape = Tape::inference(params);
        let mut x = self.residual(&tape, tokens, count, Some(cache), |_| Ok(()))?;
        cache.advance(count);
        if count > 1 {
            x = x.reshape(&[batch, count, dim])?.slice(1, count - 1..count)?.reshape(&[batch, dim])?;
        }
        let last = x.rms_norm(&tape.param(self.norm)?, self.config.norm_eps)?;
        Ok(last.matmul_nt(&tape.param(self.head)?)?.value().clone())
    }
}
