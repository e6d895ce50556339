//! What the user sees: results on standard output, notes and progress on standard error, failures with their exit status, pictures.
//!
//! Imports no other folder.

pub mod failure;
pub mod format;
pub mod interrupt;
pub mod output;
pub mod picture;
pub mod progress;
