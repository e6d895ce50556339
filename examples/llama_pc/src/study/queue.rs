//! Which run comes next: a function of the results so far, so that a study resumes wherever it was stopped.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::arms::{Arm, FEWER_ITERATIONS, LEVELS, Optimizer, Spec, Treatment};
use super::grid::{self, Best, Lr, Next};

/// What decides on the runs of a study.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Design {
    /// Seeds of every arm at its best learning rate: 1 to this.
    pub seeds: u64,
    /// Maximum number of learning rates tried per arm.
    pub points: usize,
    /// Where the grids of plain AdamW and of plain Muon begin.
    pub centers: [Lr; 2],
}

/// Multiples of the best learning rate at which stability is tested, as powers of two.
pub const STRESS: [i32; 2] = [1, 2];

/// The final validation loss of every finished run, infinite where it diverged.
pub type Losses = BTreeMap<Spec, f64>;

/// What a finished study chose.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choices {
    /// The best learning rate of each arm by size.
    pub best: BTreeMap<(usize, Arm), Best>,
    /// The best level of each optimizer at the first size.
    pub levels: BTreeMap<Optimizer, u8>,
}

impl Choices {
    /// The arm with the best level.
    pub fn best_level(&self, optimizer: Optimizer) -> Arm {
        Arm::new(optimizer, Treatment::Level(self.levels[&optimizer]))
    }
}

/// The choices, or the runs that are still missing for them and need no result of another: they may be trained at the same time.
pub fn finished(design: &Design, losses: &Losses) -> Result<Choices, Vec<Spec>> {
    let queue = Queue { design, losses };
    let (mut choices, mut missing) = (Choices::default(), Vec::new());
    for optimizer in Optimizer::ALL {
        missing.extend(queue.of_optimizer(optimizer, &mut choices).err().unwrap_or_default());
    }
    if missing.is_empty() { Ok(choices) } else { Err(missing) }
}

/// The arms of the second size: the level is the one that was best at the first, so that there it is no choice among four.
pub fn arms_of_second(optimizer: Optimizer, level: u8) -> [Arm; 3] {
    [Treatment::Plain, Treatment::Scaled, Treatment::Level(level)].map(|treatment| Arm::new(optimizer, treatment))
}

/// The arms whose stability is tested.
pub fn stressed(optimizer: Optimizer, level: u8) -> [Arm; 2] {
    [Treatment::Plain, Treatment::Level(level)].map(|treatment| Arm::new(optimizer, treatment))
}

/// The arm whose power iterations are varied: Muon's updates turn the singular vectors most, and level 4 suffers most from a low
/// estimate.
pub fn iterated() -> Arm {
    Arm::new(Optimizer::Muon, Treatment::Level(4))
}

struct Queue<'a> {
    design: &'a Design,
    losses: &'a Losses,
}

impl Queue<'_> {
    fn of_optimizer(&self, optimizer: Optimizer, choices: &mut Choices) -> Result<(), Vec<Spec>> {
        self.first_size(optimizer, choices)?;
        self.second_size(optimizer, choices)?;
        self.losses(self.stability(optimizer, choices))?;
        if optimizer == iterated().optimizer {
            self.losses(self.iterations(choices))?;
        }
        Ok(())
    }

    fn losses(&self, specs: impl IntoIterator<Item = Spec>) -> Result<Vec<f64>, Vec<Spec>> {
        let (mut found, mut missing) = (Vec::new(), Vec::new());
        for spec in specs {
            match self.losses.get(&spec) {
                Some(loss) => found.push(*loss),
                None => missing.push(spec),
            }
        }
        if missing.is_empty() { Ok(found) } else { Err(missing) }
    }

    /// The grid of an arm, and the other seeds of its best learning rate.
    fn tune(&self, size: usize, arm: Arm, center: Lr) -> Result<Best, Vec<Spec>> {
        let mut tried = BTreeMap::new();
        let best = loop {
            match grid::next(&tried, center, self.design.points) {
                Next::Try(lrs) => {
                    let losses = self.losses(lrs.iter().map(|lr| Spec::new(size, arm, *lr, 1)))?;
                    tried.extend(lrs.into_iter().zip(losses));
                }
                Next::Best(best) => break best,
            }
        };
        self.losses(self.all_seeds(Spec::new(size, arm, best.lr, 1)))?;
        Ok(best)
    }

    fn all_seeds(&self, spec: Spec) -> impl Iterator<Item = Spec> {
        (1..=self.design.seeds).map(move |seed| Spec { seed, ..spec })
    }

    /// All arms. Each grid begins at the best learning rate of the nearest arm before.
    fn first_size(&self, optimizer: Optimizer, choices: &mut Choices) -> Result<(), Vec<Spec>> {
        let mut center = self.design.centers[optimizer as usize];
        for arm in Arm::all(optimizer) {
            let nearest = match arm.treatment {
                Treatment::Level(level) if level > 1 => Some(Treatment::Level(level - 1)),
                Treatment::QkNormLevel(level) => Some(Treatment::Level(level)),
                Treatment::Plain => None,
                _ => Some(Treatment::Plain),
            };
            if let Some(treatment) = nearest {
                center = choices.best[&(0, Arm::new(optimizer, treatment))].lr;
            }
            choices.best.insert((0, arm), self.tune(0, arm, center)?);
        }
        let mut best = (f64::INFINITY, LEVELS[0]);
        for level in LEVELS {
            let arm = Arm::new(optimizer, Treatment::Level(level));
            let losses = self.losses(self.all_seeds(Spec::new(0, arm, choices.best[&(0, arm)].lr, 1)))?;
            let mean = losses.iter().sum::<f64>() / losses.len() as f64;
            if mean < best.0 {
                best = (mean, level);
            }
        }
        choices.levels.insert(optimizer, best.1);
        Ok(())
    }

    fn second_size(&self, optimizer: Optimizer, choices: &mut Choices) -> Result<(), Vec<Spec>> {
        for arm in arms_of_second(optimizer, choices.levels[&optimizer]) {
            let best = self.tune(1, arm, choices.best[&(0, arm)].lr)?;
            choices.best.insert((1, arm), best);
        }
        Ok(())
    }

    fn stability(&self, optimizer: Optimizer, choices: &Choices) -> Vec<Spec> {
        let arms = stressed(optimizer, choices.levels[&optimizer]).into_iter();
        let lrs = |arm: Arm| STRESS.map(|power| choices.best[&(0, arm)].lr.times_two_to(power));
        let specs = arms.flat_map(|arm| lrs(arm).map(|lr| Spec::new(0, arm, lr, 1)));
        specs.flat_map(|spec| self.all_seeds(spec)).collect()
    }

    fn iterations(&self, choices: &Choices) -> Vec<Spec> {
        let arm = iterated();
        let spec = Spec::new(0, arm, choices.best[&(0, arm)].lr, 1);
        FEWER_ITERATIONS.into_iter().flat_map(|iterations| self.all_seeds(Spec { iterations, ..spec })).collect()
    }
}

#[cfg(test)]
pub mod tests {
    use std::collections::BTreeSet;

    use super::*;

    pub const DESIGN: Design = Design { seeds: 3, points: 7, centers: [Lr(4), Lr(7)] };

    /// A loss whose best learning rate depends on the arm; level 3 is the best.
    pub fn loss(spec: &Spec) -> f64 {
        let level = f64::from(spec.arm.level().unwrap_or(0));
        let optimum = 5.0 + level / 2.0 + spec.size as f64;
        let distance = f64::from(spec.lr.0) - optimum;
        3.0 + 0.01 * distance * distance + 0.1 * (level - 3.0).abs() + 0.001 * spec.seed as f64
    }

    /// The runs of a study, in order.
    pub fn all(design: &Design) -> (Vec<Spec>, Losses, Choices) {
        let (mut order, mut losses) = (Vec::new(), Losses::new());
        loop {
            match finished(design, &losses) {
                Ok(choices) => return (order, losses, choices),
                Err(missing) => {
                    let spec = missing[0];
                    assert!(losses.insert(spec, loss(&spec)).is_none(), "{} twice", spec.name());
                    order.push(spec);
                }
            }
        }
    }

    #[test]
    fn a_study_comes_to_its_end_and_repeats_no_run() {
        let (order, losses, choices) = all(&DESIGN);
        assert_eq!(choices.levels.values().collect::<Vec<_>>(), [&3, &3]);
        assert_eq!(choices.best.len(), 2 * (8 + 3));
        assert!(choices.best.values().all(|best| best.is_inside));
        for (&(size, arm), best) in &choices.best {
            assert!((1..=3).all(|seed| losses.contains_key(&Spec::new(size, arm, best.lr, seed))), "{arm:?}");
            let neighbors = [-1, 1].map(|place| Spec::new(size, arm, best.lr.up(place), 1));
            assert!(neighbors.iter().all(|spec| losses[spec] >= losses[&Spec::new(size, arm, best.lr, 1)]), "{arm:?}");
        }
        let stressed = order.iter().filter(|spec| spec.seed == 3).count();
        // Best learning rates, two and four times as high, fewer iterations.
        assert_eq!(stressed, 22 + 8 + 3);
    }

    #[test]
    fn the_order_does_not_depend_on_where_it_was_stopped() {
        let (order, ..) = all(&DESIGN);
        for stop in [0, 1, order.len() / 2, order.len() - 1] {
            let losses: Losses = order[..stop].iter().map(|spec| (*spec, loss(spec))).collect();
            assert_eq!(finished(&DESIGN, &losses).expect_err("a run is missing")[0], order[stop]);
        }
    }

    #[test]
    fn runs_of_the_same_time_are_those_of_one_after_the_other() {
        let (order, ..) = all(&DESIGN);
        let (mut losses, mut rounds) = (Losses::new(), 0);
        while let Err(missing) = finished(&DESIGN, &losses) {
            losses.extend(missing.into_iter().map(|spec| (spec, loss(&spec))));
            rounds += 1;
        }
        assert_eq!(
            losses.into_keys().collect::<Vec<_>>(),
            BTreeSet::from_iter(order.iter().copied()).into_iter().collect::<Vec<_>>()
        );
        assert!(3 * rounds < order.len(), "{rounds} rounds of {} runs", order.len());
    }

    #[test]
    fn a_study_in_which_everything_diverges_ends_too() {
        let mut losses = Losses::new();
        while let Err(missing) = finished(&DESIGN, &losses) {
            losses.extend(missing.into_iter().map(|spec| (spec, f64::INFINITY)));
            assert!(losses.len() < 1000);
        }
    }
}
