//! The learning-rate factor over the steps of a run.

use std::f64::consts::PI;

/// How the last part of a warm-up, stable, decay schedule falls; p is the fraction of the decay that is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LrDecay {
    /// 1 - p
    #[default]
    Linear,
    /// 1 - √p
    Sqrt,
    /// ½(1 + cos πp)
    Cosine,
}

/// What follows the warm-up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ScheduleKind {
    /// Half a cosine from 1 to `end_ratio`.
    Cosine {
        /// The factor at the end.
        end_ratio: f64,
    },
    /// A line from 1 to 0.
    Linear,
    /// 1 until the last `decay_steps` steps, then down to 0.
    WarmupStableDecay {
        /// Steps of the decay.
        decay_steps: u64,
        /// Its shape.
        decay: LrDecay,
    },
    /// 1 throughout.
    Constant,
}

/// A learning-rate schedule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Steps of the whole run.
    pub total: u64,
    /// Steps over which the factor rises: (s+1)/(warmup+1).
    pub warmup: u64,
    /// What follows.
    pub kind: ScheduleKind,
}

impl Schedule {
    /// The factor on the learning rate at step `step`, counted from 0.
    pub fn factor(&self, step: u64) -> f64 {
        if step < self.warmup {
            return (step + 1) as f64 / (self.warmup + 1) as f64;
        }
        let t = (step - self.warmup) as f64 / (self.total.saturating_sub(self.warmup)).max(1) as f64;
        let t = t.min(1.0);
        match self.kind {
            ScheduleKind::Cosine { end_ratio } => end_ratio + (1.0 - end_ratio) * 0.5 * (1.0 + (PI * t).cos()),
            ScheduleKind::Linear => 1.0 - t,
            ScheduleKind::Constant => 1.0,
            ScheduleKind::WarmupStableDecay { decay_steps, decay } => {
                let start = self.total.saturating_sub(decay_steps);
                if step < start {
                    return 1.0;
                }
                let p = ((step - start) as f64 / decay_steps.max(1) as f64).min(1.0);
                match decay {
                    LrDecay::Linear => 1.0 - p,
                    LrDecay::Sqrt => 1.0 - p.sqrt(),
                    LrDecay::Cosine => 0.5 * (1.0 + (PI * p).cos()),
                }
            }
        }
    }
}
