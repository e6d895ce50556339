//! The `config.json` of a folder in Hugging Face's layout.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| llama_pc_fuzz::scratch(|scratch| scratch.config_json(bytes)));
