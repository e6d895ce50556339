//! Training: `start` begins or resumes a run, `session` is its loop.
//!
//! What a step measures (`layers`) and why it may be skipped (`spikes`) have files of their own.

mod layers;
mod scaling;
mod session;
mod spikes;
mod start;

pub use start::{Request, begin, resume};
