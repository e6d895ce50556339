//! What a step costs: the arms take turns, so that the machine's slow minutes meet all of them alike.

use std::collections::BTreeMap;
use std::time::Instant;

use polytape::llama::{Llama, names};
use polytape::{Gpu, Params, Trainer};
use serde::{Deserialize, Serialize};

use super::arms::{Arm, Optimizer, SCALED_AS, Spec, Treatment};
use super::grid::Lr;
use super::scale::Setup;
use super::statistics::{mean, median};
use crate::config::Target;
use crate::data::windows::Windows;
use crate::model::engine;
use crate::model::evaluate::upload;
use crate::terminal::failure::Failure;
use crate::terminal::progress::Progress;
use crate::train;

/// The time of a step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepTime {
    pub size: usize,
    pub arm: Arm,
    pub seconds: f64,
}

impl StepTime {
    /// Of an arm; scaled weights take no other time than plain ones.
    pub fn of(times: &[Self], size: usize, arm: Arm) -> Option<f64> {
        let timed = if arm.treatment == Treatment::Scaled { Arm::plain(arm.optimizer) } else { arm };
        times.iter().find(|time| (time.size, time.arm) == (size, timed)).map(|time| time.seconds)
    }
}

/// A training that is timed.
struct Timed {
    size: usize,
    arm: Arm,
    llama: Llama,
    trainer: Trainer,
    windows: Windows,
    seconds: Vec<f64>,
}

/// A learning rate at which nothing diverges in a few steps: the time does not depend on it.
const LR: Lr = Lr(0);

/// Median seconds of a step of every arm.
pub fn measure(gpu: &Gpu, setup: &Setup) -> Result<Vec<StepTime>, Failure> {
    let (rounds, steps) = setup.scale.timing;
    let mut arms = Vec::new();
    for size in 0..setup.scale.sizes.len() {
        for arm in timed_arms(size) {
            let config = setup.config(&Spec::new(size, arm, LR, 1), 1)?;
            let (llama, trainer, windows) = train::rehearse(gpu, &config)?;
            arms.push(Timed { size, arm, llama, trainer, windows, seconds: Vec::new() });
        }
    }
    let mut progress = Progress::new("step times", 0, (rounds + 1) as u64);
    // The first round warms up: buffers, pipelines, caches.
    for round in 0..=rounds {
        for timed in &mut arms {
            let started = Instant::now();
            (0..steps).try_for_each(|_| timed.step(gpu, setup))?;
            if round > 0 {
                timed.seconds.push(started.elapsed().as_secs_f64() / steps as f64);
            }
        }
        progress.set(round as u64 + 1, "");
    }
    progress.finish();
    let time = |timed: Timed| StepTime {
        size: timed.size,
        arm: timed.arm,
        // To the nanosecond, which JSON keeps exactly.
        seconds: (1e9 * median(&timed.seconds).expect("bug: there are rounds")).round() / 1e9,
    };
    Ok(arms.into_iter().map(time).collect())
}

/// Every arm of the first size; of the second, those that may get there.
fn timed_arms(size: usize) -> Vec<Arm> {
    let arms = Optimizer::ALL.into_iter().flat_map(Arm::all).filter(|arm| arm.treatment != Treatment::Scaled);
    arms.filter(|arm| size == 0 || !arm.has_qk_norm()).collect()
}

impl Timed {
    fn step(&mut self, gpu: &Gpu, setup: &Setup) -> Result<(), Failure> {
        let (inputs, targets) = upload(gpu, &self.windows.next_batch(setup.scale.batch_size)?)?;
        let llama = &self.llama;
        self.trainer.step(1, LR.value() as f32, |tape, _| llama.loss(tape, &inputs, &targets, setup.scale.seq_len))?;
        Ok(())
    }
}

/// The factor by which PC layers of level [`SCALED_AS`] raise the RMS of each kind of initial weight, with three digits: that of W_eff
/// over that of W. It depends on a matrix's shape, not on its scale: blocks count alike.
pub fn initial_scales(gpu: &Gpu, setup: &Setup, size: usize) -> Result<BTreeMap<Target, f64>, Failure> {
    let arm = Arm::new(Optimizer::AdamW, Treatment::Level(SCALED_AS));
    let config = setup.config(&Spec::new(size, arm, LR, 1), 1)?;
    let (_, trainer, _) = train::rehearse(gpu, &config)?;
    let effective = trainer.effective_params()?;
    let squares = |params: &Params, stem: &str| -> Result<f64, Failure> {
        let values = params.get(params.id(&names::weight(stem))?)?.tensor.to_vec()?;
        Ok(values.iter().map(|value| f64::from(*value).powi(2)).sum())
    };
    let factor = |&target: &Target| -> Result<(Target, f64), Failure> {
        let stems = (0..config.model.layers).map(|layer| engine::stem(layer, target));
        let ratios = stems.map(|stem| Ok(squares(&effective, &stem)? / squares(&trainer.params, &stem)?));
        let ratios = ratios.collect::<Result<Vec<f64>, Failure>>()?;
        Ok((target, (1e3 * mean(&ratios).sqrt()).round() / 1e3))
    };
    config.pc.iter().flat_map(|pc| &pc.targets).map(factor).collect()
}
