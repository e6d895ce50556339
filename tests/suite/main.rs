//! The test suite: one binary, so that the library is linked once.

mod check;
mod device;
mod golden;
mod gpu;
mod ops;
mod optim;
mod reference;
mod spectral;
mod tape;
mod tolerance;
mod training;
