//! Ctrl-C: the first ends the training after its step, the second ends the process at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use crate::terminal::failure::Failure;
use crate::terminal::output;

/// The flag that the first Ctrl-C sets, one for all runs of the process: a signal can be listened for only once.
pub fn flag() -> Result<Arc<AtomicBool>, Failure> {
    static FLAG: OnceLock<Result<Arc<AtomicBool>, String>> = OnceLock::new();
    let flag = FLAG.get_or_init(|| {
        let flag = Arc::new(AtomicBool::new(false));
        let set = flag.clone();
        let handler = move || {
            if set.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
            output::note("finishing this step; press Ctrl-C again to stop at once without saving");
        };
        ctrlc::set_handler(handler).map_err(|error| error.to_string())?;
        Ok(flag)
    });
    flag.clone().map_err(|error| Failure::other(format!("cannot listen for Ctrl-C: {error}")))
}
