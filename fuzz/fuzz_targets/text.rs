//! A file of text under no telling name, perhaps compressed.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| llama_pc_fuzz::scratch(|scratch| scratch.text(bytes)));
