//! The scales of a study, with the reasons for their sizes; from a [`Spec`] to the configuration of its run.
//!
//! `small` is made for six hours on two CPU cores that train the demo's model, 1.1 million parameters, at 5,300 tokens a second. That is
//! some 10⁸ tokens at that size in all, to be shared like this:
//!
//! - The arms are given: 8 treatments by 2 optimizers. Each needs 3 learning rates or more, and further seeds at the best: 7 runs
//!   with four seeds. With the tests of stability and of the power iterations that makes some 156 runs of the first size, and 42 of
//!   the second.
//! - Four seeds rather than three: Student's t makes the interval of a paired difference 1.6 deviations wide to each side, not 2.5.
//! - Tokens at 20 per parameter make a run's cost grow with the square of the size, so the runs' number decides on the size. 0.1M
//!   parameters (dim 48, 2 blocks, the table tied, or most of the parameters would be embeddings) train at some 30,000 tokens a
//!   second: 70 seconds a run, 3 hours in all. 0.5M and 2M would need days.
//! - The second size has 4 times the parameters, at the same tokens, and only the arms that a trend is asked of: 3 minutes a run, 2 hours.
//! - A batch of 2,048 tokens makes a thousand steps of it: with more, Muon would have too few steps; with fewer, PC layers, whose cost
//!   is one per step, would look more expensive than anywhere else.
//! - Warm-up for a twentieth of the steps, cosine to a tenth, weight decay and clipping as published, the same for all.
//!
//! The plan is computed from measured step times before the first run, and refused above its limit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::Value;

use super::arms::{Arm, Optimizer, Spec, Treatment};
use super::grid::Lr;
use super::queue::Design;
use crate::config::{Config, Target};
use crate::model::engine;
use crate::terminal::failure::Failure;

/// A scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    pub name: &'static str,
    pub sizes: [Size; 2],
    /// Of the first size; all runs see as many tokens as its.
    pub tokens_per_parameter: f64,
    pub seq_len: usize,
    pub batch_size: usize,
    pub design: Design,
    /// Validations of a run.
    pub validations: u64,
    /// Sequences of a validation.
    pub val_sequences: usize,
    /// Measurements of spectra and layers of a run.
    pub measurements: u64,
    /// Rounds of the timing, and steps of each arm in a round.
    pub timing: (usize, usize),
    /// Hours that the plan may have.
    pub max_hours: f64,
}

/// A model size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    pub dim: usize,
    pub layers: usize,
    pub heads: usize,
    pub intermediate_size: usize,
}

/// Hours; what docs/study.md is made of.
pub const SMALL: Scale = Scale {
    name: "small",
    sizes: [
        Size { dim: 48, layers: 2, heads: 4, intermediate_size: 128 },
        Size { dim: 96, layers: 3, heads: 4, intermediate_size: 256 },
    ],
    tokens_per_parameter: 20.0,
    seq_len: 128,
    batch_size: 16,
    design: Design { seeds: 4, points: 9, centers: [Lr(5), Lr(7)] },
    validations: 16,
    val_sequences: 256,
    measurements: 16,
    timing: (5, 8),
    max_hours: 6.0,
};

/// Two minutes: shows that everything works, and nothing about PC layers.
pub const TINY: Scale = Scale {
    name: "tiny",
    sizes: [
        Size { dim: 16, layers: 1, heads: 2, intermediate_size: 32 },
        Size { dim: 24, layers: 2, heads: 2, intermediate_size: 64 },
    ],
    tokens_per_parameter: 0.5,
    seq_len: 32,
    batch_size: 8,
    design: Design { seeds: 2, points: 4, centers: [Lr(8), Lr(8)] },
    validations: 4,
    val_sequences: 16,
    measurements: 2,
    timing: (5, 4),
    max_hours: 1.0,
};

/// A scale on data: what every run of a study shares.
#[derive(Clone, Debug)]
pub struct Setup {
    pub scale: Scale,
    /// The folder of `train/` and `val/`.
    pub data: PathBuf,
    pub vocab: usize,
    /// The initial scales of [`Treatment::Scaled`] by size.
    pub scales: Vec<BTreeMap<Target, f64>>,
}

impl Setup {
    /// Parameters of a size.
    pub fn parameters(&self, size: usize) -> Result<usize, Failure> {
        let config = self.config(&Spec::new(size, Arm::plain(Optimizer::AdamW), Lr(0), 1), 1)?;
        Ok(engine::model(&config).parameters().iter().map(|parameter| parameter.numel()).sum())
    }

    /// Steps of every run.
    pub fn steps(&self) -> Result<u64, Failure> {
        let tokens = self.scale.tokens_per_parameter * self.parameters(0)? as f64;
        Ok((tokens / self.tokens_per_step() as f64).ceil() as u64)
    }

    pub fn tokens_per_step(&self) -> usize {
        self.scale.batch_size * self.scale.seq_len
    }

    /// A part of the data.
    pub fn part(&self, name: &str) -> PathBuf {
        self.data.join(name)
    }

    /// The configuration of a run of `steps` steps.
    pub fn config(&self, spec: &Spec, steps: u64) -> Result<Config, Failure> {
        let Scale { seq_len, batch_size, validations, val_sequences, measurements, .. } = self.scale;
        let Size { dim, layers, heads, intermediate_size } = self.scale.sizes[spec.size];
        let path = |part: &Path| Value::String(part.display().to_string());
        let every = |times: u64| steps.div_ceil(times);
        let mut sets = vec![
            format!("seed={}", spec.seed),
            format!("model.dim={dim}"),
            format!("model.layers={layers}"),
            format!("model.heads={heads}"),
            format!("model.intermediate_size={intermediate_size}"),
            format!("model.vocab={}", self.vocab),
            "model.tied=true".to_owned(),
            format!("model.qk_norm={}", spec.arm.has_qk_norm()),
            format!("optimizer.kind={}", spec.arm.optimizer.key()),
            format!("optimizer.lr={:e}", spec.lr.value()),
            format!("schedule.warmup_steps={}", steps / 20),
            format!("data.train={}", path(&self.part("train"))),
            format!("data.val={}", path(&self.part("val"))),
            format!("data.seq_len={seq_len}"),
            format!("train.steps={steps}"),
            format!("train.batch_size={batch_size}"),
            format!("train.val_every={}", every(validations)),
            format!("train.val_batches={}", val_sequences / batch_size),
            format!("train.log_spectrum_every={}", every(measurements)),
            format!("train.log_layers_every={}", every(measurements)),
            format!("train.checkpoint_every={}", every(4)),
            "train.keep_checkpoints=1".to_owned(),
        ];
        if let Some(level) = spec.arm.level() {
            sets.push(format!("pc.level={level}"));
            sets.push(format!("pc.power_iterations={}", spec.iterations));
        }
        let mut config = Config::load(None, &sets)?;
        if spec.arm.treatment == Treatment::Scaled {
            config.model.init_scale = self.scales.get(spec.size).cloned().unwrap_or_default();
        }
        Ok(config)
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn setup() -> Setup {
        let scales = vec![BTreeMap::from([(Target::O, 1.875)]), BTreeMap::from([(Target::O, 1.5)])];
        Setup { scale: SMALL, data: PathBuf::from("data/demo"), vocab: 1024, scales }
    }

    #[test]
    fn the_small_scale_has_the_tokens_that_its_documentation_says() {
        let setup = setup();
        let parameters = [0, 1].map(|size| setup.parameters(size).expect("a good configuration"));
        assert_eq!(parameters, [104_688, 430_752]);
        let steps = setup.steps().expect("a good configuration");
        assert!(steps as usize * setup.tokens_per_step() >= 20 * parameters[0]);
        assert_eq!(steps, 1023);
    }

    #[test]
    fn a_run_differs_from_plain_in_its_treatment_only() {
        let setup = setup();
        let config = |treatment, iterations| {
            let spec = Spec::new(0, Arm::new(Optimizer::Muon, treatment), Lr(7), 2);
            setup.config(&Spec { iterations, ..spec }, 100).expect("a good configuration")
        };
        let plain = config(Treatment::Plain, 10);
        assert_eq!((plain.seed, plain.optimizer.lr, plain.pc.is_none()), (2, 1.131e-2, true));
        let differing = |treatment, iterations| {
            let found = config(treatment, iterations).keys();
            let differences = crate::config::differences(&found, &plain.keys());
            differences.into_iter().map(|difference| difference.key).filter(|key| !key.starts_with("pc.")).collect::<Vec<_>>()
        };
        assert_eq!(differing(Treatment::Scaled, 10), ["model.init_scale"]);
        assert_eq!(differing(Treatment::QkNorm, 10), ["model.qk_norm"]);
        assert!(differing(Treatment::Level(3), 10).is_empty());
        let fewer = config(Treatment::Level(4), 2).pc.expect("PC layers");
        assert_eq!((fewer.level, fewer.power_iterations), (Some(4), 2));
    }
}
