//! The test suite: one binary, so that the library is linked once.

mod check;
mod device;
mod golden;
mod ops;
mod optim;
mod reference;
mod spectral;
#[allow(dead_code)] // until the tests of the device use every entry
mod tolerance;
mod training;
