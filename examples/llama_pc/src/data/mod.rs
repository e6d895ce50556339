//! From text on disk to batches of tokens: documents, tokenizers, shards of tokens, windows over shards.
//!
//! `prepare` turns documents into shards; training and evaluation read windows of them.

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
