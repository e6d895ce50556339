//! `selftest`: every kernel that an adapter can run against the float64 reference.

use super::device::Device;
use crate::inspect::selftest;
use crate::terminal::failure::Failure;

/// Arguments of `selftest`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    device: Device,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    selftest::run(&args.device.open(false)?, args.device.kernels.is_none())
}
