//! Runs that were edited, cut, or begun with a schedule that does not fit.

use std::fs;

use crate::common::llama_pc;
use crate::{refused, said, steps, tiny, train};

#[test]
fn a_run_to_start_from_is_held_against_the_configuration() {
    let folder = tiny();
    train(folder.path(), &["--out", "run"]).assert().success();
    train(folder.path(), &["--init", "run", "--out", "same"]).assert().success();
    for (setting, named) in [
        ("model.heads=4", "heads"),
        ("model.kv_heads=1", "model.kv_heads = 2, expected the configuration's 1"),
        ("model.head_dim=8", "model.head_dim = 4, expected the configuration's 8"),
        ("model.tied=true", "model.tied = false, expected the configuration's true"),
        ("model.rope_theta=5e5", "model.rope_theta = 10000.0, expected the configuration's 500000.0"),
        ("model.norm_eps=1e-6", "model.norm_eps"),
        ("model.qk_norm=true", "model.qk_norm = false, expected the configuration's true"),
        ("model.layers=1", "model.layers = 2, expected the configuration's 1"),
    ] {
        let text = refused(&mut train(folder.path(), &["--set", setting, "--init", "run", "--out", "other"]), 2);
        assert!(text.contains("run/config.toml: found model.") && text.contains(named), "{setting}: {text}");
        // A checkpoint itself knows it as well.
        let checkpoint = ["--set", setting, "--init", "run/checkpoints/step-1", "--out", "other"];
        assert!(refused(&mut train(folder.path(), &checkpoint), 2).contains(named), "{setting}");
    }
    let scaled = ["model.rope_scaling=linear", "model.rope_factor=2"];
    let text = refused(&mut train(folder.path(), &["--init", "run", "--out", "other", "--set", scaled[0], scaled[1]]), 2);
    assert!(text.contains("model.rope_scaling = \"none\", expected the configuration's \"linear\""), "{text}");
    assert!(text.contains("--set model.rope_scaling=none"), "{text}");
    assert!(!folder.path().join("other").exists());
}

#[test]
fn an_edited_run_goes_on_only_as_the_same_network() {
    let folder = tiny();
    train(folder.path(), &["--set", "pc.level=2", "--steps", "2", "--out", "run"]).assert().success();
    let path = folder.path().join("run/config.toml");
    let config = fs::read_to_string(&path).expect("config.toml");
    let resume = || {
        let mut command = llama_pc(folder.path());
        command.args(["train", "--resume", "run", "--steps", "3"]);
        command
    };
    for (old, new, named) in [
        ("heads = 2", "heads = 4", "heads"),
        ("rope_theta = 10000.0", "rope_theta = 20000.0", "found model.rope_theta = 20000.0, expected the 10000.0"),
        ("qk_norm = false", "qk_norm = true", "found model.qk_norm = true, expected the false"),
        ("norm_eps = 0.00001", "norm_eps = 0.001", "model.norm_eps"),
        ("level = 2", "level = 3", "found pc.level = 3, expected the 2"),
        ("per_head = false", "per_head = true", "pc.per_head"),
    ] {
        assert!(config.contains(old), "{old} in {config}");
        fs::write(&path, config.replace(old, new)).expect("it is written");
        let text = refused(&mut resume(), 2);
        assert!(text.contains("run/config.toml: found ") && text.contains(named) && text.contains("hint: "), "{text}");
        // Whatever reads the weights says so.
        for args in [&["eval", "run", "--data", "tokens.bin"][..], &["export", "run", "--format", "hf", "--out", "x"]] {
            assert!(refused(llama_pc(folder.path()).args(args), 2).contains(named), "{args:?}");
        }
    }
    assert_eq!(steps(folder.path(), "run"), [1, 2], "a refused resume changes nothing");
    fs::write(&path, config.replace("keep_checkpoints = 3", "keep_checkpoints = 2")).expect("it is written");
    resume().assert().success();
    assert_eq!(steps(folder.path(), "run"), [1, 2, 3]);
}

#[test]
fn a_line_of_metrics_that_was_cut_is_left_out_and_repaired() {
    let folder = tiny();
    let settings = ["--set", "train.steps=4", "train.checkpoint_every=2", "--out", "run"];
    train(folder.path(), &settings).assert().success();
    fs::remove_dir_all(folder.path().join("run/checkpoints/step-4")).expect("it was there");
    let path = folder.path().join("run/metrics.jsonl");
    let bytes = fs::read(&path).expect("metrics");
    fs::write(&path, &bytes[..bytes.len() - 40]).expect("it is written");
    let text = said(llama_pc(folder.path()).args(["report", "run", "--no-spectra", "--out", "page.html"]));
    assert!(text.contains("note: run/metrics.jsonl: skipped line 4"), "{text}");
    assert!(folder.path().join("page.html").is_file());
    let text = said(llama_pc(folder.path()).args(["train", "--resume", "run"]));
    assert!(!text.contains("skipped line"), "{text}");
    assert_eq!(steps(folder.path(), "run"), [1, 2, 3, 4]);
    // A line that lacks nothing but its end stays, even where no step repeats it.
    let bytes = fs::read(&path).expect("metrics");
    fs::write(&path, &bytes[..bytes.len() - 1]).expect("it is written");
    llama_pc(folder.path()).args(["train", "--resume", "run", "--steps", "5"]).assert().success();
    assert_eq!(steps(folder.path(), "run"), [1, 2, 3, 4, 5]);
}

#[test]
fn checkpoints_that_cannot_be_listed_do_not_begin_a_run_anew() {
    let folder = tiny();
    train(folder.path(), &["--steps", "2", "--out", "run"]).assert().success();
    let checkpoints = folder.path().join("run/checkpoints");
    fs::rename(&checkpoints, folder.path().join("elsewhere")).expect("it is moved");
    fs::write(&checkpoints, "not a folder").expect("it is written");
    let text = refused(llama_pc(folder.path()).args(["train", "--resume", "run", "--steps", "3"]), 1);
    assert!(text.contains("cannot list run/checkpoints"), "{text}");
    assert_eq!(steps(folder.path(), "run"), [1, 2]);
}

#[test]
fn a_schedule_that_the_run_cuts_short_is_mentioned_before_the_first_step() {
    let folder = tiny();
    let notes = |sets: &[&str]| {
        let out = format!("run-{}", sets.len());
        let _ = fs::remove_dir_all(folder.path().join(&out));
        let text = said(&mut train(folder.path(), &[&["--out", &out, "--set"], sets].concat()));
        let before = text.split("step 1").next().expect("a beginning").to_owned();
        before.lines().filter(|line| line.starts_with("note: schedule.")).map(str::to_owned).collect::<Vec<_>>()
    };
    let long = notes(&["train.steps=3", "schedule.warmup_steps=50"]);
    assert!(long.len() == 1 && long[0].contains("schedule.warmup_steps = 50 is longer than train.steps = 3"), "{long:?}");
    let both = ["train.steps=4", "schedule.kind=wsd", "schedule.warmup_steps=3", "schedule.decay_steps=3"];
    let both = notes(&both);
    assert!(both.len() == 1 && both[0].contains("warmup_steps = 3 and schedule.decay_steps = 3"), "{both:?}");
    assert!(notes(&["train.steps=4", "schedule.warmup_steps=1"]).is_empty());
}
