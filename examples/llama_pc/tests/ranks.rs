//! Several ranks under `mpirun` on this machine: the bits of one process, and a good end whatever happens to a rank. Only with the
//! feature `mpi`.
#![cfg(all(feature = "mpi", target_os = "linux"))]

mod common;
#[path = "ranks/failures.rs"]
mod failures;
#[path = "ranks/hosts.rs"]
mod hosts;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::{TINY, prepared};
use serde_json::Value;

/// Nothing here takes longer, even on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// What every run of this file trains: layers, moments, micro-batches and a validation, on any divisor of four ranks.
const RICH: [&str; 8] = [
    "pc.level=2",
    "optimizer.kind=muon",
    "schedule.kind=constant",
    "train.grad_accumulation=4",
    "train.replicas=4",
    "train.batch_size=1",
    "train.val_every=3",
    "train.checkpoint_every=2",
];

/// Tables so large that they are divided by rows, and those of each rank are in several places of the checkpoint.
const TABLES: &str = "model.vocab=2048";

/// One test at a time: each has more processes than this machine has cores.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `mpirun` on loopback, unless `--mca` names another network, for any user and any number of cores. Its children write to files.
fn mpirun(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("mpirun");
    command.current_dir(folder).args(["--bind-to", "none"]).args(args);
    for (name, value) in [
        ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
        ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
        ("OMPI_MCA_rmaps_base_oversubscribe", "1"),
        ("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe"),
        ("OMPI_MCA_mpi_yield_when_idle", "1"),
        ("OMPI_MCA_pml", "ob1"),
        ("OMPI_MCA_btl", "self,tcp"),
        ("OMPI_MCA_btl_tcp_if_include", "lo"),
    ] {
        command.env(name, value);
    }
    command
}

/// A job in the background, with what it says.
struct Job {
    child: Child,
    said: PathBuf,
}

impl Job {
    fn start(mut command: Command) -> Self {
        let said = tempfile::NamedTempFile::new().expect("a file").into_temp_path().keep().expect("a file");
        let file = fs::File::create(&said).expect("a file");
        command.stdin(Stdio::null()).stdout(file.try_clone().expect("a file")).stderr(file);
        Self { child: command.spawn().expect("mpirun starts"), said }
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.said).expect("what it said")
    }

    /// Waits for the end: status and what was said. A job that takes too long fails the test.
    fn end(mut self) -> (Option<i32>, String) {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a process") {
                let text = self.text();
                fs::remove_file(&self.said).expect("the file");
                return (status.code(), text);
            }
            if started.elapsed() > LIMIT {
                let _ = self.child.kill();
                panic!("still running after {LIMIT:?}: {}", self.text());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until a file is there.
    fn wait_for(&mut self, path: &Path) {
        let started = Instant::now();
        while !path.exists() {
            let ended = self.child.try_wait().expect("a process");
            assert!(ended.is_none() && started.elapsed() < LIMIT, "no {}: {}", path.display(), self.text());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends a signal to `mpirun` itself.
    fn signal(&self, signal: &str) {
        kill(signal, self.child.id());
    }
}

fn kill(signal: &str, process: u32) {
    // The shell's own: a container may have no other.
    let status = Command::new("sh").args(["-c", &format!("kill -{signal} {process}")]).status();
    assert!(status.expect("a shell").success());
}

/// The process of a rank that trains `run` in this folder.
fn process_of(folder: &Path, run: &str, rank: usize) -> u32 {
    let folder = fs::canonicalize(folder).expect("the folder");
    let mark = format!("OMPI_COMM_WORLD_RANK={rank}");
    let is_it = |process: &u32| {
        let read = |file: &str| fs::read(format!("/proc/{process}/{file}")).unwrap_or_default();
        let has = |bytes: &[u8], word: &str| bytes.split(|byte| *byte == 0).any(|part| part == word.as_bytes());
        let is_here = fs::read_link(format!("/proc/{process}/cwd")).is_ok_and(|cwd| cwd == folder);
        is_here && has(&read("environ"), &mark) && has(&read("cmdline"), run) && has(&read("cmdline"), "train")
    };
    let entries = fs::read_dir("/proc").expect("processes");
    let processes = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    processes.filter(is_it).last().expect("a process of that rank")
}

fn program() -> &'static str {
    env!("CARGO_BIN_EXE_llama_pc")
}

/// Arguments that begin a run.
fn begin<'a>(run: &'a str, extra: &[&'a str]) -> Vec<&'a str> {
    [&["train", "--out", run, "--set"], &TINY[..], &RICH[..], extra].concat()
}

fn ranks(folder: &Path, count: &str, args: &[&str]) -> Job {
    let launch = [&["-n", count, program()], args].concat();
    Job::start(mpirun(folder, &launch))
}

/// Runs on that many ranks, or without `mpirun` on one, and succeeds.
fn run(folder: &Path, count: &str, args: &[&str]) -> String {
    let job = match count {
        "1" => {
            let mut command = Command::new(program());
            command.current_dir(folder).args(args);
            Job::start(command)
        }
        _ => ranks(folder, count, args),
    };
    let (status, text) = job.end();
    assert_eq!(status, Some(0), "{text}");
    text
}

/// Losses, norms and learning rates, and the files of the last checkpoint, are the same.
fn assert_same(folder: &Path, expected: &str, found: &str, step: u64) {
    for file in ["model.safetensors", "optimizer.safetensors"] {
        let bytes = |run: &str| fs::read(folder.join(run).join(format!("checkpoints/step-{step}")).join(file)).expect("a file");
        assert!(bytes(expected) == bytes(found), "{file} of {found} differs");
    }
    let rows = |run: &str| -> Vec<Value> {
        let text = fs::read_to_string(folder.join(run).join("metrics.jsonl")).expect("metrics");
        let row = |line| {
            let mut row: Value = serde_json::from_str(line).expect("a line of JSON");
            let keys = ["tokens_per_second", "seconds", "memory_bytes", "ranks"];
            keys.iter().for_each(|key| drop(row.as_object_mut().expect("an object").remove(*key)));
            row
        };
        text.lines().map(row).collect()
    };
    assert_eq!(rows(expected), rows(found));
}

#[test]
fn a_run_has_the_same_bits_on_1_2_and_4_ranks() {
    let _turn = turn();
    let folder = prepared();
    for count in ["1", "2", "4"] {
        run(folder.path(), count, &begin(count, &[TABLES, "train.steps=5"]));
    }
    assert_same(folder.path(), "1", "2", 5);
    assert_same(folder.path(), "1", "4", 5);
}

#[test]
fn a_run_goes_on_with_fewer_ranks() {
    let _turn = turn();
    let folder = prepared();
    // The last step of a run is validated, too: of a part, one that is anyway.
    run(folder.path(), "1", &begin("whole", &[TABLES, "train.steps=9"]));
    run(folder.path(), "4", &begin("run", &[TABLES, "train.steps=3"]));
    run(folder.path(), "2", &["train", "--resume", "run", "--steps", "6"]);
    let text = run(folder.path(), "1", &["train", "--resume", "run", "--steps", "9"]);
    assert!(text.contains("resuming after step 6"), "{text}");
    assert_same(folder.path(), "whole", "run", 9);
}

#[test]
fn a_run_without_replicas_has_one_for_each_rank_and_keeps_them() {
    let _turn = turn();
    let folder = prepared();
    run(folder.path(), "1", &begin("whole", &["train.replicas=2", "train.steps=9"]));
    let mut args = begin("run", &["train.steps=3"]);
    args.retain(|arg| !arg.starts_with("train.replicas="));
    let text = run(folder.path(), "2", &args);
    assert_eq!(text.matches("train.replicas = 2, one for each rank").count(), 1, "{text}");
    let config = fs::read_to_string(folder.path().join("run/config.toml")).expect("a configuration");
    assert!(config.lines().any(|line| line == "replicas = 2"), "{config}");
    run(folder.path(), "1", &["train", "--resume", "run", "--steps", "6"]);
    run(folder.path(), "2", &["train", "--resume", "run", "--steps", "9"]);
    assert_same(folder.path(), "whole", "run", 9);
    let (status, text) = ranks(folder.path(), "4", &["train", "--resume", "run", "--steps", "12"]).end();
    assert_eq!(status, Some(2), "{text}");
    assert!(text.contains("train.replicas: found 2, expected a multiple of the 4 ranks"), "{text}");
    // A run of one process keeps its plain sum.
    let mut args = begin("alone", &["train.steps=3"]);
    args.retain(|arg| !arg.starts_with("train.replicas="));
    run(folder.path(), "1", &args);
    let (status, text) = ranks(folder.path(), "2", &["train", "--resume", "alone", "--steps", "6"]).end();
    assert_eq!(status, Some(2), "{text}");
    assert!(text.contains("train.replicas: found 1, expected a multiple of the 2 ranks"), "{text}");
    // One micro-batch cannot be shared out.
    let mut args = begin("coarse", &["train.grad_accumulation=1", "train.batch_size=4"]);
    args.retain(|arg| !arg.starts_with("train.replicas="));
    let (status, text) = ranks(folder.path(), "2", &args).end();
    assert_eq!(status, Some(2), "{text}");
    assert!(text.contains("with --set train.grad_accumulation=2 train.batch_size=2"), "{text}");
}

fn newest(run: &Path) -> u64 {
    let entries = fs::read_dir(run.join("checkpoints")).expect("checkpoints");
    let step = |name: String| name.strip_prefix("step-")?.parse().ok();
    entries.filter_map(|entry| step(entry.ok()?.file_name().into_string().ok()?)).max().expect("a checkpoint")
}

#[test]
fn sigusr1_saves_and_ends_all_at_one_step() {
    let _turn = turn();
    let folder = prepared();
    let mut job = ranks(folder.path(), "2", &begin("run", &["train.steps=100000"]));
    job.wait_for(&folder.path().join("run/checkpoints/step-2"));
    job.signal("USR1");
    let (status, text) = job.end();
    assert_eq!(status, Some(0), "{text}");
    assert_eq!(text.matches("interrupted after").count(), 1, "{text}");
    let step = newest(&folder.path().join("run"));
    let rows = fs::read_to_string(folder.path().join("run/metrics.jsonl")).expect("metrics");
    assert_eq!(rows.lines().count() as u64, step, "the last step was saved");
}

/// What Ctrl-C makes `mpirun` do, too.
#[test]
fn sigterm_to_mpirun_saves_before_it_kills() {
    let _turn = turn();
    let folder = prepared();
    let launch = ["--mca", "odls_base_sigkill_timeout", "10", "-n", "2", program()];
    let mut job = Job::start(mpirun(folder.path(), &[&launch[..], &begin("run", &["train.steps=100000"])[..]].concat()));
    job.wait_for(&folder.path().join("run/checkpoints/step-2"));
    job.signal("TERM");
    let (_, text) = job.end();
    let read = |file: &str| fs::read_to_string(folder.path().join("run").join(file)).expect("a file of the run");
    assert!(read("log.txt").contains("interrupted after"), "{text}");
    let step = newest(&folder.path().join("run"));
    assert_eq!(read("metrics.jsonl").lines().count() as u64, step, "the last step was saved: {text}");
}
