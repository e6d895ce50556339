//! The learning-rate factor over the steps of a run.

use std::f64::consts::PI;

/// How the last part of a warm-up, stable, decay schedule falls; p is the fraction of the decay that is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum ScheduleKind {
    /// Half a cosine from 1 to `end_ratio`.
    #[default]
    Cosine,
    /// A line from 1 to 0.
    Linear,
    /// Warm-up, stable, decay: 1 until the last `decay_steps` steps, then down to 0.
    Wsd,
    /// 1 throughout.
    Constant,
}

/// A learning-rate schedule.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Schedule {
    /// What follows the warm-up.
    pub kind: ScheduleKind,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Steps of the linear warm-up: (s+1)/(warmup_steps+1).
    pub warmup_steps: u64,
    /// The factor at the end of a cosine.
    pub end_ratio: f64,
    /// Steps of the decay of [`ScheduleKind::Wsd`].
    pub decay_steps: u64,
    /// Shape of that decay.
    pub decay: LrDecay,
}

impl Schedule {
    /// The factor on the learning rate at step `step`, counted from 0.
    pub fn factor(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return (step + 1) as f64 / (self.warmup_steps + 1) as f64;
        }
        let t = (step - self.warmup_steps) as f64 / (self.total_steps.saturating_sub(self.warmup_steps)).max(1) as f64;
        let t = t.min(1.0);
        match self.kind {
            ScheduleKind::Cosine => self.end_ratio + (1.0 - self.end_ratio) * 0.5 * (1.0 + (PI * t).cos()),
            ScheduleKind::Linear => 1.0 - t,
            ScheduleKind::Constant => 1.0,
            ScheduleKind::Wsd => {
                let start = self.total_steps.saturating_sub(self.decay_steps);
                if step < start {
                    return 1.0;
                }
                let p = ((step - start) as f64 / self.decay_steps.max(1) as f64).min(1.0);
                match self.decay {
                    LrDecay::Linear => 1.0 - p,
                    LrDecay::Sqrt => 1.0 - p.sqrt(),
                    LrDecay::Cosine => 0.5 * (1.0 + (PI * p).cos()),
                }
            }
        }
    }
}
