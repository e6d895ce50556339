//! From text on disk to batches of tokens: documents, tokenizers, shards of tokens, windows over shards.
//!
//! `prepare` turns documents into shards; training and evaluation read windows of them.

mod cards;
mod cargo_sources;
mod cut;
pub mod documents;
pub mod encode;
mod encoding;
pub mod foreign;
mod guard;
mod json;
mod json_records;
mod json_scan;
mod kinds;
mod megatron;
pub mod meta;
mod packing;
mod parquet;
mod parquet_column;
#[cfg(any(test, feature = "samples"))]
pub mod parquet_samples;
mod pieces;
mod protobuf;
pub mod sentencepiece;
mod sentencepiece_train;
mod shards;
pub mod source;
pub mod survey;
pub mod synced;
pub mod tokenizer;
pub mod tokens;
pub mod windows;
