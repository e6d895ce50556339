//! Weights out: the merged model as files that other programs load.
//!
//! `merged` gives the tensors, `encode` their bytes, `hugging_face` and `gguf` the files.

mod encode;
mod gguf;
mod gguf_architecture;
mod gguf_metadata;
mod gguf_tokenizer;
mod hugging_face;
mod merged;

use std::path::Path;

use clap::ValueEnum;

use crate::terminal::failure::Failure;
pub use encode::Dtype;
pub use merged::Merged;

/// What to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A folder in Hugging Face's layout, for transformers
    Hf,
    /// One GGUF file, for llama.cpp
    Gguf,
}

/// Writes the model to `out` atomically; `max_shard_bytes` bounds the .safetensors files of a folder.
pub fn write(model: &Merged, format: Format, dtype: Dtype, max_shard_bytes: u64, out: &Path) -> Result<(), Failure> {
    match format {
        Format::Hf => hugging_face::write(model, dtype, max_shard_bytes, out),
        Format::Gguf => gguf::write(model, dtype, out),
    }
}
