//! The optimizers by name: the one table that `optimizer.kind`, `plan` and the engine read.

use polytape::optim::{AdamConfig, AdamW, Muon, MuonConfig, NorMuon};

use super::Optimizer;

/// A value of `optimizer.kind`.
#[derive(Debug)]
pub struct OptimizerKind {
    pub name: &'static str,
    /// Name for display.
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

#[cfg(test)]
mod tests {
    use polytape::optim::{LrScale, WeightDecayScope};
    use polytape::spectral::NewtonSchulz;

    use super::*;
    use crate::config::Config;

    #[test]
    fn every_setting_reaches_the_rule() {
        let sets = [
            "betas=[0.8, 0.97]",
            "eps=1e-6",
            "weight_decay=0.3",
            "decay=matrices",
            "momentum=0.7",
            "ns_coefficients=aol",
            "ns_steps=3",
            "lr_ratio=spectral_mup",
        ];
        let settings = Config::load(None, &sets.map(|set| format!("optimizer.{set}"))).expect("good settings").optimizer;
        let adam =
            AdamConfig { betas: [0.8, 0.97], eps: 1e-6, weight_decay: 0.3, weight_decay_scope: WeightDecayScope::Matrices };
        assert_eq!(settings.adam(), adam);
        let (coefficients, lr_scale) = (NewtonSchulz::Aol, LrScale::SpectralMup);
        assert_eq!(settings.muon(), MuonConfig { momentum: 0.7, coefficients, newton_schulz_steps: Some(3), lr_scale, adam });
    }
}
