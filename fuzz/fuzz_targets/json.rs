//! A list of JSON objects, or another `.json`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| llama_pc_fuzz::scratch(|scratch| scratch.json(bytes)));
