//! The learning-rate factor.

use polytape::optim::{LrDecay, Schedule, ScheduleKind};

use crate::golden::{self, ScheduleFields};

fn schedule(fields: &ScheduleFields) -> Schedule {
    let kind = match fields.kind.as_str() {
        "cosine" => ScheduleKind::Cosine { end_ratio: fields.end_ratio.expect("end_ratio") },
        "linear" => ScheduleKind::Linear,
        "wsd" => ScheduleKind::WarmupStableDecay {
            decay_steps: fields.decay_steps.expect("decay_steps") as u64,
            decay: match fields.decay.as_deref() {
                Some("linear") => LrDecay::Linear,
                Some("sqrt") => LrDecay::Sqrt,
                Some("cosine") => LrDecay::Cosine,
                other => panic!("unknown decay {other:?}"),
            },
        },
        other => panic!("unknown schedule {other}"),
    };
    Schedule { total: fields.total as u64, warmup: fields.warmup as u64, kind }
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
    let wsd = |decay_steps, decay| ScheduleKind::WarmupStableDecay { decay_steps, decay };
    let kinds = [
        ScheduleKind::Constant,
        ScheduleKind::Linear,
        ScheduleKind::Cosine { end_ratio: 0.1 },
        wsd(0, LrDecay::Linear),
        wsd(5, LrDecay::Sqrt),
        wsd(1000, LrDecay::Cosine),
    ];
    for kind in kinds {
        for (total, warmup) in [(0, 0), (1, 0), (1, 1), (10, 0), (10, 3), (10, 10), (10, 20)] {
            let schedule = Schedule { total, warmup, kind };
            for step in 0..total.max(warmup) + 5 {
                let factor = schedule.factor(step);
                assert!((0.0..=1.0).contains(&factor), "{schedule:?} at {step}: {factor}");
            }
        }
    }
}

#[test]
fn a_constant_rate_follows_its_warm_up() {
    let schedule = Schedule { total: 10, warmup: 3, kind: ScheduleKind::Constant };
    let factors: Vec<f64> = (0..5).map(|step| schedule.factor(step)).collect();
    assert_eq!(factors, [0.25, 0.5, 0.75, 1.0, 1.0]);
}
