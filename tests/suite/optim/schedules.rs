//! The learning-rate factor.

use polytape::optim::{LrDecay, Schedule, ScheduleKind};

use crate::golden::{self, ScheduleFields};

fn schedule(fields: &ScheduleFields) -> Schedule {
    let kind = match fields.kind.as_str() {
        "cosine" => ScheduleKind::Cosine,
        "linear" => ScheduleKind::Linear,
        "wsd" => ScheduleKind::Wsd,
        other => panic!("unknown schedule {other}"),
    };
    let decay = match fields.decay.as_deref() {
        Some("linear") | None => LrDecay::Linear,
        Some("sqrt") => LrDecay::Sqrt,
        Some("cosine") => LrDecay::Cosine,
        other => panic!("unknown decay {other:?}"),
    };
    Schedule {
        kind,
        total_steps: fields.total as u64,
        warmup_steps: fields.warmup as u64,
        end_ratio: fields.end_ratio.unwrap_or_default(),
        decay_steps: fields.decay_steps.unwrap_or_default() as u64,
        decay,
    }
}

#[test]
fn golden_factors_are_reproduced() {
    for case in golden::schedules() {
        let schedule = schedule(&case.schedule);
        for (step, want) in (0..).zip(&case.factor) {
            let got = schedule.factor(step);
            assert!((got - want).abs() < 1e-14, "{schedule:?} at {step}: {got}, want {want}");
        }
    }
}

#[test]
fn a_factor_stays_between_0_and_1_before_during_and_after_any_run() {
    let of = |kind| Schedule { kind, end_ratio: 0.1, ..Schedule::default() };
    let wsd = |decay_steps, decay| Schedule { decay_steps, decay, ..of(ScheduleKind::Wsd) };
    let schedules = [
        of(ScheduleKind::Constant),
        of(ScheduleKind::Linear),
        of(ScheduleKind::Cosine),
        wsd(0, LrDecay::Linear),
        wsd(5, LrDecay::Sqrt),
        wsd(1000, LrDecay::Cosine),
    ];
    for schedule in schedules {
        for (total, warmup) in [(0, 0), (1, 0), (1, 1), (10, 0), (10, 3), (10, 10), (10, 20)] {
            let schedule = Schedule { total_steps: total, warmup_steps: warmup, ..schedule };
            for step in 0..total.max(warmup) + 5 {
                let factor = schedule.factor(step);
                assert!((0.0..=1.0).contains(&factor), "{schedule:?} at {step}: {factor}");
            }
        }
    }
}

#[test]
fn a_constant_rate_follows_its_warm_up() {
    let schedule = Schedule { kind: ScheduleKind::Constant, total_steps: 10, warmup_steps: 3, ..Schedule::default() };
    let factors: Vec<f64> = (0..5).map(|step| schedule.factor(step)).collect();
    assert_eq!(factors, [0.25, 0.5, 0.75, 1.0, 1.0]);
}
