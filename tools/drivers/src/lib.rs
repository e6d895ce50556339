//! Every kernel of the library in every combination of its constants, by kinds of adapters that need not be there; see
//! [`Gpu::rehearsal`].

mod classes;
mod gemm;
mod operations;
mod steps;
pub mod translate;

use std::collections::BTreeSet;

use polytape::gpu::{AdapterSummary, KernelTier, KernelVariant};
use polytape::{Gpu, Result};

pub use classes::{Class, classes};
pub use steps::run_step;

/// Size of a binding that makes small tensors be processed in windows.
const NARROW: u64 = 64 << 10;

/// Every kernel that an adapter runs with kernels of this tier.
pub fn all_variants(adapter: &AdapterSummary, tier: KernelTier) -> Result<BTreeSet<KernelVariant>> {
    let mut narrow = adapter.clone();
    narrow.limits.max_storage_buffer_binding_size = NARROW;
    let mut found = step_variants(adapter, tier)?;
    for adapter in [adapter, &narrow] {
        let gpu = Gpu::rehearsal(adapter, tier)?;
        operations::run(&gpu)?;
        found.extend(gpu.variants());
    }
    let gpu = Gpu::rehearsal(adapter, tier)?;
    operations::run_wide(&gpu)?;
    gemm::run(&gpu)?;
    found.extend(gpu.variants());
    Ok(found)
}

/// [`all_variants`] of all [`classes`].
pub fn variants_by_class() -> Result<Vec<(Class, BTreeSet<KernelVariant>)>> {
    let list = |class: Class| all_variants(&class.adapter, class.tier).map(|variants| (class, variants));
    std::thread::scope(|scope| {
        let lists: Vec<_> = classes().into_iter().map(|class| scope.spawn(move || list(class))).collect();
        lists.into_iter().map(|list| list.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

/// The kernels of training steps of the published sizes, with every optimizer and precision, and of sampling.
pub fn step_variants(adapter: &AdapterSummary, tier: KernelTier) -> Result<BTreeSet<KernelVariant>> {
    let gpu = Gpu::rehearsal(adapter, tier)?;
    steps::rehearse(&gpu)?;
    Ok(gpu.variants().into_iter().collect())
}
