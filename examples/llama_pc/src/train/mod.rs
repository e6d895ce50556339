//! Training: `start` begins or resumes a run, `session` is its loop.
//!
//! Several ranks train a run together in a `world`; `signals` shut it down cleanly. What a step measures (`layers`), why it may be
//! skipped (`spikes`) and what a run says before it (`scaling`, `schedule`) have files of their own.

mod layers;
mod scaling;
mod schedule;
mod session;
mod signals;
mod spikes;
mod start;
mod world;

pub use signals::INTERRUPTED;
pub use start::{Request, begin, rehearse, resume};
pub use world::World;
