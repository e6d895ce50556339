//! From text on disk to batches of tokens.

pub mod tokens;
pub mod windows;
