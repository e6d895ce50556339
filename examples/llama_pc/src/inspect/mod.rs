//! Analyses that do not train a model: `plan` of a configuration, `spectrum` and `report` of runs, `selftest` and `bench` of a device.

pub mod bench;
pub mod plan;
pub mod report;
pub mod selftest;
pub mod spectrum;
