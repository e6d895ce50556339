//! The note about a schedule that the run does not see to its end.

use polytape::optim::{Schedule, ScheduleKind};

/// What the user should know before a run with this schedule begins.
pub fn note(schedule: &Schedule) -> Option<String> {
    let &Schedule { kind, total_steps, warmup_steps, decay_steps, .. } = schedule;
    if kind == ScheduleKind::Wsd && decay_steps > 0 && warmup_steps.saturating_add(decay_steps) > total_steps {
        return Some(format!(
            "note: schedule.warmup_steps = {warmup_steps} and schedule.decay_steps = {decay_steps} add up to more than \
             train.steps = {total_steps}: the learning rate jumps from the warm-up into the decay"
        ));
    }
    (warmup_steps > total_steps).then(|| {
        format!(
            "note: schedule.warmup_steps = {warmup_steps} is longer than train.steps = {total_steps}: the warm-up ends with the \
             run, at {:.1} % of optimizer.lr",
            100.0 * schedule.factor(total_steps - 1)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_schedule_that_does_not_fit_is_mentioned() {
        let note = |kind, total_steps, warmup_steps, decay_steps| {
            note(&Schedule { kind, total_steps, warmup_steps, decay_steps, ..Schedule::default() })
        };
        for (warmup, decay) in [(0, 0), (1, 3), (3, 1), (4, 0)] {
            assert_eq!(note(ScheduleKind::Wsd, 4, warmup, decay), None);
        }
        assert_eq!(note(ScheduleKind::Cosine, 4, 4, 9), None);
        let long = note(ScheduleKind::Cosine, 3, 50, 0).expect("a note");
        assert!(long.ends_with("the warm-up ends with the run, at 5.9 % of optimizer.lr"), "{long}");
        let both = note(ScheduleKind::Wsd, 4, 3, 3).expect("a note");
        assert!(both.contains("warmup_steps = 3") && both.contains("decay_steps = 3"), "{both}");
    }
}
