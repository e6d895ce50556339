//! How long dispatches and submits may take: drivers take a device away that does not answer for some seconds.
//!
//! A dispatch that may be long is split to stay under [`Pace::DISPATCH`]. How much work that is, follows from its kernel's speed: a
//! guess for a slow adapter of the kind, until the first pieces of a long dispatch have been timed; where the guess may be too high, already
//! its first dispatch of an eighth of that work. Splitting changes no bit, so that a speed measured anew in every run changes none.

use std::time::{Duration, Instant};

use super::adapter::AdapterSummary;
use super::pipeline::Pipeline;

/// See the module.
pub(super) struct Pace {
    /// FLOP per dispatch, where the user has set it.
    fixed: Option<u64>,
    /// FLOP/s assumed of a kernel that was not measured.
    speed: f64,
    /// Whether the adapter may be slower than that and have a watchdog: not a discrete GPU, nor the CPU.
    is_doubtful: bool,
}

/// FLOP/s of a software adapter with two cores and of a small integrated GPU.
const SOFTWARE: f64 = 40e9;
const INTEGRATED: f64 = 160e9;

/// What moving a byte counts for: adapters do about that many operations in the same time.
const OPERATIONS_PER_BYTE: f64 = 4.0;

/// Pieces of each kernel that are timed, each as long as the one before allows.
const TRIALS: u64 = 3;

impl AdapterSummary {
    /// FLOP/s by which long dispatches are split until they have been timed.
    pub fn assumed_speed(&self) -> f64 {
        if self.is_software() { SOFTWARE } else { INTEGRATED }
    }
}

impl Pace {
    /// Seconds that a dispatch may take.
    pub(super) const DISPATCH: f64 = 0.1;
    /// Seconds that a submit may take, with a last dispatch of [`Pace::DISPATCH`] above it.
    pub(super) const SUBMIT: f64 = 0.3;

    pub(super) fn new(adapter: &AdapterSummary, fixed: Option<u64>) -> Self {
        let is_doubtful = !adapter.is_software() && adapter.kind != wgpu::DeviceType::DiscreteGpu;
        Self { fixed, speed: adapter.assumed_speed(), is_doubtful }
    }

    fn speed(&self, pipeline: &Pipeline) -> f64 {
        pipeline.speed().unwrap_or(self.speed)
    }

    /// FLOP that a dispatch may have.
    pub(super) fn limit(&self, pipeline: &Pipeline) -> u64 {
        self.fixed.unwrap_or_else(|| (Self::DISPATCH * self.speed(pipeline)) as u64).max(1)
    }

    /// Seconds that a dispatch takes, estimated from its FLOP and the bytes that it binds.
    pub(super) fn seconds(&self, pipeline: &Pipeline, work: u64, bytes: u64) -> f64 {
        (work as f64 / self.speed(pipeline)).max(OPERATIONS_PER_BYTE * bytes as f64 / self.speed)
    }

    /// Whether a dispatch that need not be split is to be timed.
    pub(super) fn wants_first_trial(&self, pipeline: &Pipeline) -> bool {
        self.is_doubtful && self.fixed.is_none() && pipeline.trials() == 0
    }

    /// Whether the next piece of a dispatch is to be timed.
    pub(super) fn wants_trial(&self, pipeline: &Pipeline) -> bool {
        self.fixed.is_none() && pipeline.trials() < TRIALS
    }
}

/// The time of one piece, from an idle device to an idle device.
pub(super) struct Trial(Instant);

impl Trial {
    pub(super) fn begin() -> Self {
        Self(Instant::now())
    }

    pub(super) fn end(self, pipeline: &Pipeline, work: u64) {
        let time = self.0.elapsed().max(Duration::from_micros(1));
        pipeline.measured(work as f64 / time.as_secs_f64());
    }
}
