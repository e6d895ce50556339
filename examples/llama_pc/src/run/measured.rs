//! Optional parts of a line of metrics: condition numbers and per-layer measurements.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

/// Geometric means of modified condition numbers: of all matrices, of those with a PC layer, of the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Gmcn {
    #[serde(deserialize_with = "or_infinite")]
    pub all: f64,
    #[serde(default, deserialize_with = "some_or_infinite", skip_serializing_if = "Option::is_none")]
    pub pc: Option<f64>,
    #[serde(default, deserialize_with = "some_or_infinite", skip_serializing_if = "Option::is_none")]
    pub plain: Option<f64>,
}

/// A condition number. JSON has no infinity, which that of a matrix without full rank may be: null stands for it.
pub fn or_infinite<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::INFINITY))
}

/// [`or_infinite`], where none at all is no key.
fn some_or_infinite<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    or_infinite(deserializer).map(Some)
}

impl Gmcn {
    /// Its scalars with their TensorBoard tags.
    pub fn scalars(&self) -> Vec<(String, f32)> {
        let parts = [("all", Some(self.all)), ("pc", self.pc), ("plain", self.plain)];
        parts.into_iter().filter_map(|(part, value)| Some((format!("gmcn/{part}"), value? as f32))).collect()
    }
}

/// The key `ranks` of a line of metrics: what several ranks have exchanged since the line before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Exchanged {
    pub count: u64,
    /// Bytes that all ranks together have sent.
    pub bytes: u64,
    /// Seconds in which a rank did nothing but exchange and wait for others; the mean of the ranks.
    pub seconds: f64,
    /// The rank that waited least: the others waited for it.
    pub slowest: u64,
}

/// How far the streaming estimates uᵀWv fall short of σ₁, relative to it: over all PC layers, and the blocks of those per head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SigmaError {
    pub mean: f64,
    pub largest: f64,
}

impl SigmaError {
    /// Its scalars with their TensorBoard tags.
    pub fn scalars(&self) -> Vec<(String, f32)> {
        [("mean", self.mean), ("largest", self.largest)]
            .map(|(part, value)| (format!("sigma_error/{part}"), value as f32))
            .to_vec()
    }
}

/// The key `layers` of a line of metrics. Parameters are keyed by their names in the checkpoint, γ by the name of its matrix; the
/// lists go over the blocks in order. Weights and γ are those that the step's gradient was taken at.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Layers {
    /// L2 norm of each parameter's gradient, before clipping; absent where there is none.
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
    /// Its scalars with their TensorBoard tags; per-head γ are averaged.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_infinite_condition_number_is_null() {
        for gmcn in [
            Gmcn { all: f64::INFINITY, pc: Some(f64::INFINITY), plain: None },
            Gmcn { all: f64::INFINITY, pc: None, plain: Some(2.0) },
            Gmcn { all: 3.0, pc: Some(2.0), plain: Some(f64::INFINITY) },
        ] {
            let json = serde_json::to_string(&gmcn).expect("JSON");
            assert!(json.contains("null"), "{json}");
            assert_eq!(serde_json::from_str::<Gmcn>(&json).expect("it is read again"), gmcn, "{json}");
        }
        assert!(serde_json::from_str::<Gmcn>("{\"pc\":2.0}").is_err(), "a line without them all");
    }
}
