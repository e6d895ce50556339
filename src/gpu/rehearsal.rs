//! Rehearsals: devices that stand in for an adapter that need not be there, and tell which kernels it would compile.

use std::sync::{MutexGuard, PoisonError};

use super::adapter::{AdapterSummary, KernelTier};
use super::device::{Gpu, GpuOptions};
use super::matrix;
use super::tune::Tuning;
use super::variant::Rehearsed;
use crate::error::{Error, Result};

impl Gpu {
    /// A device that chooses kernels of this tier as it would on `adapter`, but neither compiles nor runs them: it only notes them,
    /// with every candidate that tuning would try; see [`Gpu::variants`]. Its memory is never written, and reads as zeros. For tools
    /// and tests of the kernels themselves: it needs no adapter on this machine. Errors: kernels that `adapter` cannot run, and the
    /// host tier, whose kernels are not compiled for an adapter.
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
        // Buffers take no memory, and so the adapter's sets no limit.
        let adapter = &AdapterSummary { memory: None, ..adapter.clone() };
        let opened = pollster::block_on(nothing())?;
        // Buffers take next to no memory, whatever their sizes.
        let memory_budget = Some(u64::MAX);
        let options = GpuOptions { tuning: Tuning::Process, memory_budget, warn: |_| (), ..Default::default() };
        // So that kernels are seen for either: adapters whose f16() rounds as it should, and others.
        let rounds_f16 = adapter.matrix_block == Some(16);
        let gpu = Self::over(opened, adapter, tier, rounds_f16, &options, true)?;
        matrix::note(&gpu);
        Ok(gpu)
    }

    /// The dispatches since this was last asked, on a [`Gpu::rehearsal`], without those of tuning; nothing on other devices.
    ///
    /// ```
    /// # use polytape::*;
    /// # use polytape::gpu::{DeviceType, KernelTier, adapters};
    /// # let card = gpu::AdapterSummary { kind: DeviceType::DiscreteGpu, ..adapters()[0].clone() };
    /// # let gpu = Gpu::rehearsal(&card, KernelTier::Portable)?;
    /// Tensor::zeros(&gpu, &[1000])?.scaled(2.0)?;
    /// assert_eq!(gpu.rehearsed()[0].workgroups, [4, 1, 1]); // of 64 invocations, four elements each
    /// assert!(gpu.rehearsed().is_empty());
    /// # Ok::<(), Error>(())
    /// ```
    pub fn rehearsed(&self) -> Vec<Rehearsed> {
        std::mem::take(&mut *self.dispatches())
    }

    pub(super) fn rehearse(&self, dispatch: Rehearsed) {
        self.dispatches().push(dispatch);
    }

    /// Runs `run` without noting its dispatches.
    pub(super) fn without_rehearsing<T>(&self, run: impl FnOnce() -> T) -> T {
        let count = self.dispatches().len();
        let result = run();
        self.dispatches().truncate(count);
        result
    }

    fn dispatches(&self) -> MutexGuard<'_, Vec<Rehearsed>> {
        self.inner.rehearsed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A device of wgpu that only allocates.
async fn nothing() -> Result<(wgpu::Device, wgpu::Queue)> {
    let failed = |problem: String| Error::Adapter(format!("wgpu opens no device that does nothing: {problem}"));
    let mut descriptor = wgpu::InstanceDescriptor {
        backends: wgpu::Backends::NOOP,
        flags: wgpu::InstanceFlags::empty(),
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    };
    descriptor.backend_options.noop.enable = true;
    let adapter = wgpu::Instance::new(descriptor).request_adapter(&Default::default()).await;
    let adapter = adapter.map_err(|error| failed(error.to_string()))?;
    let descriptor = wgpu::DeviceDescriptor { required_limits: adapter.limits(), ..Default::default() };
    adapter.request_device(&descriptor).await.map_err(|error| failed(error.to_string()))
}
