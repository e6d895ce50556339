//! `plan` as a user calls it, on the published configurations and on wrong input.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{llama_pc, text_of};

fn configs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs")
}

fn plan(config: &str, extra: &[&str]) -> Value {
    let config = configs().join(config);
    let mut command = llama_pc(Path::new("."));
    command.args(["plan", "--json", "--memory", "80GiB", "--config"]).arg(config).args(extra);
    serde_json::from_str(&text_of(&mut command)).expect("JSON")
}

#[test]
fn the_eight_published_runs_are_planned() {
    for (size, parameters, batch) in [("271M", 271, 8), ("1B", 1056, 4)] {
        for kind in ["adamw", "muon"] {
            let baseline = plan(&format!("{kind}_baseline_{size}.toml"), &[]);
            let pc = plan(&format!("{kind}_pc_{size}.toml"), &[]);
            for plan in [&baseline, &pc] {
                let millions = plan["parameters"].as_f64().expect("a number") / 1e6;
                assert!((millions - f64::from(parameters)).abs() < 1.0, "{size}: {millions}");
                assert_eq!(plan["tokens_per_step"], 320 * 8192);
                assert!(plan["model"].as_str().expect("a text").contains(&format!("× {batch} sequences of 8192")));
            }
            let number = |plan: &Value, key: &str| plan[key].as_f64().expect("a number");
            assert_eq!(number(&baseline, "pc_share"), 0.0);
            // Done once per step, the polynomial is nothing beside 2.6 million tokens.
            assert!((1e-4..0.01).contains(&number(&pc, "pc_share")), "{size} {kind}: {}", pc["pc_share"]);
            assert!(number(&pc, "memory_bytes") > number(&baseline, "memory_bytes"));
        }
    }
}

#[test]
fn a_plan_that_does_not_fit_says_what_would() {
    let found = plan("adamw_pc_1B.toml", &[]);
    assert_eq!(found["fits"], false);
    let advice = found["advice"].as_array().expect("a list");
    assert_eq!(advice.len(), 2, "{advice:?}");
    for entry in advice {
        let number = |key: &str| entry[key].as_u64().expect("a number");
        assert_eq!(number("batch_size") * number("grad_accumulation"), 320);
        // What it advises does fit, and is planned with as many bytes as it says.
        let sets = ["checkpoint_activations", "batch_size", "grad_accumulation"].map(|key| format!("train.{key}={}", entry[key]));
        let again = plan("adamw_pc_1B.toml", &["--set", &sets[0], &sets[1], &sets[2]]);
        assert_eq!((&again["fits"], &again["memory_bytes"]), (&Value::Bool(true), &entry["bytes"]));
    }
    let config = configs().join("adamw_pc_1B.toml");
    let text = text_of(llama_pc(Path::new(".")).args(["plan", "--memory", "80GiB", "--config"]).arg(&config));
    assert!(
        text.contains("fits               no; with the same tokens per step, this does:\n  --set train.batch_size="),
        "{text}"
    );
    let text = text_of(llama_pc(Path::new(".")).args(["plan", "--memory", "1GB", "--config"]).arg(&config));
    assert!(text.contains("fits               no, and no train.batch_size does"), "{text}");
}

#[test]
fn a_plan_says_how_attention_is_bound() {
    // The host tier binds nothing.
    let found = plan("adamw_pc_1B.toml", &["--kernels", "portable"]);
    let adapter = &found["adapter"];
    assert!(adapter.get("binding_problem").is_none(), "{adapter}");
    let number = |value: &Value, key: &str| value[key].as_u64().expect("a number");
    let attention = &adapter["attention"];
    assert_eq!((number(attention, "of_sequences"), number(attention, "of_queries")), (4, 8192));
    // A sequence has 64 MiB.
    let sequences = (number(adapter, "binding_limit") >> 26).min(4);
    assert_eq!((number(attention, "sequences"), number(attention, "bytes")), (sequences, sequences << 26));
    let config = configs().join("adamw_pc_1B.toml");
    let text =
        text_of(llama_pc(Path::new(".")).args(["plan", "--kernels", "portable", "--memory", "1TiB", "--config"]).arg(&config));
    assert!(text.contains("\nattention          bound ") && text.contains("\nfits               yes"), "{text}");
}

#[test]
fn a_wrong_plan_has_its_sentence() {
    for (args, expected) in [
        (&["--memory", "lots"][..], "found \"lots\", expected bytes such as 24GiB"),
        (&[], "model.vocab is not set and data.train"),
        (&["--set", "model.dims=3"], "did you mean model.dim?"),
        (&["--set", "model.preset=20M", "--adapter", "nonsense"], "--adapter nonsense: "),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let assert = llama_pc(folder.path()).arg("plan").args(args).assert().code(2);
        let text = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
        assert!(text.contains(expected), "{expected:?} in {text}");
    }
}
