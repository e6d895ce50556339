//! The test suite: one binary, so that the library is linked once.

mod check;
mod device;
mod gpu;
mod host;
mod memory;
mod ops;
mod optim;
#[cfg(feature = "serde")]
mod serialized;
mod spectral;
mod tape;
mod training;

use polytape_reference::{self as reference, golden, tolerance};
