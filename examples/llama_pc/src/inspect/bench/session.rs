//! A measurement in progress: the clock, the rows so far, what was left out and what failed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use polytape::{Error, Gpu, Result};

use super::report::{LeftOut, Report, Row};
use super::table;
use crate::terminal::failure::Failure;
use crate::terminal::progress::Progress;
use crate::terminal::{interrupt, output};

/// Why a case ended early.
pub enum Stop {
    /// What it computed is wrong.
    Wrong(String),
    /// The engine's error.
    Engine(Error),
    /// Of the configuration that a part made.
    Program(Failure),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Engine(error)
    }
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Program(failure)
    }
}

/// What a case returns.
pub type Case<T = ()> = std::result::Result<T, Stop>;

/// A value, and how far the others were from it.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Seconds of a call: the best of several samples.
    pub seconds: f64,
    /// By how much of it the median was slower; nothing of a single sample.
    pub spread: Option<f64>,
}

/// Measured limits, in operations and bytes per second.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    pub multiply_adds: f64,
    /// Of matrix units; none without.
    pub matrices: Option<f64>,
    pub copy: Option<f64>,
    /// The best f32 product so far.
    pub product: Option<f64>,
}

/// Samples of a timing.
const SAMPLES: usize = 5;
/// The share of the whole time that a timing may take: more than there are, as preparing and checking take as long.
const TIMINGS: f64 = 600.0;
/// Seconds that it takes at least, if the part has them.
const SHORTEST: f64 = 0.1;

/// A measurement in progress.
pub struct Session {
    pub gpu: Gpu,
    pub limits: Limits,
    started: Instant,
    length: Duration,
    part: &'static str,
    part_started: Instant,
    deadline: Instant,
    progress: Option<Progress>,
    stop: Arc<AtomicBool>,
    /// The device is lost: nothing more can be measured.
    is_lost: bool,
    rows: Vec<Row>,
    left_out: Vec<LeftOut>,
    failed: Vec<String>,
}

impl Session {
    /// Begins now.
    pub fn new(gpu: &Gpu, length: Duration) -> std::result::Result<Self, Failure> {
        let now = Instant::now();
        Ok(Self {
            gpu: gpu.clone(),
            limits: Limits::default(),
            started: now,
            length,
            part: "",
            part_started: now,
            deadline: now,
            progress: None,
            stop: interrupt::flag("finishing this measurement; press Ctrl-C again to stop at once")?,
            is_lost: false,
            rows: Vec::new(),
            left_out: Vec::new(),
            failed: Vec::new(),
        })
    }

    /// Begins a part, which may go on until that share of the whole time is over.
    pub fn begin(&mut self, part: &'static str, due: f64) {
        self.part = part;
        self.part_started = Instant::now();
        self.deadline = self.started + self.length.mul_f64(due);
        let seconds = self.deadline.saturating_duration_since(self.part_started).as_secs();
        self.progress = Some(Progress::new(part, 0, seconds.max(1)));
    }

    /// Ends a part.
    pub fn end(&mut self, outcome: Case) {
        if let Some(progress) = self.progress.take() {
            progress.finish();
        }
        self.judge(String::new(), outcome);
    }

    /// Moves everything to the report.
    pub fn finish(self, report: &mut Report) {
        report.seconds = self.started.elapsed().as_secs_f64();
        report.interrupted = self.stop.load(Ordering::Relaxed);
        (report.rows, report.left_out, report.failed) = (self.rows, self.left_out, self.failed);
    }

    /// The table of the part.
    pub fn part_text(&self) -> String {
        let rows: Vec<&Row> = self.rows.iter().filter(|row| row.part == self.part).collect();
        let left_out: Vec<&LeftOut> = self.left_out.iter().filter(|left| left.part == self.part).collect();
        table::part(self.part, &rows, &left_out)
    }

    /// Measured values so far.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Seconds that the part has left.
    pub fn left(&self) -> f64 {
        self.deadline.saturating_duration_since(Instant::now()).as_secs_f64()
    }

    /// Whether nothing more is to be measured.
    pub fn is_over(&self) -> bool {
        self.is_lost || self.stop.load(Ordering::Relaxed)
    }

    /// Measures a case unless it would take longer, by the estimate in seconds, than the part has left.
    pub fn case(&mut self, what: &str, estimate: f64, measure: impl FnOnce(&mut Self) -> Case) {
        if self.is_over() {
            return;
        }
        let left = self.left();
        if estimate > left {
            let reason = format!("takes about {}, {} left", table::seconds(estimate), table::seconds(left));
            return self.leave_out(what, reason);
        }
        let elapsed = self.part_started.elapsed().as_secs();
        if let Some(progress) = &mut self.progress {
            progress.set(elapsed, what);
        }
        let outcome = measure(self);
        self.judge(format!(", {what}"), outcome);
    }

    /// Notes how a case of the part ended.
    fn judge(&mut self, case: String, outcome: Case) {
        let problem = match outcome {
            Ok(()) => return,
            Err(Stop::Engine(error @ Error::OutOfMemory { .. })) => {
                return self.leave_out(case.trim_start_matches(", "), format!("does not fit: {error}"));
            }
            Err(Stop::Engine(error)) => {
                self.is_lost |= matches!(error, Error::Device(_));
                error.to_string()
            }
            Err(Stop::Wrong(problem)) => problem,
            Err(Stop::Program(failure)) => failure.to_string(),
        };
        let text = format!("{}{case}: {problem}", self.part);
        output::note(&format!("failed: {text}"));
        self.failed.push(text);
    }

    /// Notes what is not measured, and why.
    pub fn leave_out(&mut self, what: &str, reason: impl Into<String>) {
        self.left_out.push(LeftOut { part: self.part.to_owned(), what: what.to_owned(), reason: reason.into() });
    }

    /// Notes a measurement.
    pub fn row(&mut self, row: Row) {
        if !row.value.is_finite() {
            // Such as the bandwidth of a kernel that did not run.
            return self.judge(format!(", {}", row.what), Err(Stop::Wrong("nothing was timed".to_owned())));
        }
        self.rows.push(Row { part: self.part.to_owned(), ..row });
    }

    /// Seconds per call: the best of several samples, each of as many calls as keep the device busy for a while. What is timed has run
    /// before, so that everything is compiled.
    pub fn time(&self, mut call: impl FnMut() -> Result<()>) -> Result<Timing> {
        let gpu = self.gpu.clone();
        let mut sample = |calls: usize| -> Result<f64> {
            gpu.synchronize()?;
            let start = Instant::now();
            (0..calls).try_for_each(|_| call())?;
            gpu.synchronize()?;
            Ok(start.elapsed().as_secs_f64() / calls as f64)
        };
        let first = sample(1)?;
        let budget = (self.length.as_secs_f64() / TIMINGS).max(SHORTEST).min(self.left());
        let calls = (budget / (SAMPLES as f64 + 1.0) / first).clamp(1.0, 1000.0) as usize;
        let ends = Instant::now() + Duration::from_secs_f64(budget);
        let mut samples = Vec::new();
        while samples.len() < SAMPLES && (samples.is_empty() || Instant::now() < ends) && !self.is_over() {
            // A call that takes the budget by itself is not made again.
            samples.push(if first > budget { first } else { sample(calls)? });
            if first > budget {
                break;
            }
        }
        Ok(Timing::of(if samples.is_empty() { vec![first] } else { samples }))
    }
}

impl Timing {
    /// Of samples, in seconds; at least one.
    pub fn of(mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        let (best, median) = (samples[0], samples[samples.len() / 2]);
        Self { seconds: best, spread: (samples.len() > 1).then_some(median / best - 1.0) }
    }
}

/// Whether a result is as close to what it must be as the tolerance; NaN is not.
pub fn agree(what: impl FnOnce() -> String, found: f64, want: f64, tolerance: f64) -> Case {
    if (found - want).abs() <= tolerance {
        return Ok(());
    }
    Err(Stop::Wrong(format!("{} is {found:.6e}, expected {want:.6e} within {tolerance:.1e} (float64)", what())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_sample_counts_and_the_median_is_the_spread() {
        let timing = Timing::of(vec![3.0, 2.0, 2.5]);
        assert_eq!((timing.seconds, timing.spread), (2.0, Some(0.25)));
        assert_eq!(Timing::of(vec![1.0]).spread, None);
    }

    #[test]
    fn a_nan_is_wrong() {
        assert!(agree(|| "x".into(), 1.0, 1.0, 0.0).is_ok());
        assert!(agree(|| "x".into(), f64::NAN, 1.0, 1.0).is_err());
    }
}
