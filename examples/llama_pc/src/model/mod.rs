//! The model: made from a configuration (`engine`), read from runs and Hugging Face's folders (`import`), written for other programs
//! (`export`).
//!
//! And what is asked of one: its loss (`evaluate`), text (`sampling`), arithmetic (`flops`), singular values (`spectra`).

pub mod engine;
pub mod evaluate;
pub mod export;
pub mod flops;
pub mod import;
pub mod sampling;
pub mod spectra;
