//! Ctrl-C: the first asks for an orderly end, the second ends the process at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use super::failure::Failure;
use super::output;

/// Exit status of a process that Ctrl-C ended.
const INTERRUPTED: i32 = 130;

/// The flag that the first Ctrl-C sets, with a note of what happens now: one for all runs of a process, which can listen only once, with
/// the note of the first.
pub fn flag(note: &'static str) -> Result<Arc<AtomicBool>, Failure> {
    static FLAG: OnceLock<Result<Arc<AtomicBool>, String>> = OnceLock::new();
    let flag = FLAG.get_or_init(|| {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = stop.clone();
        let handler = move || {
            if flag.swap(true, Ordering::Relaxed) {
                std::process::exit(INTERRUPTED);
            }
            output::note(note);
        };
        ctrlc::set_handler(handler).map_err(|error| error.to_string())?;
        Ok(stop)
    });
    flag.clone().map_err(|error| Failure::other(format!("cannot listen for Ctrl-C: {error}")))
}
