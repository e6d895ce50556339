//! What a step binds at once where an adapter limits that: by the library's own rules, so that a plan that fits does run.

use polytape::gpu::KernelTier;
use polytape::spectral::{newton_schulz_binding, pc_binding};
use polytape::{AttentionWindows, Gpu, Role};

use super::model::Model;
use crate::terminal::format::binary;

/// The most bytes of one binding; none on the host tier, which binds nothing.
pub fn limit(gpu: &Gpu) -> Option<u64> {
    (gpu.kernels() != KernelTier::Host).then(|| gpu.binding_limit())
}

/// How attention is bound, or the library's reason why it cannot be.
pub fn attention(model: &Model, limit: u64) -> polytape::Result<AttentionWindows> {
    model.sizes.attention_shape(model.batch).windows(model.seq_len, model.seq_len, limit)
}

/// What a step would bind beyond the limit; everything else is cut.
pub fn problem(model: &Model, limit: u64) -> Option<String> {
    if let Err(error) = attention(model, limit) {
        return Some(error.to_string());
    }
    let sizes = &model.sizes;
    let layers = model.pc.iter().map(|layer| ("a PC layer", pc_binding([layer.heads, layer.rows, layer.columns])));
    let matrices =
        model.parameters.iter().filter(|parameter| model.newton_schulz_steps.is_some() && parameter.role == Role::Matrix);
    let muon = matrices.map(|matrix| ("a matrix of Muon", newton_schulz_binding([matrix.shape[0], matrix.shape[1]])));
    let rotary = ("the rotary table", 4 * (sizes.max_seq_len * sizes.head_dim()) as u64);
    let whole = layers.chain(muon).chain([rotary]);
    let (name, bytes) = whole.filter(|(_, bytes)| *bytes > limit).max_by_key(|(_, bytes)| *bytes)?;
    Some(format!("{name} needs {} in one binding, where the adapter allows {}", binary(bytes), binary(limit)))
}
