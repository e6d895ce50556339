//! The folder of a run: its lock, configuration, metrics, TensorBoard events and checkpoints.
//!
//! Whatever the program writes whole or not at all goes through `files`.

pub mod checkpoint;
mod events;
pub mod files;
pub mod folder;
pub mod measured;
pub mod metrics;
pub mod paths;
