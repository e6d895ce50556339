//! The devices that the tests run on: one per kernel profile, opened once for the whole process.

use std::sync::OnceLock;

use polytape::{Gpu, GpuOptions};

/// The best adapter with its own kernels, then the same adapter with every other profile that it can run. No adapter is a failed
/// test: nothing here is skipped.
pub fn all() -> &'static [Gpu] {
    static DEVICES: OnceLock<Vec<Gpu>> = OnceLock::new();
    DEVICES.get_or_init(|| {
        let own = open(&GpuOptions::default()).expect("the tests need an adapter, a software one at least");
        let others = own.adapter().kernel_tiers().filter(|profile| *profile != own.kernels());
        let opened = others.map(|profile| {
            open(&GpuOptions { kernels: Some(profile), ..Default::default() })
                .unwrap_or_else(|error| panic!("{profile} kernels: {error}"))
        });
        std::iter::once(own.clone()).chain(opened).collect()
    })
}

/// The best adapter with its own kernels.
pub fn default() -> &'static Gpu {
    &all()[0]
}

/// The bytes of a buffer that [`all_narrow`] are shown at a time.
pub const NARROW: u64 = 64 << 10;

/// The devices of [`all`], in its order, shown little of a buffer at a time, so that tensors of a test's size are cut into windows.
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

/// The best adapter, shown little of a buffer at a time.
pub fn narrow() -> &'static Gpu {
    &all_narrow()[0]
}

/// A device of the test's own, without the warning about a software adapter in every test's output.
pub fn open(options: &GpuOptions) -> polytape::Result<Gpu> {
    Gpu::open(&GpuOptions { warn: |_| (), ..options.clone() })
}
