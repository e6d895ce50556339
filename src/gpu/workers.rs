//! Threads for work that comes in bursts: as many as the machine has cores, as long as there is something to do.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    running: usize,
    threads: Vec<JoinHandle<()>>,
}

/// See the module. Dropping it drops the jobs that have not begun and waits for the others: a driver must not compile on while the
/// process ends.
#[derive(Default)]
pub(super) struct Workers(Arc<Mutex<State>>);

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Workers {
    /// Runs a job on a thread; in this one if the system has none left.
    pub(super) fn run(&self, job: Job) {
        let mut state = lock(&self.0);
        state.jobs.push_back(job);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        if state.running == cores {
            return;
        }
        state.running += 1;
        state.threads.retain(|thread| !thread.is_finished());
        let shared = self.0.clone();
        match std::thread::Builder::new().name("polytape compiler".into()).spawn(move || work(&shared)) {
            Ok(thread) => state.threads.push(thread),
            Err(_) => {
                drop(state);
                work(&self.0);
            }
        }
    }
}

fn work(state: &Mutex<State>) {
    loop {
        let job = {
            let mut state = lock(state);
            let Some(job) = state.jobs.pop_front() else {
                state.running -= 1;
                return;
            };
            job
        };
        // A job that panics has said so to whoever waits for it.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        let threads = {
            let mut state = lock(&self.0);
            state.jobs.clear();
            std::mem::take(&mut state.threads)
        };
        for thread in threads {
            let _ = thread.join(); // `work` catches panics
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::channel;

    #[test]
    fn every_job_runs_even_after_one_that_panics() {
        let workers = Workers::default();
        let (sender, receiver) = channel();
        for i in 0..50 {
            let sender = sender.clone();
            workers.run(Box::new(move || {
                sender.send(i).expect("someone listens");
                assert!(i % 10 != 3, "expected by the test");
            }));
        }
        let mut done: Vec<i32> = receiver.iter().take(50).collect();
        done.sort_unstable();
        assert_eq!(done, (0..50).collect::<Vec<_>>());
    }

    #[test]
    fn dropping_waits_for_what_has_begun() {
        let done = Arc::new(AtomicUsize::new(0));
        let (began, begins) = channel();
        let workers = Workers::default();
        let counter = done.clone();
        workers.run(Box::new(move || {
            began.send(()).expect("someone listens");
            std::thread::sleep(std::time::Duration::from_millis(20));
            counter.store(1, Ordering::SeqCst);
        }));
        begins.recv().expect("it begins");
        drop(workers);
        assert_eq!(done.load(Ordering::SeqCst), 1);
    }
}
