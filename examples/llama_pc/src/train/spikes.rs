//! The spike guard: `[train] skip_spikes = k` skips a step whose gradient norm is more than k standard deviations above the
//! running mean.

use crate::run::checkpoint::Spikes;

/// Time constant of the mean and the variance, in steps.
const MEMORY: u64 = 100;
/// Norms to see before the first one is judged.
const FIRST: u64 = 20;

impl Spikes {
    /// Whether to skip a step of this gradient norm; updates the statistics. A spike enters them clipped to the limit, so that a
    /// lasting rise is accepted after a while.
    pub fn judge(&mut self, norm: f32, deviations: f64) -> bool {
        let limit = f64::from(self.mean) + deviations * f64::from(self.variance).sqrt();
        let is_spike = self.seen >= FIRST && f64::from(norm) > limit;
        let counted = if is_spike { limit } else { f64::from(norm) };
        self.seen += 1;
        self.skipped += u64::from(is_spike);
        let share = 1.0 / self.seen.min(MEMORY) as f64;
        let distance = counted - f64::from(self.mean);
        self.variance = ((1.0 - share) * (f64::from(self.variance) + share * distance * distance)) as f32;
        self.mean = (f64::from(self.mean) + share * distance) as f32;
        is_spike
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Norms around 1 that never repeat.
    fn quiet(step: u64) -> f32 {
        1.0 + 0.1 * (step as f32 * 12.9898).sin()
    }

    #[test]
    fn only_a_norm_far_above_the_others_is_a_spike() {
        let mut spikes = Spikes::default();
        assert!((0..200).all(|step| !spikes.judge(quiet(step), 4.0)));
        assert!(spikes.judge(3.0, 4.0) && !spikes.judge(0.01, 4.0), "small norms do no harm");
        assert_eq!((spikes.seen, spikes.skipped), (202, 1));
    }

    #[test]
    fn the_first_norms_are_not_judged() {
        let mut spikes = Spikes::default();
        assert!((0..FIRST).all(|step| !spikes.judge(if step == 10 { 50.0 } else { quiet(step) }, 2.0)));
    }

    #[test]
    fn norms_that_stay_high_are_accepted_in_the_end() {
        let mut spikes = Spikes::default();
        assert!((0..200).all(|step| !spikes.judge(quiet(step), 3.0)));
        let skipped = (200..400).filter(|&step| spikes.judge(3.0 * quiet(step), 3.0)).count();
        assert!((1..100).contains(&skipped), "{skipped} of 200");
    }

    #[test]
    fn the_state_survives_json_to_the_bit() {
        let mut spikes = Spikes::default();
        for step in 0..500 {
            spikes.judge(quiet(step), 4.0);
            let text = serde_json::to_string(&spikes).expect("JSON");
            assert_eq!(serde_json::from_str::<Spikes>(&text).expect("the same"), spikes);
        }
    }
}
