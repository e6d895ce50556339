//! The step in candle, on its CPU backend: it has none for Vulkan.
//!
//! candle's fused norm, rotary and last-dimension softmax have no backward, so the composed variants are used.

use std::collections::HashMap;

use candle_core::{Device, Tensor, Var};
use candle_nn::loss::cross_entropy;
use candle_nn::ops::{rms_norm_slow, softmax};
use candle_nn::optim::{AdamW, Optimizer, ParamsAdamW};
use candle_nn::rotary_emb::rope_slow;

use crate::{BETAS, EPS, Peer, RATE, Result, SEQ_LEN, SEQUENCES, Setup, WEIGHT_DECAY};

pub struct Run {
    layers: usize,
    heads: usize,
    norm_eps: f32,
    weights: HashMap<String, Var>,
    optimizer: AdamW,
    cos: Tensor,
    sin: Tensor,
    /// Additive causal mask: 0 or -∞.
    mask: Tensor,
    inputs: Tensor,
    targets: Tensor,
}

impl Run {
    pub fn new(setup: &Setup) -> Result<Self> {
        let device = Device::Cpu;
        let weights = setup
            .weights
            .iter()
            .map(|(name, (shape, values))| Ok((name.clone(), Var::from_slice(values, shape.as_slice(), &device)?)))
            .collect::<Result<HashMap<String, Var>>>()?;
        let adam = ParamsAdamW { lr: RATE, beta1: BETAS[0], beta2: BETAS[1], eps: EPS, weight_decay: WEIGHT_DECAY };
        let [cos, sin] = setup.rotary();
        let table = (SEQ_LEN, setup.config.head_dim() / 2);
        let looks = |i: usize| if i % SEQ_LEN > i / SEQ_LEN { f32::NEG_INFINITY } else { 0.0 };
        let mask: Vec<f32> = (0..SEQ_LEN * SEQ_LEN).map(looks).collect();
        Ok(Self {
            layers: setup.config.layers,
            heads: setup.config.heads,
            norm_eps: setup.config.norm_eps,
            optimizer: AdamW::new(weights.values().cloned().collect(), adam)?,
            weights,
            cos: Tensor::from_vec(cos, table, &device)?,
            sin: Tensor::from_vec(sin, table, &device)?,
            mask: Tensor::from_vec(mask, (SEQ_LEN, SEQ_LEN), &device)?,
            inputs: Tensor::new(setup.inputs.as_slice(), &device)?,
            targets: Tensor::new(setup.targets.as_slice(), &device)?,
        })
    }

    fn weight(&self, name: &str) -> &Tensor {
        &self.weights[&format!("{name}.weight")]
    }

    /// y = x·Wᵀ for a weight [out, in].
    fn linear(&self, x: &Tensor, name: &str) -> candle_core::Result<Tensor> {
        x.matmul(&self.weight(name).t()?)
    }

    fn rms_norm(&self, x: &Tensor, name: &str) -> candle_core::Result<Tensor> {
        rms_norm_slow(x, self.weight(name), self.norm_eps)
    }

    fn split_heads(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let width = x.dim(1)? / self.heads;
        x.reshape((SEQUENCES, SEQ_LEN, self.heads, width))?.transpose(1, 2)?.contiguous()
    }

    fn block(&self, layer: usize, x: &Tensor) -> candle_core::Result<Tensor> {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let h = self.rms_norm(x, &name("input_layernorm"))?;
        let turned = |part: &str| {
            let heads = self.split_heads(&self.linear(&h, &name(part))?)?;
            rope_slow(&heads, &self.cos, &self.sin)
        };
        let (q, k) = (turned("self_attn.q_proj")?, turned("self_attn.k_proj")?);
        let v = self.split_heads(&self.linear(&h, &name("self_attn.v_proj"))?)?;
        let scale = (q.dim(3)? as f64).powf(-0.5);
        let scores = (q.matmul(&k.t()?)? * scale)?.broadcast_add(&self.mask)?;
        let mixed = softmax(&scores, 3)?.matmul(&v)?.transpose(1, 2)?.reshape(x.shape())?;
        let x = (x + self.linear(&mixed, &name("self_attn.o_proj"))?)?;
        let h = self.rms_norm(&x, &name("post_attention_layernorm"))?;
        let gate = self.linear(&h, &name("mlp.gate_proj"))?.silu()?;
        let inner = (gate * self.linear(&h, &name("mlp.up_proj"))?)?;
        x + self.linear(&inner, &name("mlp.down_proj"))?
    }

    fn loss(&self) -> candle_core::Result<Tensor> {
        let mut x = self.weight("model.embed_tokens").index_select(&self.inputs, 0)?;
        for layer in 0..self.layers {
            x = self.block(layer, &x)?;
        }
        let logits = self.linear(&self.rms_norm(&x, "model.norm")?, "lm_head")?;
        cross_entropy(&logits, &self.targets)
    }
}

impl Peer for Run {
    fn step(&mut self, read: bool) -> Result<Option<f32>> {
        let loss = self.loss()?;
        self.optimizer.backward_step(&loss)?;
        Ok(if read { Some(loss.to_scalar::<f32>()?) } else { None })
    }

    fn wait(&self) -> Result<()> {
        // Synchronous.
        Ok(())
    }
}
