//! Progress of long work on standard error: a bar where a terminal shows it, plain lines now and then where none does.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::output::note;

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
        match &self.bar {
            Some(bar) => bar.suspend(|| note(line)),
            None => note(line),
        }
    }

    /// Takes the bar away.
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

/// Seconds as people say them: `48s`, `3m05s`, `2h07m`.
pub fn duration(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

/// Bytes with three digits: `1.25 GiB`.
pub fn binary(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut size, mut unit) = (bytes as f64, 0);
    while size >= 999.5 && unit + 1 < units.len() {
        size /= 1024.0;
        unit += 1;
    }
    let digits = match size {
        _ if unit == 0 => 0,
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    format!("{size:.digits$} {}", units[unit])
}

/// A count with separators, `1,234,567`.
pub fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        assert_eq!([4.4, 65.0, 3599.6, 7620.0].map(duration), ["4s", "1m05s", "1h00m", "2h07m"]);
    }

    #[test]
    fn bytes_keep_three_digits() {
        let shown = [512, 999, 1000, 1 << 20, 1_342_177_280, 22 << 30, 512 << 20].map(binary);
        assert_eq!(shown, ["512 B", "999 B", "0.98 KiB", "1.00 MiB", "1.25 GiB", "22.0 GiB", "512 MiB"]);
    }

    #[test]
    fn counts_are_grouped() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
