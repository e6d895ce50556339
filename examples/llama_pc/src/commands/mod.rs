//! The commands, one file each: its flags and what it calls.
//!
//! Only `lib.rs` imports them.

pub mod bench;
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
pub mod study;
pub mod train;
