//! Learning-rate schedules.

use std::f64::consts::PI;

/// Decay shape of a warmup-stable-decay schedule, as a function of the progress p of the decay, 0 to 1.
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

/// Schedule after warmup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum ScheduleKind {
    /// Cosine decay from 1 to `end_ratio`.
    #[default]
    Cosine,
    /// Linear decay from 1 to 0.
    Linear,
    /// Warmup, stable, decay: 1 until the last `decay_steps` steps, then decay to 0.
    Wsd,
    /// 1 throughout.
    Constant,
}

/// A learning-rate schedule: linear warmup, then `kind`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Schedule {
    /// Schedule after warmup.
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
    /// Learning-rate factor at step `step`, counted from 0.
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
