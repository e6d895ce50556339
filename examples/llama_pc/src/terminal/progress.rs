//! Progress of long work on standard error: a bar where a terminal shows it, plain lines now and then where none does.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::format::duration;
use super::output::note;

/// Time between plain lines, so that a log of hours stays readable.
const EVERY: Duration = Duration::from_secs(5);

/// Work of a known length, done in steps or bytes.
pub struct Progress {
    label: &'static str,
    total: u64,
    position: u64,
    /// Where this process began, for the time left of a resumed run.
    first: u64,
    started: Instant,
    bar: Option<ProgressBar>,
    printed: Option<Instant>,
}

impl Progress {
    /// Begins at `position` of `total`.
    pub fn new(label: &'static str, position: u64, total: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{prefix} {wide_bar} {percent:>3}% {msg}");
            let bar = ProgressBar::new(total).with_prefix(label).with_position(position);
            match style {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            }
        });
        Self { label, total, position, first: position, started: Instant::now(), bar, printed: None }
    }

    /// Moves to `position` and shows `message` with it.
    pub fn set(&mut self, position: u64, message: &str) {
        self.position = position;
        let left = self.time_left();
        if let Some(bar) = &self.bar {
            bar.set_position(position);
            bar.set_message(format!("{message}{left}"));
            return;
        }
        let due = self.printed.is_none_or(|printed| printed.elapsed() >= EVERY);
        if due || position == self.total {
            let (label, total) = (self.label, self.total);
            note(&format!("{label} {position}/{total}  {message}{left}"));
            self.printed = Some(Instant::now());
        }
    }

    /// Moves on by one.
    pub fn advance(&mut self) {
        self.set(self.position + 1, "");
    }

    /// Prints a line of its own, above the bar.
    pub fn note(&self, line: &str) {
        self.above(|| note(line));
    }

    /// Prints something else, above the bar.
    pub fn above<T>(&self, print: impl FnOnce() -> T) -> T {
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    /// Removes the bar.
    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }

    /// `  2m05s left`, as long as there is something to extrapolate.
    fn time_left(&self) -> String {
        let done = self.position.saturating_sub(self.first);
        let rest = self.total.saturating_sub(self.position);
        if done == 0 || rest == 0 {
            return String::new();
        }
        let seconds = self.started.elapsed().as_secs_f64() * rest as f64 / done as f64;
        format!("  {} left", duration(seconds))
    }
}
