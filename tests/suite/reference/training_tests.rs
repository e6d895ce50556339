//! The three golden runs of llama_tiny, 20 steps each, in float64.

use crate::golden;

/// The golden numbers are float64 results of the same mathematics in another order of sums; twenty steps amplify that a little.
const RELATIVE: f64 = 1e-9;

fn assert_relative(name: &str, got: f64, want: f64) -> f64 {
    let error = (got - want).abs() / want.abs();
    assert!(
        error <= RELATIVE,
        "{name}: {got} for {want}, relative error {error:e}"
    );
    error
}

fn check_run(name: &str) {
    let run = golden::expected_runs()
        .into_iter()
        .find(|run| run.name == name)
        .expect("a golden run");
    let tiny = golden::llama_tiny();
    let mut trainer = tiny.trainer(&run);
    let (mut worst, mut worst_norm) = (0f64, 0f64);
    for (step, want) in run.rows.iter().enumerate() {
        let (loss, gradients) = trainer.loss_and_gradients(&tiny.batches(&run, step));
        if step == 0 {
            assert_eq!(
                gradients.len(),
                run.first_step_gradient_norms_before_clipping.len()
            );
            for (name, want) in &run.first_step_gradient_norms_before_clipping {
                let error = assert_relative(name, gradients[name].norm(), *want);
                worst_norm = worst_norm.max(error);
            }
        }
        let report = trainer.apply(gradients);
        assert_eq!(want.step, step + 1);
        worst = worst.max(assert_relative(
            &format!("loss of step {step}"),
            loss,
            want.loss,
        ));
        worst = worst.max(assert_relative(
            "gradient norm",
            report.grad_norm,
            want.grad_norm,
        ));
        assert_relative("learning rate", report.lr, want.lr);
    }
    for (name, want) in &run.final_gamma {
        worst = worst.max(assert_relative(name, trainer.params[name].item(), *want));
    }
    println!("{name}: worst {worst:e}, first norms {worst_norm:e}");
}

#[test]
fn the_golden_adamw_baseline_is_reproduced() {
    check_run("adamw_baseline");
}

#[test]
fn the_golden_adamw_run_of_level_4_is_reproduced() {
    check_run("adamw_pc_level4");
}

#[test]
fn the_golden_muon_run_of_level_2_is_reproduced() {
    check_run("muon_pc_level2");
}
