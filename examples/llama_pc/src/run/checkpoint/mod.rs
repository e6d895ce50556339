//! Checkpoints of a run: `checkpoints/step-N/` with `model.safetensors`, `optimizer.safetensors` and `state.json`.
//!
//! A folder named step-N is complete: `writer` writes it as `step-N.partial`, syncs it and renames it; an old one is renamed back
//! before it is deleted. `state.json` records the size and the CRC-32C of the other two files and of itself, and `saved` verifies them.

mod document;
mod saved;
mod state;
mod tensors;
#[cfg(test)]
mod tests;
mod writer;

#[cfg(any(test, feature = "samples"))]
pub use document::text_of;
pub use document::{MODEL, OPTIMIZER};
pub use saved::{Saved, check_weights, recorded_keys, sweep, verify_weights};
pub use state::{Scaling, Spikes, State};
pub use tensors::checksum;
pub use writer::Writer;
