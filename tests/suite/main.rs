//! The test suite: one binary, so that the library is linked once.

#[allow(dead_code)] // until the tests of the device use every loader
mod golden;
#[allow(dead_code)] // until the tests of the device use every operation
mod reference;
#[allow(dead_code)] // until the tests of the device use every entry
mod tolerance;
