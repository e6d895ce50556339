//! What `[train] log_layers_every` measures: every parameter and the residual stream, reduced on the device and read back at once.

use std::collections::BTreeMap;

use polytape::{Gradients, ParamId, Params, Tensor, read_many, rms_and_abs_max};
use serde::{Deserialize, Serialize};

/// The key `layers` of a line of metrics. Parameters are keyed by their names in the checkpoint, γ by the name of its matrix; the
/// lists go over the blocks in order. Weights and γ are those that the step's gradient was taken at.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Layers {
    /// L2 norm of each parameter's gradient, before clipping; absent where none flowed.
    pub gradient_norm: BTreeMap<String, f32>,
    /// L2 norm of each parameter.
    pub weight_norm: BTreeMap<String, f32>,
    /// γ of each PC layer: one value, or one per head.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub gamma: BTreeMap<String, Vec<f32>>,
    /// Its gradient, before clipping.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub gamma_gradient: BTreeMap<String, Vec<f32>>,
    /// Root mean square of the residual stream after each block, over all micro-batches of the step.
    pub residual_rms: Vec<f32>,
    /// Its largest absolute value.
    pub residual_max: Vec<f32>,
}

impl Layers {
    /// Its numbers under TensorBoard's tags; of a γ per head, the mean.
    pub fn scalars(&self) -> Vec<(String, f32)> {
        let norms = [("weight_norm", &self.weight_norm), ("gradient_norm", &self.gradient_norm)];
        let norms =
            norms.into_iter().flat_map(|(kind, map)| map.iter().map(move |(name, norm)| (format!("{kind}/{name}"), *norm)));
        let mean = |values: &Vec<f32>| values.iter().sum::<f32>() / values.len() as f32;
        let gammas = [("gamma", &self.gamma), ("gamma_gradient", &self.gamma_gradient)];
        let gammas = gammas
            .into_iter()
            .flat_map(|(kind, map)| map.iter().map(move |(name, values)| (format!("{kind}/{name}"), mean(values))));
        let residuals = [("residual_rms", &self.residual_rms), ("residual_max", &self.residual_max)];
        let residuals = residuals
            .into_iter()
            .flat_map(|(kind, list)| list.iter().enumerate().map(move |(block, value)| (format!("{kind}/{block}"), *value)));
        norms.chain(gammas).chain(residuals).collect()
    }
}

const GAMMA: &str = ".pc_gamma";

/// Measures a step before its update. `gradients` are those of the raw parameters times `loss_scale`; `residuals` holds a pair (RMS,
/// largest) per micro-batch and block.
pub fn measure(
    params: &Params,
    gradients: &Gradients,
    loss_scale: f32,
    residuals: &[Tensor],
    blocks: usize,
) -> polytape::Result<Layers> {
    let gradient = |id: ParamId| gradients.get(id);
    let (gammas, plain): (Vec<ParamId>, Vec<ParamId>) =
        params.trainable().into_iter().partition(|&id| params.get(id).name.ends_with(GAMMA));
    let reached: Vec<ParamId> = plain.iter().copied().filter(|&id| gradient(id).is_some()).collect();
    let weights = plain.iter().map(|&id| &params.get(id).tensor);
    let reduced: Vec<&Tensor> = weights.chain(reached.iter().filter_map(|&id| gradient(id))).collect();
    let pairs = rms_and_abs_max(&reduced)?;

    let mut wanted = vec![&pairs];
    wanted.extend(residuals);
    wanted.extend(gammas.iter().map(|&id| &params.get(id).tensor));
    wanted.extend(gammas.iter().filter_map(|&id| gradient(id)));
    let mut values = read_many(&wanted)?.into_iter();
    let mut next = || values.next().unwrap_or_default();
    // ‖x‖ = rms·√n
    let pairs = next();
    let norm = |pair: &[f32], id: ParamId| (f64::from(pair[0]) * (params.get(id).tensor.len() as f64).sqrt()) as f32;
    let norms = |pairs: &[f32], ids: &[ParamId]| -> BTreeMap<String, f32> {
        pairs.chunks(2).zip(ids).map(|(pair, &id)| (params.get(id).name.clone(), norm(pair, id))).collect()
    };
    let (of_weights, of_gradients) = pairs.split_at(2 * plain.len());
    let mut layers =
        Layers { weight_norm: norms(of_weights, &plain), gradient_norm: norms(of_gradients, &reached), ..Layers::default() };
    let unscale = |gradient: &mut f32| *gradient /= loss_scale;
    layers.gradient_norm.values_mut().for_each(unscale);
    let residuals: Vec<Vec<f32>> = residuals.iter().map(|_| next()).collect();
    (layers.residual_rms, layers.residual_max) = over_micro_batches(&residuals, blocks);
    let stem = |id: ParamId| params.get(id).name.trim_end_matches(GAMMA).to_owned();
    layers.gamma = gammas.iter().map(|&id| (stem(id), next())).collect();
    layers.gamma_gradient = gammas.iter().filter(|&&id| gradient(id).is_some()).map(|&id| (stem(id), next())).collect();
    layers.gamma_gradient.values_mut().flatten().for_each(unscale);
    Ok(layers)
}

/// Pairs per micro-batch and block → per block, over equally large micro-batches.
fn over_micro_batches(pairs: &[Vec<f32>], blocks: usize) -> (Vec<f32>, Vec<f32>) {
    let of_block = |block: usize| pairs.iter().skip(block).step_by(blocks);
    let rms = |block: usize| {
        let squares: f64 = of_block(block).map(|pair| f64::from(pair[0]).powi(2)).sum();
        (squares / of_block(block).count() as f64).sqrt() as f32
    };
    let most = |block: usize| of_block(block).map(|pair| pair[1]).fold(0.0, f32::max);
    ((0..blocks).map(rms).collect(), (0..blocks).map(most).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn micro_batches_join_per_block() {
        let pairs = [vec![3.0, 5.0], vec![1.0, 2.0], vec![4.0, 4.5], vec![1.0, 7.0]];
        let (rms, most) = over_micro_batches(&pairs, 2);
        assert_eq!((rms, most), (vec![12.5f32.sqrt(), 1.0], vec![5.0, 7.0]));
    }
}
