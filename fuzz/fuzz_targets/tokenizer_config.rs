//! The `tokenizer_config.json` beside a tokenizer.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| llama_pc_fuzz::scratch(|scratch| scratch.tokenizer_config(bytes)));
