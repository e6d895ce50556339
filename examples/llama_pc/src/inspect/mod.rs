//! What can be known of a configuration, a run or a device without training: plans, spectra, reports, the self-test.
//!
//! Measures and returns; writing to the paths that a user names is the commands' part.

pub mod plan;
pub mod report;
pub mod selftest;
pub mod spectrum;
