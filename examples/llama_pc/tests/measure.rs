//! `spectrum`, `report`, `selftest`, `bench` and `train.log_spectrum_every` as a user calls them.

mod common;

use std::fs;
use std::path::Path;

use common::{llama_pc, prepared, text_of, train};
use serde_json::Value;

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).expect("a file")).expect("JSON")
}

#[test]
fn runs_are_measured_and_reported() {
    let folder = prepared();
    let path = folder.path();
    let rhythm = ["train.steps=4", "train.val_every=2", "train.checkpoint_every=2", "train.log_spectrum_every=2"];
    train(path, "pc", &[&["pc.level=4", "pc.targets=[\"v\", \"ffn\"]", "pc.per_head=true"], &rhythm[..]].concat())
        .assert()
        .success();
    train(path, "plain", &rhythm).arg("--profile").assert().success();

    let args = ["spectrum", "pc", "plain", "--json", "s.json", "--out", "pictures"];
    let table = text_of(llama_pc(path).args(args));
    assert_eq!(table.lines().count(), 1 + 2 * 2, "{table}");
    for name in ["histogram-1.svg", "cumulative-2.svg", "quantiles-2.svg", "gmcn.svg"] {
        assert!(fs::read_to_string(path.join("pictures").join(name)).expect("a picture").starts_with("<svg"), "{name}");
    }
    let report = json(&path.join("s.json"));
    let newest = &report["runs"][0]["checkpoints"][1];
    let matrices = newest["matrices"].as_array().expect("matrices");
    assert_eq!((newest["step"].as_u64(), matrices.len()), (Some(4), 2 * 7));
    for matrix in matrices {
        let name = matrix["name"].as_str().expect("a name");
        let is_target = ["v_proj", "gate_proj", "up_proj", "down_proj"].iter().any(|part| name.ends_with(part));
        assert_eq!(matrix["effective"].is_object(), is_target, "{name}");
        if is_target {
            // Ten iterations from random vectors and as many after every step: the estimate falls short, but not by much.
            let error = matrix["sigma_error"].as_f64().expect("an error");
            assert!((-1e-6..0.15).contains(&error), "{name}: {error}");
        }
    }
    // Training measured the same weights with the same code.
    let metrics = fs::read_to_string(path.join("pc/metrics.jsonl")).expect("metrics");
    let last: Value = serde_json::from_str(metrics.lines().last().expect("a line")).expect("JSON");
    for key in ["all", "pc", "plain"] {
        let (found, wanted) = (last["gmcn"][key].as_f64().expect("a number"), newest["gmcn"][key].as_f64().expect("a number"));
        assert!((found / wanted - 1.0).abs() < 1e-9, "{key}: {found} and {wanted}");
    }
    assert_eq!(metrics.lines().filter(|line| line.contains("\"gmcn\"")).count(), 2);
    let errors = matrices.iter().filter_map(|matrix| matrix["sigma_error"].as_f64());
    let (found, worst) = (last["sigma_error"]["largest"].as_f64().expect("a number"), errors.fold(0.0, f64::max));
    assert!(
        (found - worst).abs() < 1e-6 && last["sigma_error"]["mean"].as_f64().expect("a number") <= found,
        "{found} and {worst}"
    );

    text_of(llama_pc(path).args(["report", "pc", "plain", "--out", "report.html"]));
    let page = fs::read_to_string(path.join("report.html")).expect("a page");
    let line = page.lines().find(|line| line.contains("\"runs\":[")).expect("the data");
    let data: Value =
        serde_json::from_str(&line[line.find('{').expect("it begins")..=line.rfind('}').expect("it ends")]).expect("JSON");
    let run = &data["runs"][0];
    assert_eq!(run["train"].as_array().map(Vec::len), Some(4));
    // Two blocks, one γ for each of the three matrices and the heads of v.
    assert_eq!((run["gamma"].as_array().map(Vec::len), run["spectra"].as_array().map(Vec::len)), (Some(8), Some(14)));
    assert_eq!(run["condition"].as_array().map(Vec::len), Some(2));
    assert!(data["reach"][0][1]["loss"].is_f64() && data["reach"][0][0].is_null());
    assert!(path.join("plain/profile.json").is_file());
    assert!(data["runs"][1]["kernels"].as_array().is_some_and(|list| !list.is_empty()));
}

#[test]
fn the_selftest_passes_and_says_on_what() {
    let text = text_of(llama_pc(Path::new(".")).arg("selftest"));
    for part in ["adapter  ", "driver   ", "kernels  ", "matmul A·Bᵀ", "PC layer, level 4", "verdict"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(!text.contains("FAILED") && text.contains(" passed in "), "{text}");
}

#[test]
fn the_bench_measures_compares_and_says_what_it_left_out() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path();
    let text = text_of(llama_pc(path).args(["bench", "--seconds", "3", "--only", "products,spectral", "--json"]));
    assert_eq!(text.lines().count(), 1, "{text}");
    let report: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(report["failed"].as_array().map(Vec::len), Some(0), "{text}");
    let rows = report["rows"].as_array().expect("rows");
    let has = |part: &str| rows.iter().any(|row| row["part"] == part && row["value"].as_f64().is_some_and(|value| value > 0.0));
    assert!(has("limits") && has("products") && !has("steps"), "{text}");
    // Whatever there was no time for is said.
    let left_out = report["left_out"].as_array().expect("a list");
    for model in ["271M", "1B"] {
        let names = |row: &Value| row["what"].as_str().is_some_and(|what| what.contains(model));
        assert!(rows.iter().any(names) || left_out.iter().any(names), "{model} in {text}");
    }
    assert!(left_out.iter().all(|left| left["reason"].as_str().is_some_and(|reason| !reason.is_empty())), "{text}");

    fs::write(path.join("then.jsonl"), &text).expect("a file");
    let args = ["bench", "--seconds", "2", "--only", "memory", "--compare", "then.jsonl"];
    let table = text_of(llama_pc(path).args(args));
    for part in ["adapter  ", "limits", "memory", "rms_norm", "measured ", "against llama_pc", "mean of the rates"] {
        assert!(table.contains(part), "{part} in {table}");
    }
    assert_eq!(fs::read_dir(path).expect("a folder").count(), 1, "nothing else is written");
}

#[test]
fn wrong_use_has_its_sentence() {
    let folder = prepared();
    let path = folder.path();
    fs::write(path.join("there"), "").expect("a file");
    fs::write(path.join("metrics.jsonl"), "{\"step\": 1}\n").expect("a file");
    let cases: [(&[&str], i32, &str); 14] = [
        (&["bench", "--seconds", "0"], 2, "--seconds: found 0, expected a number from 1 to 86400"),
        (&["bench", "--only", "product"], 2, "invalid value 'product' for '--only <PART>'"),
        (&["bench", "--compare", "none.jsonl"], 1, "cannot read none.jsonl: no such file or folder"),
        (&["bench", "--compare", "metrics.jsonl"], 1, "metrics.jsonl: line 1: not a measurement of `bench --json`"),
        (&["bench", "--compare", "there"], 1, "there: found no measurement, expected lines of `bench --json`"),
        (&["spectrum", "data"], 1, "data: found neither config.toml nor config.json, expected a run or an exported folder"),
        (&["spectrum", "data", "--json", "there"], 2, "--json there: found an existing path, expected a new file"),
        (&["report", "data", "--out", "there"], 2, "--out there: found an existing path, expected a new file"),
        (&["report", "data", "--out", "new.html"], 1, "cannot read data/config.toml: no such file or folder"),
        (
            &["selftest", "--kernels", "fast"],
            2,
            "--kernels <TIER>': kernel tier: found `fast`, expected one of host, fallback, portable, subgroup, matrix",
        ),
        // The flag's old name.
        (
            &["selftest", "--profile-kernels", "fast"],
            2,
            "--kernels <TIER>': kernel tier: found `fast`, expected one of host, fallback, portable, subgroup, matrix",
        ),
        (&["sample", "data", "--top-p", "1.5"], 2, "--top-p: found 1.5, expected a number above 0 to 1"),
        (&["sample", "data", "--tokens", "1048577"], 2, "--tokens: found 1048577, expected at most 1048576"),
        (
            &["sample", "data", "--tokens", "18446744073709551615"],
            2,
            "--tokens: found 18446744073709551615, expected at most 1048576",
        ),
    ];
    for (args, status, expected) in cases {
        let assert = llama_pc(path).args(args).assert().code(status);
        let text = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
        assert!(text.contains(expected), "{expected:?} in {text}");
    }
}
