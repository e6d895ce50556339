//! A training step as the library does it: effective weights once per step, gradients accumulated over the micro-batches and
//! sent back through the polynomial once, clipping, the update, then the refresh of u and v.

use std::collections::BTreeMap;

use super::array::Array;
use super::llama::{Batch, LlamaConfig, Weights, loss_and_gradients};
use super::optimizer::{Adam, Moments, Muon, adamw, auxiliary_adam, clip, muon};
use super::pc::{self, Pc, PowerVectors};
use super::schedule::Schedule;

#[derive(Clone, Copy, Debug)]
pub enum Rule {
    AdamW,
    /// Muon for the matrices of the blocks, auxiliary Adam for everything else.
    Muon(Muon),
}

#[derive(Clone, Debug)]
pub struct Recipe {
    pub rule: Rule,
    pub adam: Adam,
    pub lr: f64,
    pub schedule: Schedule,
    pub weight_decay: f64,
    /// The largest global norm of the gradients.
    pub clip: f64,
    pub pc: Pc,
}

pub struct Trainer {
    pub config: LlamaConfig,
    pub recipe: Recipe,
    /// The raw parameters, γ of a PC matrix under `<matrix>.gamma`.
    pub params: Weights,
    /// u and v by the name of their matrix: these matrices are preconditioned.
    pub vectors: BTreeMap<String, PowerVectors>,
    pub step: usize,
    moments: BTreeMap<String, Moments>,
    momenta: BTreeMap<String, Array>,
}

/// `grad_norm` is before clipping.
#[derive(Clone, Copy, Debug)]
pub struct StepReport {
    pub grad_norm: f64,
    pub lr: f64,
}

impl Trainer {
    /// A fresh run: u and v are refreshed once before the first step.
    pub fn new(config: LlamaConfig, recipe: Recipe, params: Weights, vectors: BTreeMap<String, PowerVectors>) -> Self {
        let (moments, momenta) = (BTreeMap::new(), BTreeMap::new());
        let mut trainer = Self { config, recipe, params, vectors, step: 0, moments, momenta };
        trainer.refresh();
        trainer
    }

    fn refresh(&mut self) {
        for (name, vectors) in &mut self.vectors {
            pc::refresh(&self.params[name], vectors, &self.recipe.pc);
        }
    }

    fn gamma(&self, matrix: &str) -> f64 {
        self.params[&format!("{matrix}.gamma")].item()
    }

    /// The weights the model computes with: W_eff in place of W, and no γ.
    pub fn effective_weights(&self) -> Weights {
        let mut weights = self.params.clone();
        for (name, vectors) in &self.vectors {
            let effective = pc::forward(&self.params[name], self.gamma(name), vectors, &self.recipe.pc);
            weights.insert(name.clone(), effective);
            weights.remove(&format!("{name}.gamma"));
        }
        weights
    }

    /// The mean loss over the micro-batches and its gradient in the raw parameters, before clipping.
    pub fn loss_and_gradients(&self, batches: &[Batch]) -> (f64, Weights) {
        let weights = self.effective_weights();
        let share = 1.0 / batches.len() as f64;
        let (mut mean_loss, mut gradients) = (0.0, Weights::new());
        for batch in batches {
            let (loss, of_batch) = loss_and_gradients(&self.config, &weights, batch);
            mean_loss += share * loss;
            for (name, gradient) in of_batch {
                let sum = gradients.entry(name).or_insert_with(|| Array::zeros(&gradient.shape));
                *sum = sum.plus(&gradient.times(share));
            }
        }
        for (name, vectors) in &self.vectors {
            let (w, gamma) = (&self.params[name], self.gamma(name));
            let [dw, dgamma] = pc::vjp(w, gamma, vectors, &self.recipe.pc, &gradients[name]);
            gradients.insert(name.clone(), dw);
            gradients.insert(format!("{name}.gamma"), dgamma);
        }
        (mean_loss, gradients)
    }

    /// Clips, updates every parameter, refreshes u and v.
    pub fn apply(&mut self, mut gradients: Weights) -> StepReport {
        let grad_norm = clip(&mut gradients, self.recipe.clip);
        let Recipe { rule, adam, weight_decay, .. } = self.recipe;
        let lr = self.recipe.lr * self.recipe.schedule.factor(self.step);
        for (name, w) in &mut self.params {
            let g = &gradients[name];
            let moments = || Moments::zeros(&g.shape);
            match rule {
                Rule::Muon(settings) if LlamaConfig::is_matrix(name) => {
                    let m = self.momenta.entry(name.clone()).or_insert_with(|| Array::zeros(&g.shape));
                    muon(w, g, m, settings, lr, weight_decay);
                }
                Rule::Muon(_) => {
                    let moments = self.moments.entry(name.clone()).or_insert_with(moments);
                    auxiliary_adam(w, g, moments, adam, lr, weight_decay);
                }
                Rule::AdamW => {
                    let moments = self.moments.entry(name.clone()).or_insert_with(moments);
                    adamw(w, g, moments, adam, lr, weight_decay);
                }
            }
        }
        self.step += 1;
        self.refresh();
        StepReport { grad_norm, lr }
    }
}

#[cfg(test)]
#[path = "training_tests.rs"]
mod tests;
