//! `study` as a user calls it: from the plan to the page, resumed and made again from what it kept.

mod common;

use std::fs;
use std::path::Path;

use common::{llama_pc, prepared};

/// The lines that announce a run: of the process that leads, and of the one that trains beside it.
fn study(folder: &Path, args: &[&str]) -> [Vec<String>; 2] {
    let log = folder.join("runs/study-tiny/worker-1.log");
    let _ = fs::remove_file(&log);
    let assert =
        llama_pc(folder).args(["study", "--scale", "tiny", "--data", "data", "--jobs", "2"]).args(args).assert().success();
    let own = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    let runs = |text: &str| text.lines().filter(|line| line.starts_with("run ")).map(str::to_owned).collect();
    [runs(&own), runs(&fs::read_to_string(log).unwrap_or_default())]
}

fn run_folders(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder.join("runs/study-tiny/runs")).expect("runs");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name")).collect();
    names.sort();
    names
}

#[test]
fn a_study_runs_to_its_end_resumes_and_is_made_again_from_what_it_kept() {
    let folder = prepared();
    let path = folder.path();
    let out = path.join("runs/study-tiny");
    assert!(study(path, &["--plan-only"]).concat().is_empty());
    let plan = fs::read_to_string(out.join("plan.md")).expect("a plan");
    assert!(plan.contains("AdamW, PC level 4: rates and seeds | ") && plan.contains("**in all**"), "{plan}");
    assert!(!out.join("study.md").exists());

    let announced = study(path, &[]);
    let runs = run_folders(path);
    assert!(announced.iter().all(|lines| lines.len() > 5), "{announced:?}");
    assert_eq!(announced.concat().len(), runs.len());
    for kind in ["size1-adamw-scaled-", "size1-muon-qknorm-pc2-", "size2-muon-plain-", "-iterations1-"] {
        assert!(runs.iter().any(|run| run.contains(kind)), "no {kind} in {runs:?}");
    }
    for file in ["config.toml", "metrics.jsonl", "outcome.json"] {
        assert!(runs.iter().all(|run| out.join("runs").join(run).join(file).is_file()), "{file}");
    }
    let page = fs::read_to_string(out.join("study.md")).expect("a page");
    assert!(page.contains("This only tries the machinery") && page.contains("## Merged and unmerged"), "{page}");
    let picture = fs::read_to_string(out.join("study/differences.svg")).expect("a picture");
    assert!(fs::read_to_string(out.join("study/report.html")).expect("a report").contains("\"runs\":["));

    // One run lost its end, another all but its beginning: both are done again, and no other.
    let lost = [&runs[3], &runs[9]].map(|run| out.join("runs").join(run));
    fs::remove_file(lost[0].join("outcome.json")).expect("an outcome");
    fs::remove_dir_all(&lost[1]).expect("a run");
    fs::create_dir(&lost[1]).expect("what a killed process leaves");
    let again = study(path, &[]).concat();
    assert_eq!(again.len(), 2, "{again:?}");
    assert_eq!(run_folders(path), runs);

    // The page says how long it took: of a run that was done again, another time.
    let metrics = "runs/study-tiny/study/metrics.jsonl.zst";
    let before = fs::read_to_string(out.join("study.md")).expect("a page");
    fs::remove_file(out.join("study.md")).expect("a page");
    llama_pc(path).args(["study", "--from", metrics, "--docs", "runs/study-tiny"]).assert().success();
    assert_eq!(fs::read_to_string(out.join("study.md")).expect("a page"), before);
    // The losses are those of the first time.
    assert_eq!(fs::read_to_string(out.join("study/differences.svg")).expect("a picture"), picture);

    // More seeds are more runs of the same study; other data are another one.
    let again = |args: &[&str]| llama_pc(path).args(["study", "--scale", "tiny", "--plan-only"]).args(args).assert();
    again(&["--data", "data", "--seeds", "3"]).success();
    let longer = fs::read_to_string(out.join("plan.md")).expect("a plan");
    assert!(
        plan.contains("AdamW, PC level 4: rates and seeds | 5 | ")
            && longer.contains("AdamW, PC level 4: rates and seeds | 6 | ")
    );
    let refused = again(&["--data", "./data"]).code(2);
    let text = String::from_utf8_lossy(&refused.get_output().stderr).into_owned();
    assert!(text.contains("study.json: found data = data, expected this study's ./data"), "{text}");
}

#[test]
fn wrong_use_has_its_sentence() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::write(folder.path().join("m.zst"), "no").expect("a file");
    let cases: [(&[&str], i32, &str); 5] = [
        (&["study"], 2, "--scale <SCALE>"),
        (&["study", "--scale", "tiny"], 1, "cannot read data/demo/train: no such file or folder"),
        (&["study", "--scale", "tiny", "--seeds", "1"], 2, "1 is not in 2..=100"),
        (&["study", "--scale", "tiny", "--max-hours=-1"], 2, "--max-hours: found -1, expected a number above 0"),
        (&["study", "--from", "m.zst"], 1, "m.zst: found "),
    ];
    for (args, status, expected) in cases {
        let assert = llama_pc(folder.path()).args(args).assert().code(status);
        let text = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
        assert!(text.contains(expected), "{expected:?} in {text}");
    }
}
