//! [`KernelVariant`]: what a pipeline is compiled from, and [`Rehearsed`]: a dispatch of it, for tools that look at the kernels themselves.

use super::adapter::KernelTier;
use super::device::Gpu;
use super::kernel::{Access, Kernel};
use super::wgsl::compose;
use crate::error::{Error, Result};

/// A kernel with one combination of its constants: what one pipeline is compiled from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVariant {
    /// Name of the kernel.
    pub kernel: &'static str,
    /// Its entry point.
    pub entry: &'static str,
    /// Its constants.
    pub constants: Vec<(&'static str, u32)>,
    /// Its storage buffers, at `@group(0)` from `@binding(0)` on.
    pub bindings: &'static [Access],
    /// Size of its `var<immediate>`; 0 without one.
    pub argument_bytes: u32,
    /// The tier that it is compiled for.
    pub tier: KernelTier,
    pub(super) source: &'static str,
}

/// A dispatch that a [`Gpu::rehearsal`] would have made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rehearsed {
    /// The kernel's name.
    pub kernel: &'static str,
    /// Number of workgroups in x, y and z.
    pub workgroups: [u32; 3],
}

impl KernelVariant {
    /// Its WGSL: the constants, the prelude and the kernel's own text, with every directive expanded.
    pub fn text(&self) -> Result<String> {
        self.composed().map_err(|problem| Error::Kernel { kernel: self.kernel, problem })
    }

    pub(super) fn composed(&self) -> std::result::Result<String, String> {
        let subgroups = u32::from(matches!(self.tier, KernelTier::Subgroup | KernelTier::Matrix));
        let constants = [&self.constants[..], &[("SUBGROUPS", subgroups)]].concat();
        compose(self.source, &constants)
    }

    /// The value of a constant, if the kernel has it.
    pub fn constant(&self, name: &str) -> Option<u32> {
        self.constants.iter().find(|(constant, _)| *constant == name).map(|(_, value)| *value)
    }
}

impl Gpu {
    /// Every kernel that this device has compiled so far, or on a [`Gpu::rehearsal`] would have, with each combination of its
    /// constants.
    pub fn variants(&self) -> Vec<KernelVariant> {
        self.inner.variants.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).iter().cloned().collect()
    }

    pub(super) fn note(&self, kernel: &Kernel, constants: &[(&'static str, u32)], argument_bytes: u32) {
        let variant = kernel.variant(self.shader_tier(), constants, argument_bytes);
        self.inner.variants.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).insert(variant);
    }
}
