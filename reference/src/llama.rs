//! Llama in float64: pre-norm blocks, grouped heads, rotary positions, SwiGLU; forward, loss and every gradient.
//!
//! Parameters by name: `tok_embeddings` `[vocab, dim]`, per layer l `layers.l.` with `attention_norm` `[dim]`, `wq`, `wk`, `wv`,
//! `wo`, with `qk_norm` also `q_norm` and `k_norm` `[head_dim]`, `ffn_norm` `[dim]`, `w1` (gate), `w3` (up)
//! `[intermediate_size, dim]`, `w2` (down) `[dim, intermediate_size]`; `norm` `[dim]`, `output` `[vocab, dim]`.

use std::collections::BTreeMap;

use super::array::Array;
use super::attention::{AttentionShape, attention, attention_vjp};
use super::cross_entropy::{rounded_head, rounded_head_vjp};
use super::elementwise::{swiglu, swiglu_vjp};
use super::embedding::{embedding, embedding_vjp};
use super::half::Operands;
use super::normalize::{rms_norm, rms_norm_vjp};
use super::rotary::{Rotary, Scaling, rotary, rotary_vjp};

/// Arrays by parameter name: weights, or their gradients.
pub type Weights = BTreeMap<String, Array>;

#[derive(Clone, Copy, Debug)]
pub struct LlamaConfig {
    pub vocab: usize,
    pub dim: usize,
    pub intermediate_size: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    pub norm_eps: f64,
    pub theta: f64,
    pub scaling: Scaling,
    /// Every query and key head is normed before it is turned.
    pub qk_norm: bool,
    /// The head is the embedding table; there is no `output`.
    pub tied: bool,
    /// What the linear layers and the head round their operands to, forward and backward; attention rounds nothing.
    pub operands: Operands,
}

/// Token sequences, one after another: inputs and targets `[batch·seq]`.
pub struct Batch {
    pub seq: usize,
    pub inputs: Vec<u32>,
    pub targets: Vec<u32>,
}

const LAYER_PARAMETERS: [&str; 9] = ["wq", "wk", "wv", "wo", "w1", "w2", "w3", "attention_norm", "ffn_norm"];
const HEAD_NORMS: [&str; 2] = ["q_norm", "k_norm"];

impl LlamaConfig {
    pub fn parameter_names(&self) -> Vec<String> {
        let parts = || LAYER_PARAMETERS.iter().chain(HEAD_NORMS.iter().filter(|_| self.qk_norm));
        let of_layer = |layer| parts().map(move |part| format!("layers.{layer}.{part}"));
        let ends = ["tok_embeddings", "norm", "output"].into_iter().filter(|name| !(self.tied && *name == "output"));
        (0..self.layers).flat_map(of_layer).chain(ends.map(String::from)).collect()
    }

    /// Whether the parameter is a matrix of a block: what Muon updates and what a PC layer may precondition.
    pub fn is_matrix(name: &str) -> bool {
        name.rsplit('.').next().is_some_and(|part| LAYER_PARAMETERS[..7].contains(&part))
    }

    pub fn shape_of(&self, name: &str) -> Vec<usize> {
        let (q_dim, kv_dim) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        match name.rsplit('.').next().expect("a name") {
            "wq" => vec![q_dim, self.dim],
            "wo" => vec![self.dim, q_dim],
            "wk" | "wv" => vec![kv_dim, self.dim],
            "w1" | "w3" => vec![self.intermediate_size, self.dim],
            "w2" => vec![self.dim, self.intermediate_size],
            "tok_embeddings" | "output" => vec![self.vocab, self.dim],
            "q_norm" | "k_norm" => vec![self.head_dim],
            _ => vec![self.dim],
        }
    }

    fn head_name(&self) -> &'static str {
        if self.tied { "tok_embeddings" } else { "output" }
    }

    fn attention_shape(&self, rows: usize, seq: usize) -> AttentionShape {
        let (heads, kv_heads, head_dim) = (self.heads, self.kv_heads, self.head_dim);
        AttentionShape { batch: rows / seq, seq, heads, kv_heads, head_dim }
    }

    fn rotary(&self, seq: usize) -> Rotary {
        Rotary { seq, head_dim: self.head_dim, offset: 0, theta: self.theta, scaling: self.scaling }
    }
}

/// What the backward of a block needs, in the order the forward makes it.
struct Saved {
    x: Array,
    attention_input: Array,
    /// Of queries and keys before their norms.
    raw: [Array; 2],
    q: Array,
    k: Array,
    v: Array,
    attended: Array,
    middle: Array,
    ffn_input: Array,
    gate: Array,
    up: Array,
    hidden: Array,
}

/// One block: its weights, and where its gradients go.
struct Block<'a> {
    config: &'a LlamaConfig,
    weights: &'a Weights,
    layer: usize,
    seq: usize,
}

impl Block<'_> {
    fn name(&self, part: &str) -> String {
        format!("layers.{}.{part}", self.layer)
    }

    fn weight(&self, part: &str) -> &Array {
        &self.weights[&self.name(part)]
    }

    /// x·wᵀ
    fn linear(&self, x: &Array, part: &str) -> Array {
        self.config.operands.matmul(x, self.weight(part), false, true)
    }

    fn linear_vjp(&self, x: &Array, part: &str, dy: &Array, gradients: &mut Weights) -> Array {
        let [dx, dw] = self.config.operands.matmul_vjp(x, self.weight(part), false, true, dy);
        gradients.insert(self.name(part), dw);
        dx
    }

    fn norm_vjp(&self, x: &Array, part: &str, dy: &Array, gradients: &mut Weights) -> Array {
        let [dx, dw] = rms_norm_vjp(x, self.weight(part), self.config.norm_eps, dy);
        gradients.insert(self.name(part), dw);
        dx
    }

    /// The norm of each head of x `[batch·seq, heads·head_dim]`, where the model has one.
    fn norm_heads(&self, x: &Array, part: &str) -> Array {
        if !self.config.qk_norm {
            return x.clone();
        }
        Array::new(&x.shape, rms_norm(&self.heads(x), self.weight(part), self.config.norm_eps).data)
    }

    fn norm_heads_vjp(&self, x: &Array, part: &str, dy: Array, gradients: &mut Weights) -> Array {
        if !self.config.qk_norm {
            return dy;
        }
        Array::new(&x.shape, self.norm_vjp(&self.heads(x), part, &self.heads(&dy), gradients).data)
    }

    /// x `[rows, heads·head_dim]` → `[rows·heads, head_dim]`
    fn heads(&self, x: &Array) -> Array {
        let width = self.config.head_dim;
        Array::new(&[x.data.len() / width, width], x.data.clone())
    }

    fn forward(&self, x: &Array) -> (Array, Saved) {
        let rotation = self.config.rotary(self.seq);
        let attention_input = rms_norm(x, self.weight("attention_norm"), self.config.norm_eps);
        let raw = ["wq", "wk"].map(|part| self.linear(&attention_input, part));
        let [q, k] = [0, 1].map(|which| rotary(&self.norm_heads(&raw[which], HEAD_NORMS[which]), rotation));
        let v = self.linear(&attention_input, "wv");
        let attended = attention(&q, &k, &v, self.config.attention_shape(x.shape[0], self.seq));
        let middle = x.plus(&self.linear(&attended, "wo"));
        let ffn_input = rms_norm(&middle, self.weight("ffn_norm"), self.config.norm_eps);
        let gate = self.linear(&ffn_input, "w1");
        let up = self.linear(&ffn_input, "w3");
        let hidden = swiglu(&gate, &up);
        let y = middle.plus(&self.linear(&hidden, "w2"));
        let x = x.clone();
        (y, Saved { x, attention_input, raw, q, k, v, attended, middle, ffn_input, gate, up, hidden })
    }

    fn backward(&self, saved: &Saved, dy: &Array, gradients: &mut Weights) -> Array {
        let dmiddle = dy.plus(&self.ffn_backward(saved, dy, gradients));
        dmiddle.plus(&self.attention_backward(saved, &dmiddle, gradients))
    }

    fn ffn_backward(&self, saved: &Saved, dy: &Array, gradients: &mut Weights) -> Array {
        let dhidden = self.linear_vjp(&saved.hidden, "w2", dy, gradients);
        let [dgate, dup] = swiglu_vjp(&saved.gate, &saved.up, &dhidden);
        let dinput = self.linear_vjp(&saved.ffn_input, "w1", &dgate, gradients);
        let dinput = dinput.plus(&self.linear_vjp(&saved.ffn_input, "w3", &dup, gradients));
        self.norm_vjp(&saved.middle, "ffn_norm", &dinput, gradients)
    }

    fn attention_backward(&self, saved: &Saved, dy: &Array, gradients: &mut Weights) -> Array {
        let (shape, rotation) = (self.config.attention_shape(dy.shape[0], self.seq), self.config.rotary(self.seq));
        let dattended = self.linear_vjp(&saved.attended, "wo", dy, gradients);
        let [dq, dk, dv] = attention_vjp(&saved.q, &saved.k, &saved.v, shape, &dattended);
        let ([dq], [dk]) = (rotary_vjp(rotation, &dq), rotary_vjp(rotation, &dk));
        let dq = self.norm_heads_vjp(&saved.raw[0], HEAD_NORMS[0], dq, gradients);
        let dk = self.norm_heads_vjp(&saved.raw[1], HEAD_NORMS[1], dk, gradients);
        let dinput = self.linear_vjp(&saved.attention_input, "wq", &dq, gradients);
        let dinput = dinput.plus(&self.linear_vjp(&saved.attention_input, "wk", &dk, gradients));
        let dinput = dinput.plus(&self.linear_vjp(&saved.attention_input, "wv", &dv, gradients));
        self.norm_vjp(&saved.x, "attention_norm", &dinput, gradients)
    }
}

/// What the blocks and the last norm give: `[batch·seq, dim]`, with what the backward needs.
struct Trunk {
    saved: Vec<Saved>,
    last: Array,
    y: Array,
}

fn trunk(config: &LlamaConfig, weights: &Weights, ids: &[u32], seq: usize) -> Trunk {
    assert_eq!(ids.len() % seq, 0, "whole sequences");
    let mut last = embedding(&weights["tok_embeddings"], ids);
    let mut saved = Vec::new();
    for layer in 0..config.layers {
        let (y, of_block) = Block { config, weights, layer, seq }.forward(&last);
        saved.push(of_block);
        last = y;
    }
    let y = rms_norm(&last, &weights["norm"], config.norm_eps);
    Trunk { saved, last, y }
}

/// ids `[batch·seq]` → `[batch·seq, vocab]`
pub fn logits(config: &LlamaConfig, weights: &Weights, ids: &[u32], seq: usize) -> Array {
    config.operands.matmul(&trunk(config, weights, ids, seq).y, &weights[config.head_name()], false, true)
}

/// The mean cross-entropy over all positions.
pub fn loss(config: &LlamaConfig, weights: &Weights, batch: &Batch) -> f64 {
    let y = trunk(config, weights, &batch.inputs, batch.seq).y;
    rounded_head(config.operands, &y, &weights[config.head_name()], &batch.targets).item()
}

/// The loss and its gradient in every parameter.
pub fn loss_and_gradients(config: &LlamaConfig, weights: &Weights, batch: &Batch) -> (f64, Weights) {
    let Trunk { saved, last, y } = trunk(config, weights, &batch.inputs, batch.seq);
    let head = &weights[config.head_name()];
    let loss = rounded_head(config.operands, &y, head, &batch.targets).item();
    let [dy, dhead] = rounded_head_vjp(config.operands, &y, head, &batch.targets, &Array::scalar(1.0));
    let [mut dx, dnorm] = rms_norm_vjp(&last, &weights["norm"], config.norm_eps, &dy);
    let mut gradients = Weights::from([("norm".to_string(), dnorm)]);
    for (layer, saved) in saved.iter().enumerate().rev() {
        dx = Block { config, weights, layer, seq: batch.seq }.backward(saved, &dx, &mut gradients);
    }
    let [dtable] = embedding_vjp(&weights["tok_embeddings"], &batch.inputs, &dx);
    if config.tied {
        gradients.insert("tok_embeddings".to_string(), dtable.plus(&dhead));
    } else {
        gradients.insert("tok_embeddings".to_string(), dtable);
        gradients.insert("output".to_string(), dhead);
    }
    (loss, gradients)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::array::seeded;
    use crate::cross_entropy::cross_entropy_head;
    use crate::differences::{assert_near, numerical_gradient};

    fn check(config: &LlamaConfig) {
        let mut rng = seeded(121);
        let names = config.parameter_names();
        let arrays: Vec<Array> = names.iter().map(|name| Array::random(&config.shape_of(name), &mut rng).times(0.5)).collect();
        let named = |arrays: &[Array]| names.iter().cloned().zip(arrays.iter().cloned()).collect::<Weights>();
        let batch = Batch { seq: 3, inputs: vec![1, 4, 2, 0, 1, 1], targets: vec![4, 2, 3, 1, 1, 0] };
        let logits = logits(config, &named(&arrays), &batch.inputs, batch.seq);
        let of_logits = cross_entropy_head(&logits, &Array::identity(config.vocab), &batch.targets).item();
        let (value, gradients) = loss_and_gradients(config, &named(&arrays), &batch);
        assert_eq!(value, loss(config, &named(&arrays), &batch));
        assert!((value - of_logits).abs() < 1e-14 * value);
        assert_eq!(gradients.len(), names.len());
        for (which, name) in names.iter().enumerate() {
            let forward = |arrays: &[Array]| Array::scalar(loss(config, &named(arrays), &batch));
            let want = numerical_gradient(&arrays, which, &Array::scalar(1.0), forward);
            assert_near(name, &gradients[name], &want, 1e-6);
        }
    }

    #[test]
    fn every_gradient_matches_finite_differences() {
        let config = LlamaConfig {
            vocab: 5,
            dim: 8,
            intermediate_size: 6,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 2,
            norm_eps: 1e-5,
            theta: 100.0,
            scaling: Scaling::None,
            qk_norm: false,
            tied: false,
            operands: Operands::Whole,
        };
        check(&config);
        check(&LlamaConfig { layers: 1, kv_heads: 1, tied: true, ..config });
        let scaling = Scaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 64.0 };
        check(&LlamaConfig { layers: 1, head_dim: 6, scaling, qk_norm: true, ..config });
    }
}
