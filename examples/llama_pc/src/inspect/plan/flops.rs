//! FLOPs of the matrix products of a step; a multiply-add counts as two. Elementwise work is left out: it is bound by memory
//! bandwidth.

use polytape::{Role, Stacks};
use serde::Serialize;

use super::model::{Model, PcLayer};
use crate::config::Config;
use crate::model::flops::{attention_per_token, blocks_per_token, per_token};
use crate::terminal::failure::Failure;

/// FLOPs of an optimizer step, by purpose.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct StepFlops {
    /// Forward and backward of the model over all tokens.
    pub model: f64,
    /// The second forward of checkpointed blocks.
    pub recomputation: f64,
    /// Effective weights, their backward, and the power iteration.
    pub pc: f64,
    /// Muon's orthogonalisation.
    pub optimizer: f64,
}

impl StepFlops {
    /// Of one step of a configuration whose vocabulary is resolved.
    pub fn of(config: &Config) -> Result<Self, Failure> {
        Ok(Self::new(&Model::new(config, Stacks::default())?))
    }

    /// Of one step.
    pub fn new(model: &Model) -> Self {
        let tokens = (model.tokens() * model.micro_batches) as f64;
        let blocks = blocks_per_token(&model.sizes) + attention_per_token(&model.sizes, model.seq_len);
        Self {
            model: tokens * per_token(&model.sizes, model.seq_len),
            recomputation: if model.checkpoint_activations { tokens * blocks } else { 0.0 },
            // Not sum(), which is -0 for no layers.
            pc: model.pc.iter().fold(0.0, |sum, layer| sum + pc_layer(layer, model.degree, model.power_iterations)),
            optimizer: model.newton_schulz_steps.map_or(0.0, |steps| steps as f64 * newton_schulz_step(model)),
        }
    }

    /// The sum.
    pub fn total(&self) -> f64 {
        self.model + self.recomputation + self.pc + self.optimizer
    }
}

/// One PC layer in one step. With n the smaller and m the larger side: G, and each symmetric product, counts half.
///
/// Forward: n²m for G, n³ for each product of P, 2n²m for W_eff. Backward: G and P again, 2n²m each for R = WᵀE, E·P and
/// W·(D + Dᵀ), 2n³ for each product of D.
fn pc_layer(layer: &PcLayer, degree: usize, power_iterations: usize) -> f64 {
    let (n, m) = (layer.small() as f64, layer.rows.max(layer.columns) as f64);
    let (cube, slab) = (n * n * n, n * n * m);
    let [forward, backward] = products(degree).map(|count| count as f64);
    // Of degree 0, W_eff and its gradient are multiples of W and of E.
    let slab = if degree == 0 { 0.0 } else { slab };
    let evaluation = slab + forward * cube;
    let applied = 2.0 * slab;
    let iteration = 4.0 * power_iterations as f64 * n * m;
    layer.heads as f64 * (2.0 * evaluation + 4.0 * applied + 2.0 * backward * cube + iteration)
}

/// Matrix products of the polynomial and of its derivative; see `polytape::spectral`: a square of a square from degree 4 on,
/// a quadratic below, and one and two more for each of Horner's steps.
fn products(degree: usize) -> [usize; 2] {
    match degree {
        0 | 1 => [0, 0],
        2 | 3 => [degree - 1, 2 * degree - 3],
        _ => [degree - 2, 2 * degree - 6],
    }
}

/// One Newton–Schulz step of all matrices: A = XXᵀ (n²m), b·A + c·A² (n³), and the product with X (2n²m).
fn newton_schulz_step(model: &Model) -> f64 {
    let matrices = model.parameters.iter().filter(|parameter| parameter.role == Role::Matrix);
    let step = |shape: &[usize]| {
        let n = shape[0].min(shape[1]) as f64;
        n * n * n + 3.0 * n * shape.iter().product::<usize>() as f64
    };
    matrices.map(|parameter| step(&parameter.shape)).sum()
}
