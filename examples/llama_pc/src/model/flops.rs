//! Floating-point operations of the model for one token, a multiplication and an addition counted as two.

use polytape::llama::LlamaConfig;

/// Forward and backward of the model for one token: three times the forward, as a product's backward is two products of its size.
/// The FLOPs that MFU counts.
pub fn per_token(sizes: &LlamaConfig, seq_len: usize) -> f64 {
    let head = 2.0 * (sizes.vocab * sizes.dim) as f64;
    3.0 * (blocks_per_token(sizes) + attention_per_token(sizes, seq_len) + head)
}

/// Forward of the blocks' linear layers: 2·out·in each.
pub fn blocks_per_token(sizes: &LlamaConfig) -> f64 {
    let (dim, q_dim, kv_dim) = (sizes.dim as f64, sizes.q_dim() as f64, sizes.kv_dim() as f64);
    2.0 * sizes.layers as f64 * (2.0 * q_dim * dim + 2.0 * kv_dim * dim + 3.0 * sizes.intermediate_size as f64 * dim)
}

/// Forward of attention: q·kᵀ and p·v take 2·heads·head_dim each per pair of positions, of which the causal mask leaves a query
/// (seq_len + 1) / 2 on average.
pub fn attention_per_token(sizes: &LlamaConfig, seq_len: usize) -> f64 {
    4.0 * (sizes.layers * sizes.q_dim()) as f64 * (seq_len as f64 + 1.0) / 2.0
}
