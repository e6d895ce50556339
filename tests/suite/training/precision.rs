//! Training at lower precision: loss scaling, and losses close to those of f32.

use polytape::optim::LossScale;
use polytape::{Error, Gpu, Precision, Tensor};

use super::Run;
use super::small::{Small, bits, config};
use crate::device;
use crate::golden;
use crate::tolerance::{TRAINING, Tolerance, assert_close_scalar};

const HALVES: [Precision; 2] = [Precision::F16x3, Precision::F16];

/// All state that a step changes: parameters including u, v and γ, optimizer state and step count.
fn everything(small: &Small) -> (Vec<Vec<u32>>, Vec<Vec<u32>>, u64) {
    let trainer = &small.trainer;
    let of = |tensor: &Tensor| tensor.to_vec().expect("read-back").into_iter().map(f32::to_bits).collect();
    let moments =
        trainer.optimizer.state_tensors(&trainer.params).expect("a state").iter().map(|(_, tensor)| of(tensor)).collect();
    (bits(&trainer.params).expect("read-back"), moments, trainer.optimizer.state().steps())
}

fn scale(small: &Small) -> f32 {
    small.trainer.loss_scale.as_ref().expect("a loss scale").scale
}

#[test]
fn a_step_that_overflows_changes_nothing_but_the_scale() {
    for gpu in device::all() {
        for precision in HALVES {
            let rule = if precision == Precision::F16x3 { "muon" } else { "adamw" };
            let mut small = Small::at(precision, gpu, config(), rule).expect("a model");
            small.step(0).expect("a step");
            let before = everything(&small);
            // The loss is finite, its gradient overflows f16.
            let outcome = small.step_of(1e10, 1).expect("a step");
            let (loss, norm) = (outcome.loss, outcome.grad_norm);
            assert!(outcome.skipped.is_some() && loss.is_finite() && !norm.is_finite(), "{precision}: {loss}, {norm}");
            assert_eq!((outcome.loss_scale, scale(&small)), (65_536.0, 32_768.0));
            assert!(everything(&small) == before, "{precision}, {} kernels", gpu.kernels());
            let outcome = small.step(1).expect("a step");
            assert!(outcome.skipped.is_none() && outcome.loss_scale == 32_768.0);
            assert!(everything(&small).2 == before.2 + 1 && everything(&small).0 != before.0);
        }
    }
}

#[test]
fn the_scale_grows_after_good_steps_and_is_not_seen_in_the_norm() {
    for gpu in device::all() {
        let norm_of = |small: &mut Small, step| {
            let outcome = small.step(step).expect("a step");
            assert!(outcome.skipped.is_none());
            (outcome.grad_norm, outcome.loss_scale)
        };
        let mut exact = Small::new(gpu, config(), "adamw").expect("a model");
        let mut half = Small::at(Precision::F16, gpu, config(), "adamw").expect("a model");
        let (mut norms, mut scales) = (Vec::new(), Vec::new());
        for step in 0..7 {
            let ((found, scale), (want, one)) = (norm_of(&mut half, step), norm_of(&mut exact, step));
            assert_eq!(one, 1.0);
            norms.push((found / want - 1.0).abs());
            scales.push(scale / 65_536.0);
        }
        assert_eq!(scales, [1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 4.0]);
        assert!(norms.iter().all(|error| *error < 0.01), "{norms:?}");
    }
}

/// At a scale of 1 there is nothing left to halve: the step is refused, as it is in f32.
#[test]
fn an_overflow_at_a_scale_of_1_is_an_error() {
    let mut small = Small::at(Precision::F16, device::default(), config(), "adamw").expect("a model");
    small.trainer.loss_scale = Some(LossScale { scale: 1.0, ..LossScale::default() });
    let before = everything(&small);
    let error = small.step_of(1e12, 0).expect_err("an overflow");
    let Error::NonFinite { step: 1, loss, grad_norm, parameter: Some(_) } = error else { panic!("{error}") };
    assert!(loss.is_finite() && !grad_norm.is_finite(), "{loss}, {grad_norm}");
    assert!(everything(&small) == before);
}

/// f16x3: 2⁻²² per operand, amplified over 20 steps like f32 rounding; f16: 2⁻¹², most of which averages out.
#[test]
fn golden_runs_are_followed_as_closely_as_the_precision_allows() {
    let half = Tolerance { relative: 2e-3, reason: "20 steps of products of operands with 11 bits" };
    for (precision, tolerance) in [(Precision::F16x3, TRAINING), (Precision::F16, half)] {
        for name in ["adamw_pc_level4", "muon_pc_level2"] {
            device::all().iter().for_each(|gpu| follow(gpu, name, precision, tolerance));
        }
    }
}

fn follow(gpu: &Gpu, name: &str, precision: Precision, tolerance: Tolerance) {
    let (tiny, run) = (golden::llama_tiny(), golden::expected_run(name));
    let Run { model, trainer, schedule } = Run::new(gpu, &tiny, &run).expect("the golden model");
    let mut device = Run { model, trainer: trainer.with_precision(precision), schedule };
    for expected in &run.rows {
        let outcome = device.step(gpu, &tiny, &run, expected.step - 1).expect("a step");
        let (loss, norm) = (outcome.loss, outcome.grad_norm);
        let what = |what| format!("{what} of {name} at {precision}, step {}, {} kernels", expected.step, gpu.kernels());
        assert_close_scalar(&what("loss"), loss, expected.loss, 0.0, tolerance);
        assert_close_scalar(&what("gradient norm"), norm, expected.grad_norm, 0.0, tolerance.times(5.0));
    }
}

#[test]
fn a_model_learns_as_much_at_every_precision() {
    let gpu = device::default();
    let last = |precision| {
        let mut small = Small::at(precision, gpu, config(), "adamw").expect("a model");
        // A scale that does not grow into overflows, each of which would skip a step.
        small.trainer.loss_scale.iter_mut().for_each(|loss_scale| loss_scale.interval = 1000);
        let losses = (0..40).map(|step| small.step(step % 2).expect("a step").loss);
        losses.last().expect("a loss")
    };
    let [exact, split, half] = Precision::ALL.map(last);
    assert!((split / exact - 1.0).abs() < 1e-3 && (half / exact - 1.0).abs() < 0.02, "{exact}, {split}, {half}");
}
