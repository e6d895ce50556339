//! From text on disk to batches of tokens.

mod cargo_sources;
pub mod documents;
mod encode;
pub mod meta;
mod parquet;
mod pieces;
pub mod prepare;
mod protobuf;
pub mod sentencepiece;
mod sentencepiece_train;
mod shards;
mod survey;
pub mod tokenizer;
pub mod tokens;
pub mod windows;
