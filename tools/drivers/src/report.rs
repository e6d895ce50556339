//! What a driver says of every kernel, as it is kept in a file.

use serde::{Deserialize, Serialize};

use crate::vulkan::Statistic;

/// A chip and its driver.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// The chip, as its table names it.
    pub chip: String,
    /// The adapter's name.
    pub adapter: String,
    /// The driver and its version.
    pub driver: String,
    /// Each distinct kernel.
    pub kernels: Vec<KernelReport>,
    /// Kernels that the time did not suffice for.
    pub left_out: usize,
    /// Training steps, with what became of them.
    pub steps: Vec<StepReport>,
}

/// A kernel on a chip.
#[derive(Debug, Serialize, Deserialize)]
pub struct KernelReport {
    /// Its name.
    pub kernel: String,
    /// Its constants.
    pub constants: Vec<(String, u32)>,
    /// The tiers that have it.
    pub tiers: Vec<String>,
    /// Whether a training step or sampling of a published size runs it.
    pub is_in_step: bool,
    /// Bytes of workgroup memory.
    pub shared_bytes: u32,
    /// The driver's numbers.
    pub statistics: Vec<Statistic>,
    /// Why the driver did not compile it.
    pub refusal: Option<String>,
}

/// A training step that was run, on a device that may execute nothing.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StepReport {
    /// Kernels, size, optimizer and precision.
    pub name: String,
    /// Why it failed.
    pub problem: Option<String>,
}
