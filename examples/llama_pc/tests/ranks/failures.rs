//! Whatever happens to one rank, all end, the newest checkpoint is whole, and the run goes on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::{Job, begin, kill, mpirun, newest, process_of, program, ranks, run, turn};
use crate::common::{prepared, train};

/// One line says which rank failed, where and in which step; another one which checkpoint is the newest, and how to resume.
fn assert_told(text: &str, rank: usize, problem: &str) {
    let line = text.lines().find(|line| line.starts_with("error: rank ")).unwrap_or_default();
    let who = format!("rank {rank} (host ");
    assert!(line.contains(&who) && line.contains(": step ") && line.contains(problem), "{text}");
    assert_resumable(text);
}

fn assert_resumable(text: &str) {
    let line = text.lines().find(|line| line.contains("to resume: ")).unwrap_or_default();
    assert!(line.contains("newest checkpoint: step-") && line.contains("mpirun -n 4 llama_pc train --resume "), "{text}");
}

/// The run has no half checkpoint that anything would take for a whole one: it takes two more steps on fewer ranks.
fn assert_goes_on(folder: &Path, path: &str) {
    let newest = newest(&folder.join(path));
    run(folder, "2", &["train", "--resume", path, "--steps", &(newest + 2).to_string()]);
}

/// `mpirun` of several programs: the number of ranks, the folder and the program of each.
fn different(folder: &Path, parts: &[(&str, &Path, &Path)], args: &[&str]) -> (Option<i32>, String) {
    let mut launch: Vec<String> = Vec::new();
    for (count, folder, program) in parts {
        let (folder, program) = (folder.display().to_string(), program.display().to_string());
        launch.extend(["-n", count, "--wdir", &folder, &program].map(str::to_owned));
        launch.extend(args.iter().map(|arg| (*arg).to_owned()));
        launch.push(":".to_owned());
    }
    launch.pop();
    Job::start(mpirun(folder, &launch.iter().map(String::as_str).collect::<Vec<_>>())).end()
}

/// A program of these shell commands.
fn script(folder: &Path, commands: &str) -> PathBuf {
    let path = folder.join("script");
    fs::write(&path, format!("#!/bin/sh\n{commands}\n")).expect("a script");
    let chmod = Command::new("chmod").arg("+x").arg(&path).status();
    assert!(chmod.expect("chmod runs").success());
    path
}

#[test]
fn a_killed_rank_ends_all_and_the_run_goes_on() {
    let _turn = turn();
    let folder = prepared();
    let mut job = ranks(folder.path(), "4", &begin("run", &["train.steps=100000"]));
    job.wait_for(&folder.path().join("run/checkpoints/step-4"));
    kill("KILL", process_of(folder.path(), "run", 2));
    let (status, text) = job.end();
    assert!(status != Some(0) && text.contains("rank 2"), "{text}");
    assert_resumable(&text);
    let newest = newest(&folder.path().join("run"));
    assert!(newest >= 4);
    run(folder.path(), "2", &["train", "--resume", "run", "--steps", &(newest + 1).to_string()]);
    run(folder.path(), "1", &["train", "--resume", "run", "--steps", &(newest + 3).to_string()]);
    run(folder.path(), "1", &begin("whole", &[&format!("train.steps={}", newest + 3)]));
    // An end writes a validation, too: of the interrupted run after its second process.
    for file in ["model.safetensors", "optimizer.safetensors"] {
        let bytes = |run: &str| fs::read(folder.path().join(format!("{run}/checkpoints/step-{}/{file}", newest + 3)));
        assert!(bytes("whole").expect("a file") == bytes("run").expect("a file"), "{file}");
    }
}

/// Rank 0 prints what all have in common, and writes all files.
#[test]
fn of_a_killed_first_rank_the_second_tells() {
    let _turn = turn();
    let folder = prepared();
    // A second, which is Open MPI's default, is short where cores are busy.
    let launch = ["--mca", "odls_base_sigkill_timeout", "5", "-n", "4", program()];
    let mut job = Job::start(mpirun(folder.path(), &[&launch[..], &begin("run", &["train.steps=100000"])].concat()));
    job.wait_for(&folder.path().join("run/checkpoints/step-4"));
    kill("KILL", process_of(folder.path(), "run", 0));
    let (status, text) = job.end();
    assert!(status != Some(0) && text.contains("rank 0"), "{text}");
    assert!(text.lines().any(|line| line.starts_with("warning: rank 1 (host ") && line.contains("received SIGTERM")), "{text}");
    assert_resumable(&text);
    assert_goes_on(folder.path(), "run");
}

#[test]
fn a_stopped_rank_is_named_and_all_end() {
    let _turn = turn();
    let folder = prepared();
    let args = [&["train", "--patience", "6s"], &begin("run", &["train.steps=100000"])[1..]].concat();
    let mut job = ranks(folder.path(), "4", &args);
    job.wait_for(&folder.path().join("run/checkpoints/step-4"));
    kill("STOP", process_of(folder.path(), "run", 2));
    let started = Instant::now();
    let (status, text) = job.end();
    assert!(started.elapsed() < Duration::from_secs(30), "{text}");
    assert_eq!(status, Some(1), "{text}");
    assert_told(&text, 2, "sent nothing for");
    assert_goes_on(folder.path(), "run");
}

/// Its address space may grow no more: what it asks for next is refused, as by a system without memory.
#[test]
fn a_rank_without_memory_ends_all() {
    let _turn = turn();
    let folder = prepared();
    let mut job = ranks(folder.path(), "4", &begin("run", &["train.steps=100000"]));
    job.wait_for(&folder.path().join("run/checkpoints/step-4"));
    let limit = Command::new("prlimit").args(["--as=1", "--pid", &process_of(folder.path(), "run", 2).to_string()]).status();
    assert!(limit.expect("prlimit runs").success());
    let (status, text) = job.end();
    assert!(status != Some(0) && text.contains("rank 2"), "{text}");
    assert_resumable(&text);
    assert_goes_on(folder.path(), "run");
}

/// A file system of its own, where this user may mount one.
struct Disk(PathBuf);

impl Disk {
    fn mount(path: PathBuf, args: &[&str]) -> Option<Self> {
        fs::create_dir(&path).expect("a folder");
        let mount = Command::new("mount").args(args).arg(&path).output();
        let mounted = mount.is_ok_and(|output| output.status.success()).then_some(Self(path));
        if mounted.is_none() {
            eprintln!("this user may not mount a file system, so ranks are not tested with one");
        }
        mounted
    }

    /// A small one in memory.
    fn small(path: PathBuf, size: &str) -> Option<Self> {
        Self::mount(path, &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
    }

    /// One of 64 MiB that can be frozen.
    fn ext4(path: PathBuf) -> Option<Self> {
        let image = path.with_extension("image");
        fs::File::create(&image).and_then(|file| file.set_len(64 << 20)).expect("an image");
        // Where it is missing, mounting fails.
        let _ = Command::new("mkfs.ext4").arg("-q").arg(&image).status();
        Self::mount(path, &["-o", "loop", &image.display().to_string()])
    }

    /// Whatever writes to it waits until it is thawed.
    fn freeze(&self, flag: &str) {
        assert!(Command::new("fsfreeze").arg(flag).arg(&self.0).status().expect("fsfreeze runs").success());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("--unfreeze").arg(&self.0).output();
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_ends_all() {
    let _turn = turn();
    let folder = prepared();
    let Some(disk) = Disk::small(folder.path().join("small"), "1500k") else { return };
    // The fourth checkpoint finds no place.
    let (status, text) = ranks(folder.path(), "4", &begin("small/run", &["train.steps=100000"])).end();
    assert_eq!(status, Some(1), "{text}");
    assert_told(&text, 0, "No space left on device");
    assert!(text.contains("newest checkpoint: step-6"), "{text}");
    let left = fs::read_dir(disk.0.join("run/checkpoints")).expect("checkpoints").count();
    assert_eq!((left, newest(&disk.0.join("run"))), (3, 6), "{text}");

    // Metrics find none: a file takes what is left.
    let fill = || fs::write(disk.0.join("fill"), vec![0; 4 << 20]);
    fs::remove_dir_all(disk.0.join("run/checkpoints/step-2")).expect("it is removed");
    let args = ["train", "--resume", "small/run", "--steps", "100000", "--set", "train.checkpoint_every=0"];
    let mut job = ranks(folder.path(), "2", &args);
    job.wait_for(&disk.0.join("run/events.out.tfevents.0000000006.polytape"));
    assert!(fill().is_err());
    let (status, text) = job.end();
    assert_eq!(status, Some(1), "{text}");
    assert!(text.contains("error: rank 0 (host ") && text.contains("No space left on device"), "{text}");
    fs::remove_file(disk.0.join("fill")).expect("it is removed");
    assert_goes_on(folder.path(), "small/run");
}

#[test]
fn another_rank_needs_no_disk() {
    let _turn = turn();
    let folder = prepared();
    let Some(disk) = Disk::small(folder.path().join("small"), "64k") else { return };
    assert!(fs::write(disk.0.join("fill"), vec![0; 1 << 20]).is_err());
    let here = folder.path();
    let script = script(here, &format!("HOME={0} XDG_CACHE_HOME={0} TMPDIR={0} exec {1} \"$@\"", disk.0.display(), program()));
    let parts = [("1", here, Path::new(program())), ("1", here, script.as_path())];
    let (status, text) = different(here, &parts, &begin("run", &["train.steps=3"]));
    assert_eq!(status, Some(0), "{text}");
    let told = text.lines().find(|line| line.starts_with("warning: ") && !line.contains("rank "));
    assert_eq!(told, None, "{text}");
}

/// Here one that takes nothing for twice as long as ranks wait for each other.
#[test]
fn ranks_wait_for_the_first_ones_disk() {
    let _turn = turn();
    let folder = prepared();
    let Some(disk) = Disk::ext4(folder.path().join("slow")) else { return };
    let args = [&["train", "--patience", "4s"], &begin("slow/run", &["train.steps=100000"])[1..]].concat();
    let mut job = ranks(folder.path(), "4", &args);
    job.wait_for(&disk.0.join("run/checkpoints/step-4"));
    disk.freeze("--freeze");
    std::thread::sleep(Duration::from_secs(9));
    let step = newest(&disk.0.join("run"));
    disk.freeze("--unfreeze");
    job.wait_for(&disk.0.join(format!("run/checkpoints/step-{}", step + 6)));
    job.signal("USR1");
    let (status, text) = job.end();
    assert_eq!(status, Some(0), "{text}");
}

/// A copy of the prepared data, of the runs in it, too.
fn copied(from: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let copy = Command::new("cp").arg("-r").arg(format!("{}/.", from.display())).arg(folder.path()).status();
    assert!(copy.expect("cp runs").success());
    folder
}

/// Changes a bit of a token, four bytes, in the middle of the part.
fn change(part: &Path) {
    let shards = fs::read_dir(part).expect("shards").map(|entry| entry.expect("a file").path());
    let shard = shards.filter(|path| path.extension().is_some_and(|extension| extension == "bin")).last().expect("a shard");
    let mut bytes = fs::read(&shard).expect("tokens");
    let middle = bytes.len() / 8 * 4;
    bytes[middle] ^= 1;
    fs::write(shard, bytes).expect("tokens");
}

#[test]
fn ranks_that_do_not_agree_are_refused() {
    let _turn = turn();
    let folder = prepared();
    let (one, other) = (begin("run", &["train.steps=5"]), begin("run", &["train.steps=6"]));
    let launch = [&["-n", "1", program()], &one[..], &[":", "-n", "1", program()], &other[..]].concat();
    let (status, text) = Job::start(mpirun(folder.path(), &launch)).end();
    assert_eq!(status, Some(2), "{text}");
    assert!(text.contains("configuration: found steps = 6 on rank 1 (host "), "{text}");
    assert_eq!(text.lines().filter(|line| line.starts_with("error: ")).count(), 1, "told once: {text}");

    let (status, text) = ranks(folder.path(), "4", &begin("run", &["train.replicas=2"])).end();
    assert_eq!(status, Some(2), "{text}");
    assert!(text.contains("train.replicas: found 2, expected a multiple of the 4 ranks"), "{text}");
    assert!(!folder.path().join("run").exists());
}

#[test]
fn a_rank_with_another_program_is_refused() {
    let _turn = turn();
    let folder = prepared();
    let other = folder.path().join("other");
    fs::copy(program(), &other).expect("a copy");
    // What the loader ignores.
    let mut bytes = fs::read(&other).expect("the program");
    bytes.push(0);
    fs::write(&other, bytes).expect("the program");
    let here = folder.path();
    let parts = [("2", here, Path::new(program())), ("1", here, other.as_path()), ("1", here, Path::new(program()))];
    let (status, text) = different(here, &parts, &begin("run", &["train.steps=3"]));
    assert_eq!(status, Some(2), "{text}");
    assert!(text.contains("program: found version ") && text.contains("on rank 2 (host "), "{text}");
    assert!(!here.join("run").exists());
}

#[test]
fn a_rank_with_other_data_or_another_checkpoint_is_refused() {
    let _turn = turn();
    let folder = prepared();
    train(folder.path(), "begun", &["train.steps=2"]).args(["--set"]).args(super::RICH).assert().success();
    let refused = |change: &dyn Fn(&Path), args: &[&str], problem: &str| {
        let other = copied(folder.path());
        change(other.path());
        let parts = [("3", folder.path(), Path::new(program())), ("1", other.path(), Path::new(program()))];
        let (status, text) = different(folder.path(), &parts, args);
        assert_eq!(status, Some(2), "{text}");
        assert!(text.contains(problem) && text.contains(" on rank 3 (host "), "{problem}: {text}");
    };
    let new = begin("run", &["train.steps=3"]);
    refused(&|other| change(&other.join("data/train")), &new, "data.train: found ");
    refused(&|other| change(&other.join("data/val")), &new, "data.val: found ");
    assert!(!folder.path().join("run").exists());
    let go_on = |other: &Path| run(other, "1", &["train", "--resume", "begun", "--steps", "4"]);
    refused(&|other| drop(go_on(other)), &["train", "--resume", "begun", "--steps", "6"], "checkpoint: found step 4 with");
    let init = [&new[..], &["--init", "begun"]].concat();
    refused(&|other| drop(go_on(other)), &init, "initial weights: found the checksum ");
}

#[test]
fn a_loss_that_is_not_finite_is_told_once() {
    let _turn = turn();
    let folder = prepared();
    let job = ranks(folder.path(), "4", &begin("run", &["optimizer.lr=1e30", "train.steps=20"]));
    let (status, text) = job.end();
    assert_eq!(status, Some(1), "{text}");
    let told = text.lines().filter(|line| line.starts_with("error: ")).collect::<Vec<_>>();
    assert!(told.len() == 1 && told[0].starts_with("error: rank 0 ") && told[0].contains("step "), "{text}");
}

#[test]
fn a_rank_may_start_late_but_not_never() {
    let _turn = turn();
    let folder = prepared();
    let here = folder.path();
    let begin = begin("run", &["train.steps=3"]);
    let start = |patience: &str, commands: &str| {
        let args = [&["train", "--patience", patience], &begin[1..]].concat();
        let script = script(here, commands);
        different(here, &[("1", here, Path::new(program())), ("1", here, script.as_path())], &args)
    };
    let (status, text) = start("3s", "exec sleep 100");
    assert!(status != Some(0) && text.contains("MPI did not start within 15 s: a rank has not started"), "{text}");
    assert!(!here.join("run").exists());
    // Longer than --patience, shorter than five times.
    let (status, text) = start("6s", &format!("sleep 9\nexec {} \"$@\"", program()));
    assert_eq!(status, Some(0), "{text}");
}
