//! Optimizer state through a checkpoint, and which parameters a step may change.

use std::collections::HashMap;

use polytape::optim::Optimizer;
use polytape::{Error, Gpu, Params, Role, Tensor};

use super::{Parameter, Rule, params_of, step, values};
use crate::device;
use crate::reference::Array;
use crate::reference::array::seeded;
use crate::reference::newton_schulz::Coefficients;
use crate::reference::optimizer::LrScale;

fn rules() -> [Rule; 3] {
    let muon = Rule::new(Some((Coefficients::Simple, LrScale::Moonlight)));
    [Rule::new(None), muon, Rule { row_moments: true, ..muon }]
}

fn parameters() -> Vec<Parameter> {
    let mut rng = seeded(3201);
    let shapes: [(&str, Role, &[usize]); 4] = [
        ("embedding", Role::Embedding, &[10, 8]),
        ("matrix", Role::Matrix, &[12, 8]),
        ("norm", Role::Vector, &[8]),
        ("u", Role::State, &[8]),
    ];
    shapes.into_iter().map(|(name, role, shape)| Parameter::new(name, role, Array::random(shape, &mut rng))).collect()
}

fn gradients(seed: u64) -> Vec<Array> {
    let mut rng = seeded(seed);
    parameters().iter().map(|parameter| Array::random(&parameter.w.shape, &mut rng)).collect()
}

fn steps(params: &mut Params, optimizer: &mut dyn Optimizer, seeds: std::ops::Range<u64>) {
    for seed in seeds {
        step(params, optimizer, &gradients(seed), 0.01).expect("a step");
    }
}

/// A copy through the host, as in a checkpoint.
fn copied(gpu: &Gpu, tensor: &Tensor) -> Tensor {
    Tensor::from_slice(gpu, &tensor.to_vec().expect("read-back"), tensor.shape()).expect("an upload")
}

#[test]
fn a_restored_state_continues_with_the_same_bits() {
    for gpu in device::all() {
        for rule in rules() {
            let mut params = params_of(gpu, &parameters()).expect("parameters");
            let mut optimizer = rule.optimizer();
            steps(&mut params, &mut *optimizer, 0..3);
            let mut saved: HashMap<String, Tensor> = optimizer
                .state_tensors(&params)
                .expect("a state")
                .iter()
                .map(|(name, tensor)| (name.clone(), copied(gpu, tensor)))
                .collect();
            let mut resumed_params = params.clone();
            let mut resumed = rule.optimizer();
            let mut take = |name: &str| saved.remove(name).ok_or_else(|| Error::Value(format!("`{name}` is missing")));
            resumed.load_state(&params, optimizer.state().steps(), &mut take).expect("a state");
            assert!(saved.is_empty(), "unread: {:?}", saved.keys());
            steps(&mut params, &mut *optimizer, 3..6);
            steps(&mut resumed_params, &mut *resumed, 3..6);
            assert_eq!(values(&params), values(&resumed_params));
            assert_eq!((optimizer.state().steps(), resumed.state().steps()), (6, 6));
            // The step count matters: an optimizer that lost it would restart the bias correction.
            let mut forgetful = rule.optimizer();
            let mut first = params_of(gpu, &parameters()).expect("parameters");
            steps(&mut first, &mut *forgetful, 3..6);
            assert_ne!(values(&first), values(&params));
        }
    }
}

#[test]
fn a_state_holds_what_the_role_needs() {
    let names = |rule: Rule| {
        let mut params = params_of(device::default(), &parameters()).expect("parameters");
        let mut optimizer = rule.optimizer();
        assert!(optimizer.state_tensors(&params).expect("a state").is_empty(), "no state before the first step");
        steps(&mut params, &mut *optimizer, 0..1);
        optimizer.state_tensors(&params).expect("a state").into_iter().map(|(name, _)| name).collect::<Vec<_>>()
    };
    let [adamw, muon, normuon] = rules().map(names);
    assert_eq!(adamw, ["embedding.m", "embedding.v", "matrix.m", "matrix.v", "norm.m", "norm.v"]);
    assert_eq!(normuon, adamw);
    assert_eq!(muon, ["embedding.m", "embedding.v", "matrix.m", "norm.m", "norm.v"]);
}

#[test]
fn a_parameter_that_never_had_a_gradient_does_not_hinder_a_resume() {
    let gpu = device::default();
    for rule in rules() {
        let mut params = params_of(gpu, &parameters()).expect("parameters");
        let mut optimizer = rule.optimizer();
        step(&mut params, &mut *optimizer, &gradients(0)[..1], 0.01).expect("a step of the embedding alone");
        let saved: HashMap<String, Tensor> = optimizer.state_tensors(&params).expect("a state").into_iter().collect();
        let mut resumed = rule.optimizer();
        let mut take = |name: &str| saved.get(name).cloned().ok_or_else(|| Error::Value(format!("`{name}` is missing")));
        resumed.load_state(&params, 1, &mut take).expect("a state");
        let mut resumed_params = params.clone();
        steps(&mut params, &mut *optimizer, 1..3);
        steps(&mut resumed_params, &mut *resumed, 1..3);
        assert_eq!(values(&params), values(&resumed_params));
    }
}

#[test]
fn a_state_of_another_shape_is_refused_by_name() {
    let gpu = device::default();
    for rule in rules() {
        let params = params_of(gpu, &parameters()).expect("parameters");
        let mut take = |_: &str| Tensor::zeros(gpu, &[10, 8]);
        let error = rule.optimizer().load_state(&params, 1, &mut take).expect_err("another shape");
        assert_eq!(error.to_string(), "load state: `matrix.m` has shape [10, 8], [12, 8] expected");
    }
}

#[test]
fn a_step_changes_no_snapshot_and_no_state_parameter() {
    for gpu in device::all() {
        for rule in rules() {
            let mut params = params_of(gpu, &parameters()).expect("parameters");
            let mut optimizer = rule.optimizer();
            steps(&mut params, &mut *optimizer, 0..1);
            let (snapshot, before) = (params.clone(), values(&params));
            let state: Vec<(String, Tensor)> = optimizer.state_tensors(&params).expect("a state");
            let state_before: Vec<Vec<f32>> = state.iter().map(|(_, tensor)| tensor.to_vec().expect("read-back")).collect();
            steps(&mut params, &mut *optimizer, 1..3);
            assert_eq!(values(&snapshot), before, "the clone keeps its values");
            for ((name, tensor), before) in state.iter().zip(state_before) {
                assert_eq!(tensor.to_vec().expect("read-back"), before, "{name}");
            }
            let after = values(&params);
            assert_ne!(after[0], before[0]);
            assert_eq!(after[3], before[3], "`u` has the role State");
        }
    }
}

#[test]
fn a_zero_gradient_leaves_only_the_decay() {
    for gpu in device::all() {
        for rule in rules() {
            let start = parameters();
            let mut params = params_of(gpu, &start).expect("parameters");
            let zeros: Vec<Array> = start.iter().map(|parameter| Array::zeros(&parameter.w.shape)).collect();
            step(&mut params, &mut *rule.optimizer(), &zeros, 0.5).expect("a step");
            for (found, start) in values(&params).iter().zip(&start[..3]) {
                let kept: Vec<f32> = start.w.to_f32().iter().map(|w| w * (1.0 - 0.5f32 * 0.1)).collect();
                let close = found.iter().zip(&kept).all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs());
                assert!(close, "{}: {found:?}, want {kept:?}", start.name);
            }
        }
    }
}
