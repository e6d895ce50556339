//! The folder of a run: its lock, configuration, metrics, TensorBoard events and checkpoints.
//!
//! `files` has the atomic writes of the whole program.

pub mod checkpoint;
mod events;
pub mod files;
pub mod folder;
pub mod measured;
pub mod metrics;
pub mod paths;
