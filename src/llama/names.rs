//! Parameter names, as in Hugging Face's checkpoints: `<stem>.weight`, where a stem within layer i is `model.layers.<i>.<part>`.

/// Stem of the token embedding.
pub const EMBEDDING: &str = "model.embed_tokens";
/// Stem of the norm after the last layer.
pub const FINAL_NORM: &str = "model.norm";
/// Stem of an untied output head.
pub const HEAD: &str = "lm_head";

/// Query projection.
pub const Q: &str = "self_attn.q_proj";
/// Key projection.
pub const K: &str = "self_attn.k_proj";
/// Value projection.
pub const V: &str = "self_attn.v_proj";
/// Output projection of attention.
pub const O: &str = "self_attn.o_proj";
/// Norm of every query head.
pub const Q_NORM: &str = "self_attn.q_norm";
/// Norm of every key head.
pub const K_NORM: &str = "self_attn.k_norm";
/// Gate projection of the MLP.
pub const GATE: &str = "mlp.gate_proj";
/// Up projection of the MLP.
pub const UP: &str = "mlp.up_proj";
/// Down projection of the MLP.
pub const DOWN: &str = "mlp.down_proj";
/// Norm before attention.
pub const ATTENTION_NORM: &str = "input_layernorm";
/// Norm before the MLP.
pub const MLP_NORM: &str = "post_attention_layernorm";

/// The matrices of a layer, in the order of the parameters.
pub const MATRICES: [&str; 7] = [Q, K, V, O, GATE, UP, DOWN];

const LAYERS: &str = "model.layers.";
const WEIGHT: &str = ".weight";

/// The stem of a part of a layer: `model.layers.3.mlp.down_proj`.
pub fn in_layer(layer: usize, part: &str) -> String {
    format!("{LAYERS}{layer}.{part}")
}

/// The parameter's name: `<stem>.weight`.
pub fn weight(stem: &str) -> String {
    format!("{stem}{WEIGHT}")
}

/// The name without `.weight`.
pub fn stem(name: &str) -> &str {
    name.strip_suffix(WEIGHT).unwrap_or(name)
}

/// The layer and the part that a stem names: `model.layers.3.mlp.down_proj` → (3, `mlp.down_proj`). `None` outside of the layers.
pub fn layer_and_part(stem: &str) -> Option<(usize, &str)> {
    let (layer, part) = stem.strip_prefix(LAYERS)?.split_once('.')?;
    Some((layer.parse().ok()?, part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart_as_they_are_built() {
        let name = weight(&in_layer(12, DOWN));
        assert_eq!(name, "model.layers.12.mlp.down_proj.weight");
        assert_eq!(layer_and_part(stem(&name)), Some((12, DOWN)));
        for other in [EMBEDDING, "model.layers.x.mlp.up_proj", "model.layers.3"] {
            assert_eq!(layer_and_part(other), None);
        }
        assert_eq!(stem(EMBEDDING), EMBEDDING);
    }
}
