//! `train.precision` as a user sets it: as much is learned, an overflow costs a step and no run, and a resumed run has the same bits.

use std::fs;

use serde_json::Value;

use super::resume::{assert_same_run, resume};
use super::{llama_pc, metrics, prepared, text_of, train};

fn state(folder: &std::path::Path, run: &str, step: u64) -> Value {
    let path = folder.join(run).join(format!("checkpoints/step-{step}/state.json"));
    serde_json::from_str(&fs::read_to_string(path).expect("a state")).expect("JSON")
}

#[test]
fn every_precision_learns_about_the_same() {
    let folder = prepared();
    let path = folder.path();
    let losses = ["f32", "f16x3", "f16"].map(|precision| {
        let key = format!("train.precision={precision}");
        let extra =
            [&key, "pc.level=2", "optimizer.lr=0.01", "train.steps=30", "train.val_every=30", "train.log_layers_every=10"];
        let assert = train(path, precision, &extra).assert().success();
        let text = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
        let warning = format!("warning: train.precision = \"{precision}\": products are rounded without matrix units");
        assert_eq!(text.contains(&warning), precision != "f32" && !text.contains("matrix kernels"), "{text}");
        let rows = metrics(path, precision);
        let scale = if precision == "f32" { Value::Null } else { Value::from(65_536.0) };
        assert!(rows.iter().all(|row| row["loss_scale"] == scale), "{precision}: {}", rows[0]);
        assert_eq!(state(path, precision, 30)["loss_scale"]["good_steps"].as_u64(), (precision != "f32").then_some(30));
        // What is logged of a layer is as unscaled as the whole.
        let norms = rows[9]["layers"]["gradient_norm"].as_object().expect("norms");
        let gammas = rows[9]["layers"]["gamma_gradient"].as_object().expect("γ").values().map(|list| &list[0]);
        let squares: f64 = norms.values().chain(gammas).map(|norm| norm.as_f64().expect("a norm").powi(2)).sum();
        assert!((squares.sqrt() / rows[9]["grad_norm"].as_f64().expect("a norm") - 1.0).abs() < 1e-5, "{precision}");
        // Evaluated in f32 both times.
        let report: Value = serde_json::from_str(&text_of(llama_pc(path).args(["eval", precision, "--json"]))).expect("JSON");
        let loss = |row: &Value| row["loss"].as_f64().expect("a loss");
        assert!(loss(&rows[29]) < 0.9 * loss(&rows[0]), "{} to {}", rows[0], rows[29]);
        (loss(&report), loss(&rows[29]))
    });
    for (evaluated, trained) in &losses[1..] {
        let (first, second) = (evaluated / losses[0].0 - 1.0, trained / losses[0].1 - 1.0);
        assert!(first.abs() < 0.02 && second.abs() < 0.02, "{losses:?}");
    }
}

/// A head so narrow that its weights are large, and one token a step: the first gradients are beyond a half at a scale of 65,536.
#[test]
fn an_overflow_costs_a_step_and_a_resumed_run_has_the_same_bits() {
    let folder = prepared();
    let path = folder.path();
    let extra = [
        "train.precision=f16",
        "model.dim=4",
        "model.heads=2",
        "model.kv_heads=1",
        "model.intermediate_size=8",
        "data.seq_len=1",
        "train.batch_size=1",
        "pc.level=1",
        "schedule.kind=constant",
        "train.val_every=0",
        "train.log_every=5",
        "train.log_layers_every=2",
        "train.checkpoint_every=1",
        "train.skip_spikes=3",
    ];
    let whole = [&extra[..], &["train.steps=40"]].concat();
    let assert = train(path, "whole", &whole).assert().success();
    let text = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    let rows = metrics(path, "whole");
    let overflows: Vec<&Value> = rows.iter().filter(|row| row["grad_norm"].is_null()).collect();
    assert!(!overflows.is_empty(), "no gradient overflows");
    for row in &overflows {
        assert!(row["skipped"] == true && row["loss"].is_f64() && row.get("layers").is_none(), "{row}");
    }
    assert!(text.contains("skipped, its gradients overflow at a loss scale of 65536"), "{text}");
    let last = state(path, "whole", 40);
    let halvings = overflows.len() as i32;
    assert_eq!(last["loss_scale"]["scale"], 65_536.0 * 0.5f64.powi(halvings));
    assert_eq!(last["loss_scale"]["skipped"], halvings);
    let skipped = rows[rows.len() - 1]["skipped_steps"].as_u64().expect("a count");
    assert_eq!(skipped, halvings as u64 + last["spikes"]["skipped"].as_u64().expect("a count"));

    let first = overflows[0]["step"].as_u64().expect("a step");
    train(path, "parts", &[&extra[..], &[&format!("train.steps={first}")]].concat()).assert().success();
    for steps in [(first + 3).to_string(), "40".to_owned()] {
        resume(path, "parts", &["--steps", &steps]).assert().success();
    }
    for file in ["model.safetensors", "optimizer.safetensors"] {
        let bytes = |run: &str| fs::read(path.join(run).join("checkpoints/step-40").join(file)).expect("a file");
        assert!(bytes("whole") == bytes("parts"), "{file} differs");
    }
    assert_eq!(state(path, "parts", 40)["loss_scale"], last["loss_scale"]);
    // A report takes a line without a norm.
    llama_pc(path).args(["report", "whole", "--out", "page.html"]).assert().success();
}

#[test]
fn a_killed_run_below_f32_begins_again_with_the_same_bits() {
    let folder = prepared();
    let path = folder.path();
    let extra = ["train.precision=f16x3", "train.steps=6", "train.val_every=0", "train.grad_accumulation=2"];
    train(path, "whole", &extra).assert().success();
    train(path, "again", &extra).assert().success();
    assert_same_run(path, "whole", "again", 6);
    fs::remove_dir_all(path.join("again/checkpoints")).expect("they are removed");
    resume(path, "again", &[]).assert().success();
    assert_same_run(path, "whole", "again", 6);
}

#[test]
fn a_plan_names_the_precision() {
    let folder = prepared();
    let plan = |precision: &str| {
        text_of(llama_pc(folder.path()).args(["plan", "--set", "model.preset=20M", &format!("train.precision={precision}")]))
    };
    assert!(plan("f32").contains("\nprecision          f32\n"));
    let lower = "\nprecision          f16 in linear layers and head, rounded without matrix units: slower than f32\n";
    assert!(plan("f16").contains(lower), "{}", plan("f16"));
}
