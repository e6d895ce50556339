//! How a run is asked to end: by Ctrl-C, on Unix also by SIGUSR1, and under a launcher, which turns Ctrl-C into it, by SIGTERM.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::terminal::failure::Failure;
use crate::terminal::output;

/// What a signal changes, and what it says.
#[derive(Default)]
pub struct Signals {
    stop: AtomicBool,
    step: AtomicU64,
    /// 1 more than the step of the newest checkpoint; 0 for none.
    newest: AtomicU64,
}

impl Signals {
    /// Listens from now on; of several ranks, each does. `resume` is the command that resumes the run.
    pub fn listen(several: bool, resume: String) -> Result<Arc<Self>, Failure> {
        let signals = Arc::new(Self::default());
        let of_handler = signals.clone();
        let handler = move || {
            if of_handler.stop.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
            output::note("finishing this step; press Ctrl-C again to stop at once without saving");
        };
        ctrlc::set_handler(handler).map_err(|error| Failure::other(format!("cannot listen for Ctrl-C: {error}")))?;
        signals.listen_to_others(several, resume)?;
        Ok(signals)
    }

    #[cfg(unix)]
    fn listen_to_others(self: &Arc<Self>, several: bool, resume: String) -> Result<(), Failure> {
        use signal_hook::consts::{SIGTERM, SIGUSR1};

        let wanted = [Some(SIGUSR1), several.then_some(SIGTERM)];
        let listening = signal_hook::iterator::Signals::new(wanted.into_iter().flatten());
        let mut listening = listening.map_err(|error| Failure::other(format!("cannot listen for signals: {error}")))?;
        let signals = self.clone();
        let listen = move || {
            for signal in listening.forever() {
                signals.stop.store(true, Ordering::Relaxed);
                output::note(&if signal == SIGTERM { signals.farewell(&resume) } else { "finishing this step".to_owned() });
            }
        };
        let thread = std::thread::Builder::new().name("signals".to_owned()).spawn(listen);
        thread.map(drop).map_err(|error| Failure::other(format!("cannot start a thread for signals: {error}")))
    }

    #[cfg(not(unix))]
    fn listen_to_others(self: &Arc<Self>, _several: bool, _resume: String) -> Result<(), Failure> {
        Ok(())
    }

    /// What a launcher that ends the ranks leaves time to say: it may do so because one has died.
    fn farewell(&self, resume: &str) -> String {
        let step = self.step.load(Ordering::Relaxed);
        let newest = match self.newest.load(Ordering::Relaxed) {
            0 => "there is no checkpoint yet".to_owned(),
            newest => format!("newest checkpoint: step-{}", newest - 1),
        };
        format!("told to end (SIGTERM) after step {step}; {newest}; to resume: {resume}")
    }

    /// Whether the run is to end.
    pub fn stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Remembers how far the run is.
    pub fn tell(&self, step: u64, newest: Option<u64>) {
        self.step.store(step, Ordering::Relaxed);
        self.newest.store(newest.map_or(0, |step| step + 1), Ordering::Relaxed);
    }
}
