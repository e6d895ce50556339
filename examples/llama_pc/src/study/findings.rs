//! What a finished study says: every number of its page, from the records alone.

use std::collections::BTreeMap;

use super::arms::{Arm, FEWER_ITERATIONS, ITERATIONS, Optimizer, Spec};
use super::grid::{Best, Lr};
use super::queue::{self, Choices, STRESS};
use super::record::{Kept, Record};
use super::statistics::{Paired, Summary, first_at, mean, paired, peak, spikes, summary};
use super::timing::StepTime;
use crate::terminal::failure::Failure;

/// The findings, with the records that they are from.
pub struct Findings<'a> {
    pub kept: &'a Kept,
    pub choices: Choices,
    /// By size, optimizer and arm, in the order of the arms.
    pub arms: Vec<ArmResult<'a>>,
}

/// An arm at its best learning rate.
pub struct ArmResult<'a> {
    pub size: usize,
    pub arm: Arm,
    pub best: Best,
    /// By seed.
    pub records: Vec<&'a Record>,
    /// Absent where a run diverged.
    pub loss: Option<Summary>,
    /// The paired difference from the baseline; absent where a run diverged.
    pub difference: Option<Paired>,
    /// Tokens to the final loss of the plain run of the same seed, as a share of that run's, mean over the seeds; absent unless every seed gets
    /// there.
    pub tokens: Option<f64>,
    /// The time of a step over that of a plain one.
    pub step: f64,
}

impl ArmResult<'_> {
    /// Seconds to the plain run's final loss, as a share of that run's.
    pub fn seconds(&self) -> Option<f64> {
        self.tokens.map(|tokens| tokens * self.step)
    }

    /// The paired difference of the losses from those of another arm; absent where a run diverged.
    pub fn difference_from(&self, other: &Self) -> Option<Paired> {
        paired(&final_losses(&self.records), &final_losses(&other.records))
    }

    /// The mean of a measurement at the end of the runs.
    pub fn at_end(&self, value: impl Fn(&Record) -> Option<f64>) -> Option<f64> {
        let values = self.records.iter().map(|record| value(record)).collect::<Option<Vec<f64>>>()?;
        Some(mean(&values))
    }
}

impl<'a> Findings<'a> {
    /// Of a finished study; a run that is missing is named.
    pub fn new(kept: &'a Kept) -> Result<Self, Failure> {
        let choices = queue::finished(&kept.header.design, &kept.losses()).map_err(|missing| {
            Failure::other(format!("found no record of {}, expected those of a finished study", missing[0].name()))
        })?;
        let mut findings = Self { kept, choices, arms: Vec::new() };
        for size in 0..kept.header.sizes.len() {
            for optimizer in Optimizer::ALL {
                let tried = Arm::all(optimizer).into_iter().filter(|arm| findings.choices.best.contains_key(&(size, *arm)));
                let results = tried.map(|arm| findings.arm(size, arm)).collect::<Result<Vec<_>, _>>()?;
                findings.arms.extend(results);
            }
        }
        Ok(findings)
    }

    fn arm(&self, size: usize, arm: Arm) -> Result<ArmResult<'a>, Failure> {
        let records = self.best(size, arm);
        let losses = final_losses(&records);
        let others = arm.baseline().map(|baseline| final_losses(&self.best(size, baseline)));
        let time = |arm| {
            let missing = || Failure::other("found no step time of an arm, expected those of a finished study");
            StepTime::of(&self.kept.header.times, size, arm).ok_or_else(missing)
        };
        Ok(ArmResult {
            size,
            arm,
            best: self.choices.best[&(size, arm)],
            loss: summary(&losses),
            difference: others.and_then(|others| paired(&losses, &others)),
            tokens: self.tokens_to_plain(size, arm, &records),
            step: time(arm)? / time(Arm::plain(arm.optimizer))?,
            records,
        })
    }

    fn tokens_to_plain(&self, size: usize, arm: Arm, records: &[&Record]) -> Option<f64> {
        let (per_step, all) = (self.kept.header.tokens_per_step, self.kept.header.tokens() as f64);
        let plain = self.best(size, Arm::plain(arm.optimizer));
        let share = |(own, plain): (&&Record, &&Record)| {
            let target = Some(plain.final_loss()).filter(|loss| loss.is_finite())?;
            Some(first_at(&own.curve(per_step), target)? / all)
        };
        let shares = records.iter().zip(&plain).map(share).collect::<Option<Vec<f64>>>()?;
        Some(mean(&shares))
    }

    /// The runs of an arm at its best learning rate, by seed.
    fn best(&self, size: usize, arm: Arm) -> Vec<&'a Record> {
        self.seeds(Spec::new(size, arm, self.choices.best[&(size, arm)].lr, 1))
    }

    fn seeds(&self, spec: Spec) -> Vec<&'a Record> {
        let seeds = 1..=self.kept.header.design.seeds;
        seeds.map(|seed| &self.kept.records[&Spec { seed, ..spec }]).collect()
    }

    /// The result of an arm.
    pub fn result(&self, size: usize, arm: Arm) -> Option<&ArmResult<'a>> {
        self.arms.iter().find(|result| (result.size, result.arm) == (size, arm))
    }

    /// The arms that the answer is about: plain, its control, and the best level.
    pub fn compared(&self, size: usize, optimizer: Optimizer) -> Vec<&ArmResult<'a>> {
        let arms = queue::arms_of_second(optimizer, self.choices.levels[&optimizer]);
        arms.into_iter().filter_map(|arm| self.result(size, arm)).collect()
    }

    /// The final losses of an arm's first seed over the learning rates that were tried, those of the stability tests included.
    pub fn grid(&self, size: usize, arm: Arm) -> BTreeMap<Lr, f64> {
        let of_arm = self.kept.records.values().filter(|record| {
            let spec = record.spec;
            spec == Spec::new(size, arm, spec.lr, 1)
        });
        of_arm.map(|record| (record.spec.lr, record.final_loss())).collect()
    }

    /// The stability of an arm at its best learning rate times a power of two, 1 included.
    pub fn stability(&self, arm: Arm) -> Vec<Stability<'a>> {
        let best = self.choices.best[&(0, arm)].lr;
        let at = |power: i32| Stability::of(power, self.seeds(Spec::new(0, arm, best.times_two_to(power), 1)));
        std::iter::once(0).chain(STRESS).map(at).collect()
    }

    /// What the number of power iterations does, from few to many; the last is the usual one, with which the others are compared.
    pub fn iterations(&self) -> Vec<Iterations<'a>> {
        let arm = queue::iterated();
        let spec = Spec::new(0, arm, self.choices.best[&(0, arm)].lr, 1);
        let usual = final_losses(&self.seeds(spec));
        let of = |iterations: usize| {
            let records = self.seeds(Spec { iterations, ..spec });
            let losses = final_losses(&records);
            let difference = paired(&losses, &usual).filter(|_| iterations != ITERATIONS);
            Iterations { iterations, loss: summary(&losses), difference, records }
        };
        FEWER_ITERATIONS.into_iter().chain([ITERATIONS]).map(of).collect()
    }
}

fn final_losses(records: &[&Record]) -> Vec<f64> {
    records.iter().map(|record| record.final_loss()).collect()
}

/// An arm's stability at a learning rate that is too high.
pub struct Stability<'a> {
    /// log₂ of the learning rate over the best one.
    pub power: i32,
    pub diverged: usize,
    /// Absent where a run diverged.
    pub loss: Option<Summary>,
    /// Mean over the runs.
    pub spikes: f64,
    /// The worst of the runs; absent where none has gradient norms.
    pub peak: Option<f64>,
    pub records: Vec<&'a Record>,
}

impl<'a> Stability<'a> {
    fn of(power: i32, records: Vec<&'a Record>) -> Self {
        Self {
            power,
            diverged: records.iter().filter(|record| record.outcome.diverged_at.is_some()).count(),
            loss: summary(&final_losses(&records)),
            spikes: mean(&records.iter().map(|record| spikes(&record.loss) as f64).collect::<Vec<_>>()),
            peak: records.iter().filter_map(|record| peak(&record.grad_norm)).reduce(f64::max),
            records,
        }
    }
}

/// A number of power iterations per step.
pub struct Iterations<'a> {
    pub iterations: usize,
    pub loss: Option<Summary>,
    /// From the usual number; absent of that itself, and where a run diverged.
    pub difference: Option<Paired>,
    pub records: Vec<&'a Record>,
}

impl Iterations<'_> {
    /// The relative error of the estimates of σ₁ over the training: the mean, and the largest of all.
    pub fn error(&self) -> Option<(f64, f64)> {
        let errors: Vec<_> = self.records.iter().flat_map(|record| record.sigma_error.iter().map(|(_, error)| error)).collect();
        let means: Vec<f64> = errors.iter().map(|error| error.mean).collect();
        let largest = errors.iter().map(|error| error.largest).reduce(f64::max)?;
        Some((mean(&means), largest))
    }
}

#[cfg(test)]
mod tests {
    use super::super::arms::Treatment;
    use super::super::record::tests::kept;
    use super::super::statistics::Verdict;
    use super::*;

    #[test]
    fn an_arm_is_held_against_its_baseline_seed_by_seed() {
        let kept = kept();
        let findings = Findings::new(&kept).expect("a finished study");
        assert_eq!(findings.arms.len(), 2 * (8 + 3));
        let level = |level| findings.result(0, Arm::new(Optimizer::AdamW, Treatment::Level(level))).expect("an arm");
        let plain = findings.result(0, Arm::plain(Optimizer::AdamW)).expect("an arm");
        assert!(plain.difference.is_none() && plain.step == 1.0 && plain.tokens == Some(1.0));
        // Level 3 is 0.3 below plain, and costs a tenth more a step.
        let best = level(3);
        let difference = best.difference.expect("finite losses");
        assert!((difference.mean + 0.3).abs() < 0.01 && difference.verdict() == Verdict::Better, "{difference:?}");
        let (tokens, seconds) = (best.tokens.expect("it gets there"), best.seconds().expect("it gets there"));
        assert!(tokens < 1.0 && (seconds / tokens - 1.1).abs() < 1e-9);
        assert!(level(4).loss.expect("finite").mean > best.loss.expect("finite").mean);
        assert_eq!(findings.compared(1, Optimizer::Muon).len(), 3);
    }

    #[test]
    fn stability_and_iterations_have_all_their_runs() {
        let kept = kept();
        let findings = Findings::new(&kept).expect("a finished study");
        let stability = findings.stability(Arm::plain(Optimizer::Muon));
        assert_eq!(
            stability.iter().map(|at| (at.power, at.records.len(), at.diverged)).collect::<Vec<_>>(),
            [(0, 3, 0), (1, 3, 0), (2, 3, 0)]
        );
        assert!((stability[0].peak.expect("norms") - 1.0).abs() < 1e-9);
        let iterations = findings.iterations();
        assert_eq!(iterations.iter().map(|at| at.iterations).collect::<Vec<_>>(), [1, 2, 5, 10]);
        let (mean, largest) = iterations[0].error().expect("errors");
        assert!((mean - 0.1).abs() < 1e-9 && (largest - 0.3).abs() < 1e-9);
        assert!(iterations[0].difference.is_some() && iterations[3].difference.is_none());
    }

    #[test]
    fn a_missing_run_is_named_and_a_diverged_one_leaves_gaps() {
        let mut broken = kept();
        let spec = *broken.records.keys().next().expect("a run");
        broken.records.remove(&spec);
        let failure = Findings::new(&broken).err().expect("a run is missing").to_string();
        assert!(failure.contains(&spec.name()), "{failure}");

        let mut kept = kept();
        let arm = Arm::plain(Optimizer::Muon);
        let last = Findings::new(&kept).expect("finished").choices.best[&(0, arm)].lr;
        let spec = Spec::new(0, arm, last.times_two_to(2), 2);
        kept.records.get_mut(&spec).expect("a run").outcome.diverged_at = Some(3);
        let findings = Findings::new(&kept).expect("a finished study");
        let at = &findings.stability(arm)[2];
        assert!(at.diverged == 1 && at.loss.is_none());

        // No run reaches the final loss of a plain run that diverged.
        let plain = Spec::new(0, arm, last, 2);
        kept.records.get_mut(&plain).expect("a run").outcome.diverged_at = Some(3);
        let findings = Findings::new(&kept).expect("a finished study");
        let level = findings.result(0, findings.choices.best_level(Optimizer::Muon)).expect("an arm");
        let other = findings.result(0, Arm::new(Optimizer::Muon, Treatment::Scaled)).expect("an arm");
        assert!(level.difference_from(other).is_some_and(|difference| difference.mean < 0.0));
        assert!(level.loss.is_some() && level.difference.is_none() && level.tokens.is_none());
    }
}
