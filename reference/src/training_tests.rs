//! The three golden runs of llama_tiny, 20 steps each, in float64.

use crate::golden;

/// Same mathematics in another order of sums: 20 steps agree to 3e-15, the smallest gradient norm (3e-5) to 6e-14.
/// The rest is room for another machine's exp and sin.
const RELATIVE: f64 = 1e-12;

fn assert_relative(name: &str, got: f64, want: f64) {
    let error = (got - want).abs() / want.abs();
    assert!(error <= RELATIVE, "{name}: {got} for {want}, relative error {error:e}");
}

fn check_run(name: &str) {
    let run = golden::expected_run(name);
    let tiny = golden::llama_tiny();
    let mut trainer = tiny.trainer(&run);
    assert_eq!(run.rows.len(), run.steps);
    for (step, want) in run.rows.iter().enumerate() {
        assert_eq!(want.step, step + 1);
        let (loss, gradients) = trainer.loss_and_gradients(&tiny.batches(&run, step));
        if step == 0 {
            let want = &run.first_step_gradient_norms_before_clipping;
            assert!(gradients.keys().eq(want.keys()));
            for (name, want) in want {
                assert_relative(name, gradients[name].norm(), *want);
            }
        }
        let report = trainer.apply(gradients);
        assert_relative(&format!("loss of step {}", want.step), loss, want.loss);
        assert_relative(&format!("gradient norm of step {}", want.step), report.grad_norm, want.grad_norm);
        assert_relative(&format!("learning rate of step {}", want.step), report.lr, want.lr);
    }
    for (name, want) in &run.final_gamma {
        assert_relative(name, trainer.params[name].item(), *want);
    }
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
