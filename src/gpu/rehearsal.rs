//! Rehearsals: devices that stand in for an adapter that need not be there, and tell which kernels it would compile.

use super::adapter::{AdapterChoice, AdapterSummary, KernelTier, choose, enumerate};
use super::device::{Gpu, GpuOptions};
use super::tune::Tuning;
use crate::error::{Error, Result};

impl Gpu {
    /// A device that chooses kernels of this tier as it would on `adapter`, but neither compiles nor runs them: it only notes them,
    /// with every candidate that tuning would try; see [`Gpu::variants`]. Its memory is never written, and reads as zeros; the
    /// buffers are those of this machine's best adapter. For tools and tests of the kernels themselves. Errors: no adapter on this
    /// machine, kernels that `adapter` cannot run, and the host tier, whose kernels are not compiled for an adapter.
    ///
    /// ```
    /// # use polytape::*;
    /// # use polytape::gpu::{DeviceType, KernelTier, adapters};
    /// let card = gpu::AdapterSummary { kind: DeviceType::DiscreteGpu, ..adapters()[0].clone() };
    /// let gpu = Gpu::rehearsal(&card, KernelTier::Portable)?;
    /// Tensor::zeros(&gpu, &[8])?.scaled(2.0)?;
    /// assert_eq!(gpu.variants()[0].kernel, "scaled");
    /// # Ok::<(), Error>(())
    /// ```
    pub fn rehearsal(adapter: &AdapterSummary, kernels: KernelTier) -> Result<Self> {
        if kernels == KernelTier::Host {
            return Err(Error::Adapter(format!("a rehearsal of the {kernels} kernels: those of another tier expected")));
        }
        let tier = Self::choose_tier(adapter, Some(kernels))?;
        let (own, raw) = choose(&AdapterChoice::Best, pollster::block_on(enumerate()), |_| ())?;
        let opened = pollster::block_on(Self::request(&raw, &own, KernelTier::Portable, false))?;
        Self::over(opened, adapter, tier, &GpuOptions { tuning: Tuning::Process, warn: |_| (), ..Default::default() }, true)
    }
}
