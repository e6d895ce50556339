//! The warning about a `[train] precision` below f32.

use polytape::Precision;
use polytape::gpu::KernelTier;

/// What the user should know before a run at this precision begins with these kernels.
pub fn warning(precision: Precision, kernels: KernelTier) -> Option<String> {
    let text =
        format!("warning: train.precision = \"{precision}\": products are rounded without matrix units, slower than at f32");
    (precision != Precision::F32 && kernels != KernelTier::Matrix).then_some(text)
}
