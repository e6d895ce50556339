//! The three 20-step runs of llama_tiny.

use polytape::Gpu;

use super::{Run, device_batches};
use crate::device;
use crate::golden::{self, hugging_face_name};
use crate::tolerance::{GAMMA_GRADIENT, GRADIENT_NORM, TRAINING, assert_close_scalar};

/// `layers.0.wo` → its name on the device, and so `layers.0.wo.gamma`.
fn stored_name(short: &str) -> String {
    match short.strip_suffix(".gamma") {
        Some(matrix) => hugging_face_name(matrix).replace(".weight", ".pc_gamma"),
        None => hugging_face_name(short),
    }
}

fn follow(name: &str) {
    device::all().iter().for_each(|gpu| follow_on(gpu, name));
}

fn follow_on(gpu: &Gpu, name: &str) {
    let (tiny, run) = (golden::llama_tiny(), golden::expected_run(name));
    let mut device = Run::new(gpu, &tiny, &run).expect("the golden model");
    for expected in &run.rows {
        let step = expected.step - 1;
        let lr = run.lr * device.schedule.factor(step as u64);
        assert!((lr - expected.lr).abs() <= 1e-12, "{name} step {}: lr {lr}, want {}", expected.step, expected.lr);
        let outcome = device.step(gpu, &tiny, &run, step).expect("a step");
        let (loss, norm) = (outcome.loss, outcome.grad_norm);
        let what = |what| format!("{what} of {name}, step {}, {} kernels", expected.step, gpu.kernels());
        assert_close_scalar(&what("loss"), loss, expected.loss, 0.0, TRAINING);
        assert_close_scalar(&what("gradient norm"), norm, expected.grad_norm, 0.0, TRAINING);
    }
    for (short, gamma) in &run.final_gamma {
        let params = &device.trainer.params;
        let found =
            params.get(params.id(&stored_name(short)).expect("γ")).expect("a parameter").tensor.item().expect("read-back");
        assert_close_scalar(&format!("{short} after {name}"), found, *gamma, 0.0, TRAINING);
    }
}

#[test]
fn adamw_baseline_follows_the_golden_run() {
    follow("adamw_baseline");
}

#[test]
fn adamw_with_pc_level_4_follows_the_golden_run() {
    follow("adamw_pc_level4");
}

#[test]
fn muon_with_pc_level_2_follows_the_golden_run() {
    follow("muon_pc_level2");
}

#[test]
fn gradient_norms_of_the_first_step_match_for_every_parameter() {
    for gpu in device::all() {
        for run in golden::expected_runs() {
            let tiny = golden::llama_tiny();
            let device = Run::new(gpu, &tiny, &run).expect("the golden model");
            let batches = device_batches(gpu, &tiny, &run, 0).expect("batches");
            let (_, gradients) = device
                .trainer
                .gradients(batches.len(), |tape, i| device.model.loss(tape, &batches[i].0, &batches[i].1, run.seq_len))
                .expect("gradients");
            let wanted = &run.first_step_gradient_norms_before_clipping;
            for (short, want) in wanted {
                let id = device.trainer.params.id(&stored_name(short)).expect("the same names");
                let gradient = gradients.get(id).unwrap_or_else(|| panic!("no gradient of {short}")).to_vec().expect("read-back");
                let norm = gradient.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
                let tolerance = if short.ends_with(".gamma") { GAMMA_GRADIENT } else { GRADIENT_NORM };
                let name = format!("gradient of {short}, {}, {} kernels", run.name, gpu.kernels());
                assert_close_scalar(&name, norm as f32, *want, 0.0, tolerance);
            }
            assert_eq!(gradients.iter().count(), wanted.len(), "{}", run.name);
        }
    }
}
