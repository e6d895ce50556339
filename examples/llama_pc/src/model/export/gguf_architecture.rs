//! The sizes and the rotary embedding of a model, as a GGUF says them. llama.cpp has two architectures for them: `llama`, and `qwen3`
//! for normed queries and keys.

use polytape::llama::{LlamaConfig, RopeScaling};

use super::gguf_metadata::Value;
use super::merged::Merged;
use crate::model::import::architecture_of;

/// The keys that begin with the architecture's name.
pub fn metadata(model: &Merged) -> Vec<(String, Value)> {
    let sizes = &model.sizes;
    let number = |value: usize| Value::U32(value as u32);
    let mut keys = vec![
        ("vocab_size", number(sizes.vocab)),
        ("context_length", number(sizes.max_seq_len)),
        ("embedding_length", number(sizes.dim)),
        ("block_count", number(sizes.layers)),
        ("feed_forward_length", number(sizes.intermediate_size)),
        ("attention.head_count", number(sizes.heads)),
        ("attention.head_count_kv", number(sizes.kv_heads)),
        ("attention.key_length", number(sizes.head_dim())),
        ("attention.value_length", number(sizes.head_dim())),
        ("attention.layer_norm_rms_epsilon", Value::F32(sizes.norm_eps)),
        ("rope.dimension_count", number(sizes.head_dim())),
        ("rope.freq_base", Value::F32(sizes.rope_theta as f32)),
    ];
    keys.extend(scaling(sizes));
    let architecture = architecture_of(sizes).model_type;
    keys.into_iter().map(|(key, value)| (format!("{architecture}.{key}"), value)).collect()
}

fn scaling(sizes: &LlamaConfig) -> Vec<(&'static str, Value)> {
    let kind = |name: &str| ("rope.scaling.type", Value::Text(name.to_owned()));
    let factor = |factor: f64| ("rope.scaling.factor", Value::F32(factor as f32));
    match sizes.rope_scaling {
        // Llama 3's are a tensor.
        None | Some(RopeScaling::Llama3 { .. }) => Vec::new(),
        Some(RopeScaling::Linear { factor: times }) => vec![kind("linear"), factor(times)],
        // Its betas are llama.cpp's: others are refused.
        Some(RopeScaling::Yarn { factor: times, original_seq_len, attention_factor, .. }) => {
            // llama.cpp multiplies it by YaRN's own.
            let more = attention_factor / RopeScaling::yarn_attention_factor(times);
            vec![
                kind("yarn"),
                factor(times),
                ("rope.scaling.original_context_length", Value::U32(original_seq_len as u32)),
                ("rope.scaling.attn_factor", Value::F32(more as f32)),
            ]
        }
    }
}

/// What llama.cpp divides each rotary frequency by, where that is not the same for all: Llama 3's scaling.
pub fn rope_factors(sizes: &LlamaConfig) -> Option<Vec<f32>> {
    let scaled = matches!(sizes.rope_scaling, Some(RopeScaling::Llama3 { .. })).then(|| sizes.rope_frequencies())?;
    let plain = LlamaConfig { rope_scaling: None, ..sizes.clone() }.rope_frequencies();
    Some(plain.iter().zip(&scaled).map(|(plain, scaled)| (plain / scaled) as f32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama_3s_factors_go_from_one_to_the_whole() {
        let scaling = RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_seq_len: 8192 };
        let sizes = LlamaConfig { rope_theta: 5e5, rope_scaling: Some(scaling), ..LlamaConfig::new(4096, 2, 32, 9) };
        let factors = rope_factors(&sizes).expect("factors");
        assert_eq!((factors.len(), factors[0], factors[63]), (64, 1.0, 8.0));
        assert!(factors.is_sorted() && factors.iter().any(|factor| (1.1..7.9).contains(factor)), "{factors:?}");
        assert!(rope_factors(&LlamaConfig::new(4096, 2, 32, 9)).is_none());
    }
}
