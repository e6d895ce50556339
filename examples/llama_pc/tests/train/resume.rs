//! `train --resume`: bit for bit after any end, and a sentence for whatever is wrong.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use rand::rngs::ChaCha12Rng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;

use super::{TINY, llama_pc, metrics, prepared, train};

/// Processes that are killed in a run.
const KILLS: usize = 4;

/// Everything that a resume has to bring back: PC layers, micro-batches, skipped steps, layers, validation.
const RICH: [&str; 9] = [
    "pc.level=2",
    "pc.targets=['qk', 'o', 'ffn']",
    "train.steps=36",
    "train.grad_accumulation=2",
    "train.val_every=4",
    "train.checkpoint_every=2",
    "train.log_layers_every=3",
    "train.skip_spikes=0.2",
    // Slow enough that gradient norms stay where they are, and some lie above the mean.
    "optimizer.lr=3e-4",
];

pub fn resume(folder: &Path, run: &str, extra: &[&str]) -> assert_cmd::Command {
    let mut command = llama_pc(folder);
    command.args(["train", "--resume", run]).args(extra);
    command
}

/// Runs the program in the background.
fn spawn(folder: &Path, args: &[&str]) -> Child {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_llama_pc"));
    command.current_dir(folder).args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program starts")
}

/// What Ctrl-C does.
#[cfg(unix)]
fn interrupt(child: &Child) {
    // The shell's own: a container may have no other.
    let status = std::process::Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status();
    assert!(status.expect("a shell").success());
}

/// Elsewhere a process cannot press Ctrl-C for one other: it is left to end.
#[cfg(not(unix))]
fn interrupt(_: &Child) {}

/// The lines of metrics without what no two runs share: times and the memory's peak.
fn repeatable(folder: &Path, run: &str) -> Vec<Value> {
    let mut rows = metrics(folder, run);
    for row in &mut rows {
        let row = row.as_object_mut().expect("an object");
        for key in ["tokens_per_second", "seconds", "memory_bytes"] {
            assert!(row.remove(key).is_some(), "no {key}");
        }
    }
    rows
}

pub fn assert_same_run(folder: &Path, a: &str, b: &str, step: u64) {
    for file in ["model.safetensors", "optimizer.safetensors"] {
        let bytes = |run: &str| fs::read(folder.join(run).join(format!("checkpoints/step-{step}")).join(file)).expect("a file");
        assert!(bytes(a) == bytes(b), "{file} of {b} differs");
    }
    assert_eq!(repeatable(folder, a), repeatable(folder, b));
}

fn error_of(command: &mut assert_cmd::Command, status: i32) -> String {
    let assert = command.assert().code(status);
    let text = String::from_utf8_lossy(&assert.get_output().stderr).replace('\\', "/");
    assert!(text.contains("error: ") && !text.contains("panicked"), "{text}");
    text
}

#[test]
fn a_run_that_is_killed_at_random_moments_ends_with_the_same_bits() {
    kill_at_random_moments("optimizer.kind=adamw", 11);
}

#[test]
fn a_run_with_muon_that_is_killed_at_random_moments_ends_with_the_same_bits() {
    kill_at_random_moments("optimizer.kind=muon", 12);
}

fn kill_at_random_moments(optimizer: &str, seed: u64) {
    let folder = prepared();
    let mut rng = ChaCha12Rng::seed_from_u64(seed);
    let settings = [&RICH[..], &[optimizer]].concat();
    train(folder.path(), "whole", &settings).assert().success();
    let rows = metrics(folder.path(), "whole");
    let skipped = rows.iter().filter(|row| row["skipped"] == true).count();
    assert!(skipped > 0 && skipped as u64 == rows[35]["skipped_steps"].as_u64().expect("a count"), "{skipped} skipped");

    let first = [&["train", "--out", "killed", "--set"], &TINY[..], &settings].concat();
    let again = ["train", "--resume", "killed"];
    let config = folder.path().join("killed").join("config.toml");
    for kill in 0..=KILLS {
        let mut child = if config.is_file() {
            spawn(folder.path(), &again)
        } else {
            // Killed before it was a run: what there is of the folder is in the way.
            let _ = fs::remove_dir_all(folder.path().join("killed"));
            spawn(folder.path(), &first)
        };
        if kill == KILLS {
            assert!(child.wait().expect("a status").success(), "the last one goes on to the end");
            break;
        }
        // Some while they start, the others while they train and save.
        if kill % 3 > 0 {
            let written = || fs::metadata(folder.path().join("killed").join("metrics.jsonl")).map_or(0, |file| file.len());
            let before = written();
            while written() <= before && child.try_wait().expect("a status").is_none() {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        std::thread::sleep(Duration::from_millis(rng.random_range(0..if kill == 1 { 20 } else { 400 })));
        if kill == 2 {
            // Ctrl-C: the step ends, the run is saved, and that is no error.
            interrupt(&child);
            assert!(child.wait().expect("it has ended").success(), "interrupted");
            continue;
        }
        child.kill().expect("it is killed");
        let status = child.wait().expect("it has ended");
        assert!(kill != 1 || !status.success(), "the first steps were too fast to be killed");
    }
    assert_same_run(folder.path(), "whole", "killed", 36);
}

#[test]
fn a_run_goes_on_twice_and_ignores_what_a_kill_left() {
    let folder = prepared();
    let path = folder.path();
    // The constant schedule of a shorter run is the same as the beginning of the longer.
    let constant = [&RICH[..], &["schedule.kind=constant", "optimizer.kind=muon"]].concat();
    train(path, "constant", &constant).assert().success();
    train(path, "parts", &[&constant[..], &["train.steps=9"]].concat()).assert().success();
    let half = path.join("parts/checkpoints/step-10.partial");
    fs::create_dir(&half).expect("a folder");
    fs::write(half.join("model.safetensors"), "half a file").expect("a file");
    let mut log = fs::OpenOptions::new().append(true).open(path.join("parts/metrics.jsonl")).expect("metrics");
    std::io::Write::write_all(&mut log, b"{\"step\":10,\"tok").expect("half a line");
    for steps in ["17", "36"] {
        resume(path, "parts", &["--steps", steps]).assert().success();
        assert!(!half.exists());
    }
    for file in ["model.safetensors", "optimizer.safetensors"] {
        let bytes = |run: &str| fs::read(path.join(run).join("checkpoints/step-36").join(file)).expect("a file");
        assert!(bytes("constant") == bytes("parts"), "{file} differs");
    }
    let steps: Vec<u64> = metrics(path, "parts").iter().map(|row| row["step"].as_u64().expect("a step")).collect();
    assert_eq!(steps, (1..=36).collect::<Vec<_>>(), "nothing is written twice");

    // A run that is complete has nothing to do, and says so.
    resume(path, "constant", &[]).assert().success();
    // One that was killed before its first checkpoint begins again.
    fs::remove_dir_all(path.join("parts/checkpoints")).expect("they are removed");
    resume(path, "parts", &["--steps", "36"]).assert().success();
    assert_same_run(path, "constant", "parts", 36);
}

/// A matrix that is 0 has an infinite condition number, which JSON does not have.
#[test]
fn a_run_with_matrices_of_no_rank_goes_on_and_is_reported() {
    let folder = prepared();
    let path = folder.path();
    let zero = ["pc.level=4", "pc.gamma_init=0", "pc.learnable_gamma=false"];
    let rhythm = ["train.steps=2", "train.val_every=0", "train.log_spectrum_every=1"];
    train(path, "run", &[&zero[..], &rhythm].concat()).assert().success();
    resume(path, "run", &["--steps", "4"]).assert().success();
    let rows = metrics(path, "run");
    assert_eq!(rows.len(), 4);
    for gmcn in rows.iter().map(|row| &row["gmcn"]) {
        let is_infinite = |key: &str| gmcn.get(key).is_some_and(Value::is_null);
        assert!(is_infinite("all") && is_infinite("pc") && gmcn["plain"].is_f64(), "{gmcn}");
    }
    let table = super::text_of(llama_pc(path).args(["spectrum", "run", "--json", "s.json", "--out", "pictures"]));
    assert!(table.contains(" inf ") && !table.contains("NaN"), "{table}");
    super::text_of(llama_pc(path).args(["report", "run", "--out", "report.html"]));
}

/// A run with the checkpoints step-2 and step-4.
fn saved() -> (tempfile::TempDir, PathBuf) {
    let folder = prepared();
    let extra = ["pc.level=1", "train.steps=4", "train.checkpoint_every=2", "train.val_every=0"];
    train(folder.path(), "run", &extra).assert().success();
    let newest = folder.path().join("run/checkpoints/step-4");
    (folder, newest)
}

#[test]
fn a_flipped_byte_anywhere_in_a_checkpoint_is_found_and_named() {
    let (folder, newest) = saved();
    let path = folder.path();
    let hint = "hint: step-2 also exists: to return to it, remove run/checkpoints/step-4";
    for file in ["model.safetensors", "optimizer.safetensors", "state.json"] {
        let file = newest.join(file);
        let good = fs::read(&file).expect("a file");
        for at in [good.len() / 2, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            fs::write(&file, &bad).expect("it is damaged");
            let text = error_of(&mut resume(path, "run", &["--steps", "6"]), 1);
            let name = format!("error: run/checkpoints/step-4/{}: found ", file.file_name().expect("a name").to_string_lossy());
            assert!(text.contains(hint), "{text}");
            // A byte that is no UTF-8 any more is refused when the file is read.
            assert!(text.contains(&name) || text.contains("cannot read run/checkpoints/step-4/state.json"), "{text}");
        }
        fs::write(&file, &good[..good.len() - 7]).expect("it is cut");
        assert!(error_of(&mut resume(path, "run", &["--steps", "6"]), 1).contains(hint));
        fs::remove_file(&file).expect("it is removed");
        assert!(error_of(&mut resume(path, "run", &["--steps", "6"]), 1).contains(hint));
        fs::write(&file, &good).expect("it is restored");
    }
    let model = newest.join("model.safetensors");
    let mut bad = fs::read(&model).expect("a file");
    *bad.last_mut().expect("bytes") ^= 1;
    fs::write(&model, bad).expect("it is damaged");
    for command in ["eval", "sample"] {
        let text = error_of(llama_pc(path).args([command, "run"]), 1);
        assert!(text.contains("step-4/model.safetensors: found the checksum "), "{text}");
    }
    fs::remove_dir_all(&newest).expect("the user follows the hint");
    resume(path, "run", &[]).assert().success();
    assert!(newest.is_dir());
}

#[test]
fn only_one_process_trains_a_run() {
    let (folder, _) = saved();
    let path = folder.path();
    let lock = File::options().write(true).open(path.join("run/lock")).expect("a lock file");
    lock.lock().expect("the test trains it");
    let text = error_of(&mut resume(path, "run", &["--steps", "6"]), 1);
    assert!(text.contains("error: run: found another process that trains it, expected none"), "{text}");
    drop(lock);
    resume(path, "run", &["--steps", "6"]).assert().success();
}

#[test]
fn what_cannot_be_resumed_has_its_sentence() {
    let (folder, newest) = saved();
    let path = folder.path();
    let cases: [(&[&str], i32, &str); 6] = [
        (&["--resume", "data"], 1, "data: found no config.toml, expected a run"),
        (&["--resume", "run", "--steps", "3"], 2, "train.steps: found 3, expected at least the 4 that the run has done"),
        (&["--resume", "run", "--set", "optimizer.lr=1"], 2, "found optimizer.lr, expected a key that a resumed run may change"),
        (
            &["--resume", "run", "--set", "data.train=data/val"],
            1,
            "data/val: found 22 windows, expected the 150 that the run began with",
        ),
        (&["--resume", "run", "--init", "x"], 2, "cannot be used with"),
        (&["--resume", "run", "--peak-tflops", "0"], 2, "--peak-tflops: found 0, expected a number above 0"),
    ];
    for (args, status, expected) in cases {
        let text = error_of(llama_pc(path).arg("train").args(args), status);
        assert!(text.contains(expected), "{expected:?} in {text}");
    }
    // As many tokens, but others.
    let shard = path.join("data/train/00000.bin");
    let tokens = fs::read(&shard).expect("tokens");
    let (head, tail) = tokens.split_at(64);
    fs::write(&shard, [tail, head].concat()).expect("they are swapped");
    let error = error_of(&mut resume(path, "run", &["--steps", "6"]), 1);
    assert!(error.contains("error: data/train: found other tokens, expected those that the run began with"), "{error}");
    fs::write(&shard, &tokens).expect("they are restored");
    // A configuration that was edited no longer fits the tensors.
    let config = path.join("run/config.toml");
    let text = fs::read_to_string(&config).expect("a configuration");
    for (from, to, expected) in [
        (
            "intermediate_size = 64",
            "intermediate_size = 72",
            "found model.intermediate_size = 72, expected the 64 of the weights",
        ),
        ("layers = 2", "layers = 1", "found model.layers = 1, expected the 2 of the weights"),
        ("\"gate\", ", "", "found pc.targets = [\"o\", \"up\", \"down\"], expected the [\"o\", \"gate\", \"up\", \"down\"] of"),
        ("kind = \"adamw\"", "kind = \"muon\"", "optimizer.safetensors: found a tensor `model.layers.0.mlp.down_proj.weight.v`"),
        ("seed = 1", "seed = 2", "seed: found 2, expected the 1 that the run began with"),
    ] {
        let edited = text.replace(from, to);
        assert_ne!(edited, text, "{from}");
        fs::write(&config, edited).expect("it is edited");
        let status = if from.starts_with("kind") { 1 } else { 2 };
        let error = error_of(&mut resume(path, "run", &[]), status);
        assert!(error.contains(expected), "{expected:?} in {error}");
    }
    assert!(newest.is_dir());
}

/// A limit on the size of a file, in blocks, stands for the full disk: a write fails in the same place, and nothing else is disturbed.
#[cfg(unix)]
fn limited(path: &Path, blocks: u32, args: &str) -> std::process::Output {
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" train {args}");
    let mut command = std::process::Command::new("sh");
    command.current_dir(path).args(["-c", &script, env!("CARGO_BIN_EXE_llama_pc")]);
    command.output().expect("a shell")
}

#[cfg(unix)]
#[test]
fn a_save_that_finds_the_disk_full_leaves_the_last_checkpoint() {
    let (folder, _) = saved();
    let path = folder.path();
    let limit = |blocks| limited(path, blocks, "--resume run --steps 8");
    let output = limit(100);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("error: cannot write run/checkpoints/step-6.partial/model.safetensors: File too large"), "{text}");
    assert!(text.contains("hint: newest checkpoint: step-4; to resume: llama_pc train --resume run"), "{text}");
    let mut left: Vec<_> =
        fs::read_dir(path.join("run/checkpoints")).expect("checkpoints").map(|e| e.expect("one").file_name()).collect();
    left.sort();
    assert_eq!(left, ["step-2", "step-4"]);
    assert!(limit(100_000).status.success());
    let steps: Vec<u64> = metrics(path, "run").iter().map(|row| row["step"].as_u64().expect("a step")).collect();
    assert_eq!(steps, (1..=8).collect::<Vec<_>>());
}

#[test]
fn a_run_from_given_weights_can_be_resumed_before_its_first_step() {
    let (folder, _) = saved();
    let path = folder.path();
    let extra = ["pc.level=1", "train.steps=4", "train.checkpoint_every=2", "train.val_every=0"];
    train(path, "second", &extra).args(["--init", "run"]).assert().success();
    // As if it had been killed after it had begun.
    train(path, "third", &[&extra[..], &["train.keep_checkpoints=9"]].concat()).args(["--init", "run"]).assert().success();
    for step in ["step-2", "step-4"] {
        fs::remove_dir_all(path.join("third/checkpoints").join(step)).expect("it is removed");
    }
    resume(path, "third", &[]).assert().success();
    assert_same_run(path, "second", "third", 4);
}

/// Its initial weights are in no seed: it would go on from others.
#[cfg(unix)]
#[test]
fn a_run_from_given_weights_that_cannot_save_them_cannot_be_resumed() {
    let (folder, _) = saved();
    let output = limited(folder.path(), 100, "--init run --out second --config run/config.toml --set train.steps=20");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("error: cannot write second/checkpoints/step-0.partial/model.safetensors: File too large"), "{text}");
    let error = error_of(&mut resume(folder.path(), "second", &[]), 1);
    assert!(error.contains("second: found no config.toml, expected a run"), "{error}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_folder_may_have_a_name_that_is_no_text() {
    use std::os::unix::ffi::OsStrExt;
    let folder = prepared();
    let name = std::ffi::OsStr::from_bytes(b"run-\xff");
    let mut command = llama_pc(folder.path());
    command.arg("train").arg("--out").arg(name).arg("--set").args(TINY).args(["train.steps=2", "train.checkpoint_every=1"]);
    command.assert().success();
    assert!(folder.path().join(name).join("checkpoints/step-2/model.safetensors").is_file());
    let mut command = llama_pc(folder.path());
    command.arg("train").arg("--resume").arg(name).args(["--steps", "3"]);
    let output = command.assert().success().get_output().stderr.clone();
    assert!(String::from_utf8_lossy(&output).contains("resuming after step 2"));
}
