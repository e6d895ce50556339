//! Several processes on one study: which run is whose, and the processes that a study starts beside itself.
//!
//! Small models leave most of a processor idle: several runs at a time, a thread each, take less time than one after another with all
//! threads. Processes, because a run has its process's progress, log and signals.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::arms::Spec;
use crate::terminal::failure::Failure;
use crate::terminal::output;

/// Locks a name for this process until the file is dropped or the process ends; `None` while another process holds it.
fn take(out: &Path, name: &str) -> Result<Option<File>, Failure> {
    let folder = out.join("locks");
    std::fs::create_dir_all(&folder).map_err(|error| Failure::io("create", &folder, &error))?;
    let path = folder.join(name);
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|error| Failure::io("open", &path, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(Failure::io("lock", &path, &error)),
    }
}

/// Locks a run, which this process then trains.
pub fn take_run(out: &Path, spec: &Spec) -> Result<Option<File>, Failure> {
    take(out, &spec.name())
}

/// Locks the study itself: one process writes its plan and its page.
pub fn take_study(out: &Path) -> Result<File, Failure> {
    take(out, "study")?.ok_or_else(|| {
        Failure::other(format!("{}: found another process that leads this study, expected none", out.display()))
            .hint("--jobs N trains several runs at a time")
    })
}

/// How long workers have to exit by themselves: enough for a step and a checkpoint.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Processes that train runs of a study until none is left.
pub struct Workers {
    running: Vec<(Child, PathBuf)>,
}

impl Workers {
    /// Starts `count` workers with `arguments`; each writes its output to `worker-N.log` in the folder.
    pub fn start(out: &Path, count: usize, arguments: &[String]) -> Result<Self, Failure> {
        let program = std::env::current_exe().map_err(|error| Failure::other(format!("cannot find this program: {error}")))?;
        let mut workers = Self { running: Vec::new() };
        for number in 1..=count {
            let path = out.join(format!("worker-{number}.log"));
            let log = OpenOptions::new().create(true).append(true).open(&path);
            let log = log.map_err(|error| Failure::io("open", &path, &error))?;
            let errors = log.try_clone().map_err(|error| Failure::io("open", &path, &error))?;
            let child = Command::new(&program).args(arguments).stdin(Stdio::null()).stdout(log).stderr(errors).spawn();
            workers.running.push((child.map_err(|error| Failure::io("start", &program, &error))?, path));
        }
        Ok(workers)
    }

    /// Warns once of each worker that has failed; the others take over its runs.
    pub fn check(&mut self) {
        self.running.retain_mut(|(child, log)| match child.try_wait() {
            Ok(None) => true,
            Ok(Some(status)) if status.success() => false,
            found => {
                let found = found
                    .map_or_else(|error| error.to_string(), |status| status.map_or(String::new(), |status| status.to_string()));
                output::note(&format!("warning: a worker has ended: {found}; {} says why", log.display()));
                false
            }
        });
    }

    /// Waits until all have ended, as they do after the last run or Ctrl-C.
    fn wait(&mut self) {
        let asked = Instant::now();
        while !self.running.is_empty() && asked.elapsed() < TIMEOUT {
            self.check();
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.wait();
        for (child, _) in &mut self.running {
            // What it was training can be resumed.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::arms::{Arm, Optimizer};
    use super::super::grid::Lr;
    use super::*;

    #[test]
    fn a_run_is_of_one_process_until_it_lets_go() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let [one, two] = [1, 2].map(|seed| Spec::new(0, Arm::plain(Optimizer::Muon), Lr(1), seed));
        let taken = take_run(folder.path(), &one).expect("a lock");
        assert!(taken.is_some());
        assert!(take_run(folder.path(), &one).expect("a lock").is_none());
        assert!(take_run(folder.path(), &two).expect("a lock").is_some());
        drop(taken);
        assert!(take_run(folder.path(), &one).expect("a lock").is_some());
    }

    #[test]
    fn only_one_process_leads() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let _lead = take_study(folder.path()).expect("a lock");
        let failure = take_study(folder.path()).expect_err("taken").to_string();
        assert!(failure.contains("found another process that leads this study") && failure.contains("--jobs"), "{failure}");
    }
}
