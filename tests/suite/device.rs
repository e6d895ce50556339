//! The devices under test: one per kernel tier, opened once per process.

use std::sync::OnceLock;

use polytape::gpu::{AdapterSummary, KernelTier};
use polytape::{Gpu, GpuOptions};

/// The best adapter with its default tier, then the same adapter with every other tier that it supports, unless [`is_foreign`]. Without an
/// adapter the tests fail; nothing is skipped.
pub fn all() -> &'static [Gpu] {
    static DEVICES: OnceLock<Vec<Gpu>> = OnceLock::new();
    DEVICES.get_or_init(|| {
        let own = open(&GpuOptions::default()).expect("the tests need an adapter, a software one at least");
        let adapter = own.adapter();
        let others = adapter.kernel_tiers().filter(|tier| *tier != own.kernels() && !is_foreign(adapter, *tier));
        let opened = others.map(|tier| {
            open(&GpuOptions { kernels: Some(tier), ..Default::default() })
                .unwrap_or_else(|error| panic!("{tier} kernels: {error}"))
        });
        std::iter::once(own.clone()).chain(opened).collect()
    })
}

/// Kernels that an adapter can run, but that its compiler is not made for. The fallback kernels on a GPU: they are written for software
/// adapters, and a GPU's compiler takes ten times as long for them as for all others together. The subgroup kernels on SwiftShader, whose
/// compiler needs more than 13 GB for those of attention.
pub fn is_foreign(adapter: &AdapterSummary, tier: KernelTier) -> bool {
    match tier {
        KernelTier::Fallback => !adapter.is_software(),
        KernelTier::Subgroup => adapter.name.contains("SwiftShader"),
        _ => false,
    }
}

/// The best adapter with its default tier.
pub fn default() -> &'static Gpu {
    &all()[0]
}

/// Binding limit of [`all_narrow`].
pub const NARROW: u64 = 64 << 10;

/// The devices of [`all`], in its order, with a small binding limit, so that test-sized tensors are processed in windows.
pub fn all_narrow() -> &'static [Gpu] {
    static DEVICES: OnceLock<Vec<Gpu>> = OnceLock::new();
    DEVICES.get_or_init(|| {
        let open = |gpu: &Gpu| {
            let options = GpuOptions { kernels: Some(gpu.kernels()), binding_limit: Some(NARROW), ..Default::default() };
            open(&options).expect("the adapter opened before")
        };
        all().iter().map(open).collect()
    })
}

/// The best adapter with a small binding limit and a tier that has to keep it: the host tier binds nothing.
pub fn narrow() -> &'static Gpu {
    all_narrow().iter().find(|gpu| gpu.kernels() != KernelTier::Host).expect("every adapter has another tier")
}

/// A device for one test, without the software-adapter warning.
pub fn open(options: &GpuOptions) -> polytape::Result<Gpu> {
    Gpu::open(&GpuOptions { warn: |_| (), ..options.clone() })
}
