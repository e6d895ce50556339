//! What `[train] log_layers_every` measures: every parameter and the residual stream, reduced on the device and read back together.

use std::collections::BTreeMap;

use polytape::spectral::PC_GAMMA;
use polytape::{Gradients, Param, ParamId, Params, Role, Tensor, read_many, rms_and_abs_max};

use crate::run::measured::Layers;

/// Measures a step before its update. `gradients` are those of the raw parameters times `loss_scale`; `residuals` holds a pair (RMS,
/// largest) per micro-batch and block.
pub fn layer_metrics(
    params: &Params,
    gradients: &Gradients,
    loss_scale: f32,
    residuals: &[Tensor],
    blocks: usize,
) -> polytape::Result<Layers> {
    type Named<'a> = Vec<(ParamId, &'a Param)>;
    let gradient = |(id, _): &(ParamId, &Param)| gradients.get(*id);
    let trainable = params.iter().filter(|(_, param)| param.role != Role::State);
    let (gammas, plain): (Named<'_>, Named<'_>) = trainable.partition(|(_, param)| matrix_of(&param.name).is_some());
    let reached: Named<'_> = plain.iter().copied().filter(|param| gradient(param).is_some()).collect();
    let weights = plain.iter().map(|(_, param)| &param.tensor);
    let reduced: Vec<&Tensor> = weights.chain(reached.iter().filter_map(gradient)).collect();
    let pairs = rms_and_abs_max(&reduced)?;

    let mut wanted = vec![&pairs];
    wanted.extend(residuals);
    wanted.extend(gammas.iter().map(|(_, param)| &param.tensor));
    wanted.extend(gammas.iter().filter_map(gradient));
    let mut values = read_many(&wanted)?.into_iter();
    let mut next = || values.next().unwrap_or_default();
    // ‖x‖ = rms·√n
    let pairs = next();
    let norm = |pair: &[f32], param: &Param| (f64::from(pair[0]) * (param.tensor.len() as f64).sqrt()) as f32;
    let norms = |pairs: &[f32], of: &Named<'_>| -> BTreeMap<String, f32> {
        pairs.chunks(2).zip(of).map(|(pair, (_, param))| (param.name.clone(), norm(pair, param))).collect()
    };
    let (of_weights, of_gradients) = pairs.split_at(2 * plain.len());
    let mut layers =
        Layers { weight_norm: norms(of_weights, &plain), gradient_norm: norms(of_gradients, &reached), ..Layers::default() };
    let unscale = |gradient: &mut f32| *gradient /= loss_scale;
    layers.gradient_norm.values_mut().for_each(unscale);
    let residuals: Vec<Vec<f32>> = residuals.iter().map(|_| next()).collect();
    (layers.residual_rms, layers.residual_max) = over_micro_batches(&residuals, blocks);
    let stem = |param: &Param| matrix_of(&param.name).unwrap_or_default().to_owned();
    layers.gamma = gammas.iter().map(|(_, param)| (stem(param), next())).collect();
    let reached = gammas.iter().filter(|param| gradient(param).is_some());
    layers.gamma_gradient = reached.map(|(_, param)| (stem(param), next())).collect();
    layers.gamma_gradient.values_mut().flatten().for_each(unscale);
    Ok(layers)
}

/// The matrix, without `.weight`, that a γ of this name scales; `None` of other names.
fn matrix_of(name: &str) -> Option<&str> {
    name.strip_suffix(PC_GAMMA)?.strip_suffix('.')
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
