//! Lines of `bench --json`, for `--compare`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| llama_pc_fuzz::scratch(|scratch| scratch.measurements(bytes)));
