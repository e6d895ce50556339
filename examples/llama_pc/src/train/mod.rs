//! Training: `start` begins or resumes a run, `session` is its loop.
//!
//! What a step measures (`layers`), why it may be skipped (`spikes`) and what a run says before it (`scaling`, `schedule`) have files of
//! their own.

mod layers;
mod scaling;
mod schedule;
mod session;
mod spikes;
mod start;

pub use start::{Request, begin, rehearse, resume};
