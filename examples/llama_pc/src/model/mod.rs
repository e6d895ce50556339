//! The model: made from a configuration (`engine`), read from runs and Hugging Face's folders (`import`), written for other programs
//! (`export`).
//!
//! Also what is computed from it: loss (`evaluate`), text (`sampling`), FLOPs (`flops`), singular values (`spectra`).

pub mod engine;
pub mod evaluate;
pub mod export;
pub mod flops;
pub mod import;
pub mod sampling;
pub mod spectra;
