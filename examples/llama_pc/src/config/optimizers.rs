//! The optimizers by name: the one table that `optimizer.kind`, `plan` and the engine read.

use polytape::optim::{AdamConfig, AdamW, Muon, MuonConfig, NorMuon};

use super::Optimizer;

/// A value of `optimizer.kind`.
#[derive(Debug)]
pub struct OptimizerKind {
    pub name: &'static str,
    /// As people write it.
    pub title: &'static str,
    /// Whether it orthogonalizes the updates of matrices.
    pub newton_schulz: bool,
    /// The optimizer before its first step.
    pub build: fn(&Optimizer) -> Box<dyn polytape::optim::Optimizer>,
}

#[rustfmt::skip]
static OPTIMIZERS: [OptimizerKind; 3] = [
    OptimizerKind { name: "adamw", title: "AdamW", newton_schulz: false, build: |settings| Box::new(AdamW::new(settings.adam())) },
    OptimizerKind { name: "muon", title: "Muon", newton_schulz: true, build: |settings| Box::new(Muon::new(settings.muon())) },
    OptimizerKind { name: "normuon", title: "NorMuon", newton_schulz: true, build: |settings| Box::new(NorMuon::new(settings.muon())) },
];

/// The names in the table.
pub const NAMES: [&str; OPTIMIZERS.len()] = {
    let mut names = [""; OPTIMIZERS.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = OPTIMIZERS[i].name;
        i += 1;
    }
    names
};

impl Optimizer {
    /// The table's entry for `kind`.
    pub fn rule(&self) -> &'static OptimizerKind {
        OPTIMIZERS.iter().find(|rule| rule.name == self.kind).expect("bug: the schema checks optimizer.kind")
    }

    fn adam(&self) -> AdamConfig {
        AdamConfig { betas: self.betas, eps: self.eps, weight_decay: self.weight_decay, weight_decay_scope: self.decay }
    }

    fn muon(&self) -> MuonConfig {
        MuonConfig {
            momentum: self.momentum,
            coefficients: self.ns_coefficients,
            newton_schulz_steps: Some(self.ns_steps),
            lr_scale: self.lr_ratio,
            adam: self.adam(),
        }
    }
}
