//! The arms of a study: what is compared, and the one run that a [`Spec`] names.

use serde::{Deserialize, Serialize};

use super::grid::Lr;

/// The optimizers under which everything is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Optimizer {
    AdamW,
    Muon,
}

impl Optimizer {
    pub const ALL: [Self; 2] = [Self::AdamW, Self::Muon];

    /// The value of `optimizer.kind`.
    pub fn key(self) -> &'static str {
        match self {
            Self::AdamW => "adamw",
            Self::Muon => "muon",
        }
    }

    /// Name for display.
    pub fn title(self) -> &'static str {
        match self {
            Self::AdamW => "AdamW",
            Self::Muon => "Muon",
        }
    }

    /// The level of the published runs.
    pub fn published_level(self) -> u8 {
        match self {
            Self::AdamW => 4,
            Self::Muon => 2,
        }
    }
}

/// What is done to the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Treatment {
    Plain,
    /// Plain, its initial weights scaled to the RMS of the effective weights of level [`SCALED_AS`]: without this control a gain of PC
    /// layers could be one of the initialization.
    Scaled,
    Level(u8),
    QkNorm,
    /// QK norm and PC layers.
    QkNormLevel(u8),
}

/// The levels, and the one whose initial weights the control has: it raises them most.
pub const LEVELS: [u8; 4] = [1, 2, 3, 4];
pub const SCALED_AS: u8 = 4;

/// An optimizer with a treatment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Arm {
    pub optimizer: Optimizer,
    pub treatment: Treatment,
}

impl Arm {
    pub fn new(optimizer: Optimizer, treatment: Treatment) -> Self {
        Self { optimizer, treatment }
    }

    pub fn plain(optimizer: Optimizer) -> Self {
        Self::new(optimizer, Treatment::Plain)
    }

    /// In the order of their runs: each begins its grid where an earlier one ended.
    pub fn all(optimizer: Optimizer) -> Vec<Self> {
        let levels = LEVELS.map(Treatment::Level);
        let others = [Treatment::QkNorm, Treatment::QkNormLevel(optimizer.published_level())];
        let treatments = [Treatment::Plain, Treatment::Scaled].into_iter().chain(levels).chain(others);
        treatments.map(|treatment| Self::new(optimizer, treatment)).collect()
    }

    /// The level of its PC layers.
    pub fn level(self) -> Option<u8> {
        match self.treatment {
            Treatment::Level(level) | Treatment::QkNormLevel(level) => Some(level),
            _ => None,
        }
    }

    /// Whether queries and keys are normalized.
    pub fn has_qk_norm(self) -> bool {
        matches!(self.treatment, Treatment::QkNorm | Treatment::QkNormLevel(_))
    }

    /// What it is compared with: the arm that differs in one thing.
    pub fn baseline(self) -> Option<Self> {
        match self.treatment {
            Treatment::Plain => None,
            Treatment::QkNormLevel(_) => Some(Self::new(self.optimizer, Treatment::QkNorm)),
            _ => Some(Self::plain(self.optimizer)),
        }
    }

    /// The treatment in words.
    pub fn title(self) -> String {
        match self.treatment {
            Treatment::Plain => "plain".to_owned(),
            Treatment::Scaled => "plain, scaled".to_owned(),
            Treatment::Level(level) => format!("PC level {level}"),
            Treatment::QkNorm => "QK norm".to_owned(),
            Treatment::QkNormLevel(level) => format!("QK norm, PC level {level}"),
        }
    }

    fn slug(self) -> String {
        let treatment = match self.treatment {
            Treatment::Plain => "plain".to_owned(),
            Treatment::Scaled => "scaled".to_owned(),
            Treatment::Level(level) => format!("pc{level}"),
            Treatment::QkNorm => "qknorm".to_owned(),
            Treatment::QkNormLevel(level) => format!("qknorm-pc{level}"),
        };
        format!("{}-{treatment}", self.optimizer.key())
    }
}

/// Power iterations per step, except where they are what is studied.
pub const ITERATIONS: usize = 10;
/// The other numbers that are studied.
pub const FEWER_ITERATIONS: [usize; 3] = [1, 2, 5];

/// One run: all that distinguishes it from the others of its study.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Spec {
    /// Number of the model size, from 0.
    pub size: usize,
    pub arm: Arm,
    #[serde(rename = "rate")]
    pub lr: Lr,
    pub seed: u64,
    /// Power iterations per step.
    pub iterations: usize,
}

impl Spec {
    pub fn new(size: usize, arm: Arm, lr: Lr, seed: u64) -> Self {
        Self { size, arm, lr, seed, iterations: ITERATIONS }
    }

    /// The name of its folder.
    pub fn name(&self) -> String {
        let iterations = if self.iterations == ITERATIONS { String::new() } else { format!("-iterations{}", self.iterations) };
        format!("size{}-{}{iterations}-lr{:.2e}-seed{}", self.size + 1, self.arm.slug(), self.lr.value(), self.seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_run_has_a_name_of_its_own() {
        let mut names = Vec::new();
        for optimizer in Optimizer::ALL {
            for arm in Arm::all(optimizer) {
                for (size, lr, seed) in [(0, -1, 1), (0, 0, 1), (1, 0, 1), (0, 0, 2)] {
                    names.push(Spec::new(size, arm, Lr(lr), seed).name());
                }
                names.push(Spec { iterations: 2, ..Spec::new(0, arm, Lr(0), 1) }.name());
            }
        }
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
        let example = Spec::new(0, Arm::new(Optimizer::Muon, Treatment::Level(2)), Lr(7), 3);
        assert_eq!(example.name(), "size1-muon-pc2-lr1.13e-2-seed3");
    }

    #[test]
    fn every_arm_is_compared_with_one_that_differs_in_one_thing() {
        for optimizer in Optimizer::ALL {
            for arm in Arm::all(optimizer) {
                let Some(baseline) = arm.baseline() else { continue };
                let differs = [arm.level() != baseline.level(), arm.has_qk_norm() != baseline.has_qk_norm()];
                let is_scaled = arm.treatment == Treatment::Scaled;
                assert_eq!(differs.into_iter().filter(|differs| *differs).count() + usize::from(is_scaled), 1, "{arm:?}");
            }
        }
    }
}
