//! The factor on the learning rate, by step counted from 0.

use std::f64::consts::PI;

#[derive(Clone, Copy, Debug)]
pub enum WeightDecayScope {
    Linear,
    Sqrt,
    Cosine,
}

#[derive(Clone, Copy, Debug)]
pub enum Shape {
    Cosine {
        end_ratio: f64,
    },
    Linear,
    /// Constant until `decay_steps` before the end.
    WarmupStableDecay {
        decay_steps: usize,
        decay: WeightDecayScope,
    },
}

#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    pub total: usize,
    pub warmup: usize,
    pub shape: Shape,
}

impl Schedule {
    pub fn factor(&self, step: usize) -> f64 {
        let Self { total, warmup, shape } = *self;
        if step < warmup {
            return (step + 1) as f64 / (warmup + 1) as f64;
        }
        let t = (step - warmup) as f64 / (total - warmup) as f64;
        match shape {
            Shape::Cosine { end_ratio } => end_ratio + (1.0 - end_ratio) * 0.5 * (1.0 + (PI * t).cos()),
            Shape::Linear => 1.0 - t,
            Shape::WarmupStableDecay { decay_steps, decay } => {
                let p = (step + decay_steps).saturating_sub(total) as f64 / decay_steps as f64;
                match decay {
                    WeightDecayScope::Linear => 1.0 - p,
                    WeightDecayScope::Sqrt => 1.0 - p.sqrt(),
                    WeightDecayScope::Cosine => 0.5 * (1.0 + (PI * p).cos()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::golden;

    #[test]
    fn golden_factors_are_reproduced() {
        for case in golden::schedules() {
            let schedule = case.schedule.to_schedule();
            assert_eq!(case.factor.len(), schedule.total);
            for (step, want) in case.factor.iter().enumerate() {
                let got = schedule.factor(step);
                assert!((got - want).abs() < 1e-14, "{schedule:?} at {step}: {got} for {want}");
            }
        }
    }
}
