//! Analyses that do not train: `plan` of a configuration, `spectrum` and `report` of runs, `selftest` of a device.

pub mod plan;
pub mod report;
pub mod selftest;
pub mod spectrum;
