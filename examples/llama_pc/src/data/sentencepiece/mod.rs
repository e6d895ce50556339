//! SentencePiece `.model` files: read, encoded with as Google's library does, and converted to a `tokenizer.json` for other programs.
//!
//! `model` reads and checks the file, `normalize` prepares text, `encode` cuts it into pieces, `json` converts. The `tokenizers` crate
//! cannot express all that a model says (pieces that protect text from normalization, replacements of several characters, control
//! pieces that no text may become), so encoding is done here. The converted file carries the model, from which it is read back.

mod base64;
mod encode;
mod json;
mod model;
mod normalize;
#[cfg(test)]
mod tests;
mod trie;

pub use encode::SentencePiece;
pub use json::{bos_template, byte_fallback_bpe, embedded};

/// SentencePiece's marker for a space.
pub const SPACE: &str = "\u{2581}";

/// Pieces that [`byte_fallback_bpe`] puts before the bytes.
pub const CONTROL_PIECES: usize = 3;
