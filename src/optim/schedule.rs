//! Learning-rate schedules.

use std::f64::consts::PI;

/// Decay shape of a warmup-stable-decay schedule, as a function of the progress p of the decay, 0 to 1.
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

/// Schedule after warmup.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ScheduleKind {
    /// Cosine decay from 1 to `end_ratio`.
    Cosine {
        /// Final factor.
        end_ratio: f64,
    },
    /// Linear decay from 1 to 0.
    Linear,
    /// 1 until the last `decay_steps` steps, then decay to 0.
    WarmupStableDecay {
        /// Number of decay steps.
        decay_steps: u64,
        /// Decay shape.
        decay: LrDecay,
    },
    /// 1 throughout.
    Constant,
}

/// A learning-rate schedule: linear warmup, then `kind`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Total steps of the run.
    pub total: u64,
    /// Warmup steps, with factor (step + 1)/(warmup + 1).
    pub warmup: u64,
    /// Schedule after warmup.
    pub kind: ScheduleKind,
}

impl Schedule {
    /// Learning-rate factor at step `step`, counted from 0.
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
