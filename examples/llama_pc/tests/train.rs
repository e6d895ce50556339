//! `devices`, `train`, `eval` and `sample` as a user calls them, on text that the test makes. They need an adapter; where there is
//! none, they fail.

mod common;
#[path = "train/data.rs"]
mod data;
#[path = "train/plan.rs"]
mod plan;
#[path = "train/precision.rs"]
mod precision;
#[path = "train/resume.rs"]
mod resume;

use std::fs;
use std::path::Path;

use common::{TINY, llama_pc, prepared, text_of, train};
use serde_json::Value;

fn metrics(folder: &Path, run: &str) -> Vec<Value> {
    let text = fs::read_to_string(folder.join(run).join("metrics.jsonl")).expect("metrics");
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

#[test]
fn devices_lists_an_adapter_with_its_kernels() {
    let text = text_of(llama_pc(Path::new(".")).arg("devices"));
    assert!(text.starts_with("0 ") && text.contains("kernels   "), "{text}");
}

#[test]
fn a_run_learns_and_can_be_evaluated_and_sampled() {
    let folder = prepared();
    let extra = [
        "pc.level=4",
        "optimizer.lr=0.01",
        "train.steps=40",
        "train.val_every=20",
        "train.checkpoint_every=15",
        "train.keep_checkpoints=2",
    ];
    train(folder.path(), "run", &extra).assert().success();
    let rows = metrics(folder.path(), "run");
    assert_eq!(rows.len(), 40);
    let loss = |row: &Value| row["loss"].as_f64().expect("a loss");
    assert!(loss(&rows[39]) < 0.8 * loss(&rows[0]), "{} to {}", loss(&rows[0]), loss(&rows[39]));
    assert!(rows[19]["val_loss"].is_f64() && rows[18].get("val_loss").is_none());
    assert_eq!(rows[39]["tokens"], 40 * 4 * 16);
    let mut steps: Vec<String> = fs::read_dir(folder.path().join("run/checkpoints"))
        .expect("checkpoints")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"))
        .collect();
    steps.sort();
    assert_eq!(steps, ["step-30", "step-40"]);
    for file in ["config.toml", "tokenizer.json", "log.txt", "loss.svg", "checkpoints/step-40/state.json"] {
        assert!(folder.path().join("run").join(file).is_file(), "{file}");
    }

    let report: Value = serde_json::from_str(&text_of(llama_pc(folder.path()).args(["eval", "run", "--json"]))).expect("JSON");
    let loss = report["loss"].as_f64().expect("a loss");
    assert!((report["perplexity"].as_f64().expect("a perplexity") / loss.exp() - 1.0).abs() < 1e-9);
    assert!(report["tokens"].as_u64().expect("tokens") > 0);

    let sample = |seed: &str| {
        text_of(llama_pc(folder.path()).args(["sample", "run", "--prompt", "the cat", "--tokens", "12", "--seed", seed]))
    };
    let first = sample("3");
    assert!(first.starts_with("the cat") && first.len() > "the cat\n".len(), "{first}");
    assert_eq!(first, sample("3"));

    let others =
        ["--prompt", "the", "--prompt", "the cat", "--prompt", "a dog", "--samples", "2", "--tokens", "12", "--seed", "2"];
    let several = text_of(llama_pc(folder.path()).args(["sample", "run"]).args(others));
    let parts: Vec<&str> = several.split("==> ").skip(1).collect();
    assert_eq!(parts.len(), 6, "{several}");
    assert!(parts[0].starts_with("prompt 1, seed 2 <==\nthe"), "{several}");
    // The same text as alone.
    assert_eq!(parts[3].trim_end_matches('\n'), format!("prompt 2, seed 3 <==\n{}", first.trim_end_matches('\n')));
}

#[test]
fn initial_weights_are_scaled_where_they_are_drawn() {
    let folder = prepared();
    let norms = |out: &str, scale: &str| {
        let extra = [scale, "train.steps=1", "train.log_layers_every=1", "train.val_every=0"];
        train(folder.path(), out, &extra).assert().success();
        metrics(folder.path(), out)[0]["layers"]["weight_norm"].clone()
    };
    let (plain, scaled) = (norms("plain", "seed=1"), norms("scaled", "model.init_scale={ o = 2.0, ffn = 0.5 }"));
    for (part, factor) in [("o_proj", 2.0), ("gate_proj", 0.5), ("up_proj", 0.5), ("down_proj", 0.5), ("q_proj", 1.0)] {
        for (name, norm) in plain.as_object().expect("norms").iter().filter(|(name, _)| name.contains(part)) {
            let ratio = scaled[name].as_f64().expect("a norm") / norm.as_f64().expect("a norm");
            assert!((ratio / factor - 1.0).abs() < 1e-5, "{name}: {ratio}");
        }
    }
    train(folder.path(), "same", &["train.steps=1", "model.init_scale={ o = 1.0, ffn = 1.0 }"])
        .args(["--init", "plain"])
        .assert()
        .success();
    let assert = train(folder.path(), "third", &["model.init_scale={ o = 2.0 }"]).args(["--init", "plain"]).assert().code(2);
    let text = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    assert!(text.contains("model.init_scale: found") && text.contains("--init plain"), "{text}");
    // A scaled run's weights are weights like any others.
    train(folder.path(), "fourth", &["train.steps=1"]).args(["--init", "scaled"]).assert().success();
}

#[test]
fn the_same_seed_gives_the_same_run_with_either_optimizer() {
    let folder = prepared();
    for kind in ["adamw", "muon"] {
        let losses = |out: &str| {
            let kind = format!("optimizer.kind={kind}");
            let extra = [kind.as_str(), "pc.level=2", "train.steps=3", "train.val_every=0", "train.grad_accumulation=2"];
            train(folder.path(), out, &extra).assert().success();
            let figures = |row: &Value| (row["loss"].clone(), row["grad_norm"].clone());
            metrics(folder.path(), out).iter().map(figures).collect::<Vec<_>>()
        };
        assert_eq!(losses(&format!("{kind}-a")), losses(&format!("{kind}-b")));
    }
}

#[test]
fn a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_checkpoint() {
    let folder = prepared();
    // Logged at every step, or seldom; with the spike guard, which leaves nothing out that is not finite; with all that a
    // gradient may pass through.
    let variants: [&[&str]; 3] = [
        &[],
        &["train.log_every=7"],
        &["pc.level=4", "train.grad_accumulation=2", "train.skip_spikes=3", "train.log_layers_every=1"],
    ];
    let mut errors = Vec::new();
    for (number, variant) in variants.iter().enumerate() {
        let run = format!("run-{number}");
        let extra =
            [&["optimizer.lr=1e30", "train.steps=20", "train.val_every=0", "train.checkpoint_every=1"], *variant].concat();
        let assert = train(folder.path(), &run, &extra).assert().code(1);
        let text = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
        assert!(text.contains("error: step ") && text.contains("expected") && text.contains("hint: "), "{variant:?}: {text}");
        errors.extend(text.lines().find(|line| line.starts_with("error: step ")).map(str::to_owned));
        // What was saved is finite.
        let saved: Vec<_> = fs::read_dir(folder.path().join(&run).join("checkpoints")).expect("checkpoints").collect();
        assert!(!saved.is_empty(), "{variant:?}");
        for entry in saved {
            let bytes = fs::read(entry.expect("an entry").path().join("model.safetensors")).expect("weights");
            let header = 8 + u64::from_le_bytes(*bytes.first_chunk().expect("a length")) as usize;
            let values = bytes[header..].as_chunks().0;
            assert!(values.iter().all(|value| f32::from_le_bytes(*value).is_finite()), "{variant:?}");
        }
        let rows = metrics(folder.path(), &run);
        assert!(rows.iter().all(|row| row["loss"].is_f64() && row["grad_norm"].is_f64()), "{rows:?}");
    }
    assert_eq!(errors[0], errors[1], "how often it is logged changes nothing");

    // Weights that are finite, and a model of them that is not.
    let validated = ["optimizer.lr=1e30", "train.steps=1", "train.val_every=1"];
    let assert = train(folder.path(), "validated", &validated).assert().code(1);
    let text = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    assert!(text.contains("error: step 1: the validation loss is ") && text.contains("hint: "), "{text}");
    assert!(!folder.path().join("validated/checkpoints/step-1").exists());
}

#[test]
fn layers_are_measured_and_agree_with_the_whole() {
    let folder = prepared();
    let extra = [
        "pc.level=2",
        "pc.targets=['q', 'o', 'ffn']",
        "pc.per_head=true",
        "train.steps=5",
        "train.log_layers_every=2",
        "train.grad_accumulation=2",
        "train.val_every=0",
    ];
    train(folder.path(), "run", &extra).args(["--peak-tflops", "0.05"]).assert().success();
    let rows = metrics(folder.path(), "run");
    let measured: Vec<bool> = rows.iter().map(|row| row.get("layers").is_some()).collect();
    assert_eq!(measured, [false, true, false, true, true], "every second and the last");
    let number = |value: &Value| value.as_f64().expect("a number");
    let object = |value: &Value| value.as_object().expect("an object").clone();
    for row in rows.iter().filter(|row| row.get("layers").is_some()) {
        let layers = &row["layers"];
        let norms = object(&layers["gradient_norm"]);
        let gammas = object(&layers["gamma_gradient"]);
        let of_gammas = gammas.values().flat_map(|list| list.as_array().expect("a list")).map(number);
        let squares: f64 = norms.values().map(number).chain(of_gammas).map(|norm| norm * norm).sum();
        // The parts are rounded to float32 on the way.
        assert!((squares.sqrt() / number(&row["grad_norm"]) - 1.0).abs() < 1e-5, "{row}");
        assert_eq!(object(&layers["weight_norm"]).keys().collect::<Vec<_>>(), norms.keys().collect::<Vec<_>>());
        assert_eq!(object(&layers["gamma"]).keys().collect::<Vec<_>>(), gammas.keys().collect::<Vec<_>>());
        assert_eq!(layers["gamma"]["model.layers.0.self_attn.q_proj"].as_array().expect("a list").len(), 4, "one per head");
        for (rms, most) in
            layers["residual_rms"].as_array().expect("a list").iter().zip(layers["residual_max"].as_array().expect("a list"))
        {
            assert!(0.0 < number(rms) && number(rms) < number(most), "{row}");
        }
        assert_eq!(layers["residual_rms"].as_array().map(Vec::len), Some(2));
    }
    // The share of the peak is the speed times the operations of a token.
    let share = |row: &Value| number(&row["mfu"]) / number(&row["tokens_per_second"]);
    assert!(share(&rows[0]) > 0.0 && (share(&rows[0]) / share(&rows[4]) - 1.0).abs() < 1e-9);
}

#[test]
fn wrong_use_has_its_sentence_and_its_exit_status() {
    let folder = prepared();
    fs::create_dir(folder.path().join("there")).expect("a folder");
    let tiny = |out: &'static str| [&["train", "--out", out, "--set"], &TINY[..]].concat();
    let cases: [(Vec<&str>, i32, &str); 6] = [
        (tiny("there"), 2, "--out there: found an existing path"),
        ([&tiny("run")[..], &["--adapter", "nonsense"]].concat(), 2, "a name containing `nonsense`"),
        ([&tiny("run")[..], &["--init", "none"]].concat(), 1, "none: found neither model.safetensors"),
        ([&tiny("run")[..], &["data.train=nowhere"]].concat(), 1, "nowhere"),
        (vec!["eval", "data"], 1, "expected a run or an exported folder"),
        (vec!["sample", "nowhere"], 1, "nowhere"),
    ];
    for (args, status, expected) in cases {
        let assert = llama_pc(folder.path()).args(&args).assert().code(status);
        let text = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
        assert!(text.contains(expected), "{expected:?} in {text}");
        assert!(text.contains("error: ") && !text.contains("panicked"), "{text}");
    }
    assert!(!folder.path().join("run").exists(), "a run that could not begin leaves no folder");
}

/// Each would train alone, into the same folder. A build with MPI asks that instead.
#[cfg(not(feature = "mpi"))]
#[test]
fn a_build_without_mpi_refuses_to_be_one_of_several_processes() {
    let folder = prepared();
    for variable in ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"] {
        let assert = train(folder.path(), "run", &[]).env(variable, "2").assert().code(2);
        let text = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
        assert!(
            text.contains(&format!("error: found {variable} = 2, expected a single process: this build has no MPI")),
            "{text}"
        );
        assert!(text.contains("--features mpi") && !folder.path().join("run").exists(), "{text}");
    }
    train(folder.path(), "run", &["train.steps=1", "train.val_every=0"]).env("OMPI_COMM_WORLD_SIZE", "1").assert().success();
}

#[test]
fn gradients_are_clipped_to_the_configured_norm_also_after_a_resume() {
    let folder = prepared();
    let begin = |out: &str, steps: &str, norm: &str| {
        let norm = format!("train.max_grad_norm={norm}");
        let extra = [&norm, steps, "schedule.kind=constant", "train.val_every=0", "optimizer.kind=muon", "optimizer.lr=0.01"];
        train(folder.path(), out, &extra).assert().success();
    };
    let losses = |run: &str| metrics(folder.path(), run).iter().map(|row| row["loss"].clone()).collect::<Vec<_>>();
    begin("tight", "train.steps=6", "0.01");
    begin("loose", "train.steps=6", "1");
    begin("parts", "train.steps=3", "0.01");
    resume::resume(folder.path(), "parts", &["--steps", "6"]).assert().success();
    assert_ne!(losses("tight"), losses("loose"));
    assert_eq!(losses("tight"), losses("parts"));
}
