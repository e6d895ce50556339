//! How a run is asked to end: by Ctrl-C, on Unix also by SIGUSR1, and under a launcher, which turns Ctrl-C into it, by SIGTERM.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::world::World;
#[cfg(unix)]
use crate::run::paths;
use crate::terminal::failure::Failure;
use crate::terminal::interrupt;
#[cfg(unix)]
use crate::terminal::output;

/// What the first Ctrl-C is answered with.
pub const INTERRUPTED: &str = "finishing this step; press Ctrl-C again to stop at once without saving";

/// What signals have asked for, and how far the run is.
pub struct Signals {
    interrupted: Arc<AtomicBool>,
    asked: Arc<AtomicBool>,
    step: AtomicU64,
    /// One more than the step of the newest checkpoint; 0 without one.
    saved: AtomicU64,
}

impl Signals {
    /// Listens from now on; of several ranks, each does.
    pub fn listen(world: &World, run: &Path) -> Result<Arc<Self>, Failure> {
        let interrupted = interrupt::flag(INTERRUPTED)?;
        let signals = Self { interrupted, asked: Arc::default(), step: AtomicU64::default(), saved: AtomicU64::default() };
        let signals = Arc::new(signals);
        signals.listen_to_others(world, run)?;
        Ok(signals)
    }

    #[cfg(unix)]
    fn listen_to_others(self: &Arc<Self>, world: &World, run: &Path) -> Result<(), Failure> {
        use signal_hook::consts::{SIGTERM, SIGUSR1};

        let failed = |error| Failure::other(format!("cannot listen for signals: {error}"));
        signal_hook::flag::register(SIGUSR1, self.asked.clone()).map_err(failed)?;
        if world.is_alone() {
            return Ok(());
        }
        let mut ends = signal_hook::iterator::Signals::new([SIGTERM]).map_err(failed)?;
        let (signals, run, rank, resume) = (self.clone(), run.to_owned(), world.rank(), world.resume_command(run));
        let listen = move || {
            for _ in ends.forever() {
                signals.asked.store(true, Ordering::Relaxed);
                let farewell = signals.farewell(&run, &resume);
                match rank {
                    0 => output::note(&farewell),
                    // The rank that has died may be the first.
                    1 => output::note(&format!("warning: {farewell}")),
                    _ => {}
                }
            }
        };
        std::thread::Builder::new().name("signals".to_owned()).spawn(listen).map(drop).map_err(failed)
    }

    #[cfg(not(unix))]
    fn listen_to_others(self: &Arc<Self>, _world: &World, _run: &Path) -> Result<(), Failure> {
        Ok(())
    }

    /// What a launcher that ends the ranks leaves time to say: it may do so because one has died.
    #[cfg(unix)]
    fn farewell(&self, run: &Path, resume: &str) -> String {
        let step = self.step.load(Ordering::Relaxed);
        let told = self.saved.load(Ordering::Relaxed).checked_sub(1);
        // One may have been completed since. Where they cannot be listed, the next attempt says why; other hosts may have none.
        let newest = paths::newest(paths::checkpoints(run).unwrap_or_default().last().copied().max(told));
        format!("received SIGTERM after step {step}; {newest}; to resume: {resume}")
    }

    /// Whether the run is to end.
    pub fn stop(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed) || self.asked.load(Ordering::Relaxed)
    }

    /// Remembers how far the run is, and its newest checkpoint.
    pub fn tell(&self, step: u64, checkpoint: Option<u64>) {
        self.step.store(step, Ordering::Relaxed);
        self.saved.store(checkpoint.map_or(0, |step| step + 1), Ordering::Relaxed);
    }
}
