//! Floating-point operations, a multiplication and an addition counted as two, of the matrix products that make up a step.
//!
//! Per token and linear layer [out, in]: 2·out·in forward, twice that backward. Attention: the two products q·kᵀ and p·v take
//! 2·2·dim per pair of positions, of which the causal mask leaves (seq_len + 1) / 2 for a query; backward twice that.

use polytape::llama::LlamaConfig;

/// Forward and backward of the model for one token: the arithmetic that utilisation is counted in. Recomputation, PC layers and the
/// optimizer are not in it.
pub fn model_per_token(sizes: &LlamaConfig, seq_len: usize) -> f64 {
    3.0 * (linear_per_token(sizes) + attention_per_token(sizes, seq_len))
}

/// Forward of all linear layers and the head.
fn linear_per_token(sizes: &LlamaConfig) -> f64 {
    let (dim, kv_dim) = (sizes.dim as f64, (sizes.kv_heads * sizes.head_dim()) as f64);
    let block = 2.0 * dim * dim + 2.0 * kv_dim * dim + 3.0 * sizes.hidden as f64 * dim;
    2.0 * (sizes.layers as f64 * block + sizes.vocab as f64 * dim)
}

/// Forward of attention.
fn attention_per_token(sizes: &LlamaConfig, seq_len: usize) -> f64 {
    4.0 * sizes.layers as f64 * sizes.dim as f64 * (seq_len as f64 + 1.0) / 2.0
}
