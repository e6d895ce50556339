//! From text on disk to batches of tokens: documents, the tokenizer that encodes them, shards of tokens, windows over these.
//!
//! `prepare` goes all the way to shards; training and evaluation begin at windows.

mod cargo_sources;
pub mod documents;
pub mod encode;
mod guard;
pub mod meta;
mod parquet;
mod pieces;
mod protobuf;
pub mod sentencepiece;
mod sentencepiece_train;
mod shards;
pub mod survey;
pub mod tokenizer;
pub mod tokens;
pub mod windows;
