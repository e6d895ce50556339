//! The commands, a file each: its flags and what it calls.
//!
//! The top floor: only `main` imports it.

mod device;
pub mod devices;
pub mod eval;
pub mod export;
pub mod plan;
pub mod prepare;
pub mod report;
pub mod sample;
pub mod selftest;
pub mod spectrum;
pub mod train;
