//! Fork-join over the cores: the caller and waiting threads take numbered tasks from one counter.
//!
//! A training step forks some hundred times, for tens of microseconds each. Rayon takes 15 µs to fork and join here, this 0.2 µs
//! while its threads are still spinning from the fork before.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// Polls before a waiting thread leaves its core to others between polls: some 20 µs, about the time between two forks.
const POLLS: u32 = 1_000;
/// Time before a waiting thread goes to sleep. Waking it may take 100 µs on a virtual machine.
const AWAKE: Duration = Duration::from_millis(2);

/// A number of threads, one of which is the caller of [`Threads::run`].
pub(crate) struct Threads {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    running: Mutex<()>,
}

/// A task's number → its work.
type Task<'a> = dyn Fn(usize) + Sync + 'a;

struct Shared {
    /// The fork in progress: [`OPEN`] while threads may join it, its number, and how many have joined and not yet left.
    gate: AtomicU64,
    /// Written only while the gate is closed and nobody is inside.
    fork: UnsafeCell<Option<(usize, *const Task<'static>)>>,
    next: AtomicUsize,
    sleepers: AtomicUsize,
    asleep: Mutex<()>,
    wake: Condvar,
    ended: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `fork` is written by the thread that runs a fork, before it opens the gate and after everybody has left; others read it
// between joining and leaving. Tasks are Sync.
unsafe impl Send for Shared {}
unsafe impl Sync for Shared {}

const OPEN: u64 = 1 << 63;
const NUMBER: u64 = 1 << 32;
const INSIDE: u64 = NUMBER - 1;

impl Threads {
    /// `count` threads, counting the caller.
    pub(crate) fn new(count: usize) -> Result<Self> {
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(0),
            fork: UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            sleepers: AtomicUsize::new(0),
            asleep: Mutex::new(()),
            wake: Condvar::new(),
            ended: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let spawn = |at: usize| {
            let shared = shared.clone();
            let thread = std::thread::Builder::new().name(format!("polytape {at}"));
            thread.spawn(move || shared.wait()).map_err(|error| Error::Device(format!("cannot start a thread: {error}")))
        };
        let workers = (1..count).map(spawn).collect::<Result<_>>()?;
        Ok(Self { shared, workers, running: Mutex::new(()) })
    }

    /// Runs tasks 0 to `tasks - 1`, each once, in any order and on any thread; returns when all are done. A task must not call it.
    pub(crate) fn run(&self, tasks: usize, task: &Task<'_>) {
        if tasks <= 1 || self.workers.is_empty() {
            return (0..tasks).for_each(task);
        }
        let _running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. The pointer is used by threads inside the gate, and this function does not return
        // before they have left and the gate is closed.
        let task: &Task<'static> = unsafe { std::mem::transmute(task) };
        // SAFETY: the gate is closed and nobody is inside; `running` keeps other forks out.
        unsafe { *shared.fork.get() = Some((tasks, task)) };
        shared.next.store(0, Ordering::Relaxed);
        let number = (shared.gate.load(Ordering::Relaxed) & !(OPEN | INSIDE)).wrapping_add(NUMBER) & !OPEN;
        shared.gate.store(OPEN | number, Ordering::SeqCst);
        if shared.sleepers.load(Ordering::SeqCst) > 0 {
            let _asleep = shared.asleep.lock().unwrap_or_else(PoisonError::into_inner);
            shared.wake.notify_all();
        }
        shared.take(tasks, task);
        shared.gate.fetch_and(!OPEN, Ordering::SeqCst);
        let mut polls = 0;
        while shared.gate.load(Ordering::Acquire) & INSIDE != 0 {
            pause(&mut polls);
        }
        let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

/// Waits a moment: leaves the core to others if it has been long.
fn pause(polls: &mut u32) {
    *polls = polls.saturating_add(1);
    if *polls < POLLS { std::hint::spin_loop() } else { std::thread::yield_now() }
}

impl Shared {
    /// Does tasks until none is left.
    fn take(&self, tasks: usize, task: &Task<'_>) {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let at = self.next.fetch_add(1, Ordering::Relaxed);
                if at >= tasks {
                    return;
                }
                task(at);
            }
        }));
        if let Err(panic) = outcome {
            self.next.store(tasks, Ordering::Relaxed);
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
        }
    }

    /// A worker's life: joins every fork that is still open when it sees it.
    fn wait(&self) {
        let mut seen = 0;
        let mut polls = 0;
        let mut since = Instant::now();
        while !self.ended.load(Ordering::Acquire) {
            let gate = self.gate.load(Ordering::Acquire);
            let number = gate & !(OPEN | INSIDE);
            if gate & OPEN != 0 && number != seen {
                if self.gate.compare_exchange(gate, gate + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                    seen = number;
                    // SAFETY: this thread is inside the gate, so the fork is not written and its task is alive.
                    let fork = unsafe { *self.fork.get() };
                    if let Some((tasks, task)) = fork {
                        // SAFETY: as above.
                        self.take(tasks, unsafe { &*task });
                    }
                    self.gate.fetch_sub(1, Ordering::AcqRel);
                    (polls, since) = (0, Instant::now());
                }
            } else if polls < POLLS || since.elapsed() < AWAKE {
                pause(&mut polls);
            } else {
                self.sleep(seen);
                (polls, since) = (0, Instant::now());
            }
        }
    }

    /// Sleeps until a fork is open that is not the one `seen`.
    fn sleep(&self, seen: u64) {
        let mut asleep = self.asleep.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let is_idle = || {
            let gate = self.gate.load(Ordering::SeqCst);
            !self.ended.load(Ordering::SeqCst) && (gate & OPEN == 0 || gate & !(OPEN | INSIDE) == seen)
        };
        while is_idle() {
            asleep = self.wake.wait(asleep).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        {
            let _asleep = self.shared.asleep.lock().unwrap_or_else(PoisonError::into_inner);
            self.shared.ended.store(true, Ordering::SeqCst);
            self.shared.wake.notify_all();
        }
        for worker in self.workers.drain(..) {
            let _ = worker.join(); // a worker's panic has been passed on
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::Threads;

    #[test]
    fn every_task_runs_once() {
        for count in [1, 2, 5] {
            let threads = Threads::new(count).expect("threads");
            for tasks in (0..200).chain([10_000]) {
                let runs: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                threads.run(tasks, &|at| {
                    runs[at].fetch_add(1, Ordering::Relaxed);
                });
                assert!(runs.iter().all(|runs| runs.load(Ordering::Relaxed) == 1), "{tasks} tasks on {count} threads");
                if tasks % 50 == 0 {
                    std::thread::sleep(std::time::Duration::from_millis(2)); // long enough for the workers to fall asleep
                }
            }
        }
    }

    #[test]
    fn forks_of_several_callers_do_not_mix() {
        let threads = Threads::new(3).expect("threads");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for tasks in 1..200 {
                        let runs = AtomicUsize::new(0);
                        threads.run(tasks, &|_| {
                            runs.fetch_add(1, Ordering::Relaxed);
                        });
                        assert_eq!(runs.into_inner(), tasks);
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_threads_go_on() {
        let threads = Threads::new(2).expect("threads");
        for bad in [0, 99] {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                threads.run(100, &|at| assert_ne!(at, bad, "the bad task"));
            }));
            assert!(outcome.is_err());
            let runs = AtomicUsize::new(0);
            threads.run(100, &|_| {
                runs.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(runs.into_inner(), 100);
        }
    }
}
