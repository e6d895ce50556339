//! How a run is asked to end: by Ctrl-C, on Unix also by SIGUSR1, and under a launcher, which turns Ctrl-C into it, by SIGTERM.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

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
}

impl Signals {
    /// Listens from now on; of several ranks, each does. `resume` is the command that resumes the run.
    pub fn listen(several: bool, run: &Path, resume: String) -> Result<Arc<Self>, Failure> {
        let signals =
            Arc::new(Self { interrupted: interrupt::flag(INTERRUPTED)?, asked: Arc::default(), step: AtomicU64::default() });
        signals.listen_to_others(several, run, resume)?;
        Ok(signals)
    }

    #[cfg(unix)]
    fn listen_to_others(self: &Arc<Self>, several: bool, run: &Path, resume: String) -> Result<(), Failure> {
        use signal_hook::consts::{SIGTERM, SIGUSR1};

        let failed = |error| Failure::other(format!("cannot listen for signals: {error}"));
        signal_hook::flag::register(SIGUSR1, self.asked.clone()).map_err(failed)?;
        if !several {
            return Ok(());
        }
        let mut ends = signal_hook::iterator::Signals::new([SIGTERM]).map_err(failed)?;
        let (signals, run) = (self.clone(), run.to_owned());
        let listen = move || {
            for _ in ends.forever() {
                signals.asked.store(true, Ordering::Relaxed);
                output::note(&signals.farewell(&run, &resume));
            }
        };
        std::thread::Builder::new().name("signals".to_owned()).spawn(listen).map(drop).map_err(failed)
    }

    #[cfg(not(unix))]
    fn listen_to_others(self: &Arc<Self>, _several: bool, _run: &Path, _resume: String) -> Result<(), Failure> {
        Ok(())
    }

    /// What a launcher that ends the ranks leaves time to say: it may do so because one has died.
    #[cfg(unix)]
    fn farewell(&self, run: &Path, resume: &str) -> String {
        let step = self.step.load(Ordering::Relaxed);
        // Where they cannot be listed, the next attempt says why.
        let newest = paths::newest(paths::checkpoints(run).unwrap_or_default().last().copied());
        format!("received SIGTERM after step {step}; {newest}; to resume: {resume}")
    }

    /// Whether the run is to end.
    pub fn stop(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed) || self.asked.load(Ordering::Relaxed)
    }

    /// Remembers how far the run is.
    pub fn tell(&self, step: u64) {
        self.step.store(step, Ordering::Relaxed);
    }
}
