//! Adapters: enumeration, capabilities, the kernel tier each supports, and selection.

use std::fmt;
use std::str::FromStr;

use super::matrix;
use super::memory;
use crate::error::{Error, Result};

/// Adapter selection.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum AdapterChoice {
    /// The best available kind: discrete GPU, then integrated, virtual, other, CPU.
    #[default]
    Best,
    /// The CPU fallback adapter (Mesa lavapipe, WARP).
    Cpu,
    /// The index in [`adapters`].
    Index(usize),
    /// The first adapter whose name contains this text, case-insensitively; none for an empty one.
    Name(String),
}

impl FromStr for AdapterChoice {
    type Err = std::convert::Infallible;

    /// `best`, `cpu`, an index, or else a substring of the name.
    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        Ok(match text.to_ascii_lowercase().as_str() {
            "best" => Self::Best,
            "cpu" => Self::Cpu,
            lower => lower.parse().map_or_else(|_| Self::Name(text.to_string()), Self::Index),
        })
    }
}

/// The set of kernels that a device runs. Results agree within the test tolerances across tiers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KernelTier {
    /// Software adapters, whose memory is the host's own: native code on the host's threads, with the feature `host`. Kernels that
    /// have none, such as a user's own, run on the adapter as fallback kernels.
    Host,
    /// Software adapters with subgroups: one subgroup per workgroup, shuffles instead of shared memory.
    Fallback,
    /// WebGPU's default limits: 256 invocations and 16 KiB of shared memory per workgroup.
    Portable,
    /// GPUs with subgroups of any size: as portable, with subgroup reductions.
    Subgroup,
    /// GPUs with cooperative matrices: as subgroup, with `f16` and `f16x3` products, and attention at `f16`, on the matrix units. A
    /// self-test runs when the device is opened; if it fails, the subgroup tier is used, or opening fails if this tier was requested.
    Matrix,
}

impl KernelTier {
    /// All tiers.
    pub const ALL: [Self; 5] = [Self::Host, Self::Fallback, Self::Portable, Self::Subgroup, Self::Matrix];
}

impl fmt::Display for KernelTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::Fallback => "fallback",
            Self::Portable => "portable",
            Self::Subgroup => "subgroup",
            Self::Matrix => "matrix",
        })
    }
}

impl FromStr for KernelTier {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|tier| tier.to_string() == text).ok_or_else(|| {
            let names = Self::ALL.map(|tier| tier.to_string());
            Error::Value(format!("kernel tier: found `{text}`, expected one of {}", names.join(", ")))
        })
    }
}

/// An adapter as listed by [`adapters`].
#[derive(Debug, Clone)]
pub struct AdapterSummary {
    /// Index in the list, for [`AdapterChoice::Index`].
    pub index: usize,
    /// Name, as the driver reports it.
    pub name: String,
    /// Discrete, integrated, virtual, CPU or other.
    pub kind: wgpu::DeviceType,
    /// Vulkan, Metal or DX12.
    pub backend: wgpu::Backend,
    /// Driver name and version.
    pub driver: String,
    /// Its place on the PCI bus, such as `0000:01:00.0`; empty where it has none, or the driver does not tell.
    pub pci: String,
    /// The adapter's limits.
    pub limits: wgpu::Limits,
    /// The adapter's features.
    pub features: wgpu::Features,
    /// Minimum and maximum subgroup size.
    pub subgroup_lanes: (u32, u32),
    /// Side of its largest square cooperative matrix with f16 inputs and f32 accumulation; `None` without one.
    pub matrix_block: Option<u32>,
    /// 32-bit registers of an invocation in a workgroup of 256, as far as known: 256 unless its name tells of fewer. Tiles are chosen by
    /// it, so that none spills.
    pub registers: u32,
    /// Bytes of device memory that this process may use, where the driver reports them. `None` for a software adapter,
    /// whose memory is the host's.
    pub memory: Option<u64>,
    /// The tier used by default; `None` if it cannot run this crate, see [`AdapterSummary::missing`].
    pub kernel_tier: Option<KernelTier>,
}

impl AdapterSummary {
    fn new(index: usize, adapter: &wgpu::Adapter) -> Self {
        let info = adapter.get_info();
        let mut summary = Self {
            index,
            name: info.name,
            kind: info.device_type,
            backend: info.backend,
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_string(),
            pci: info.device_pci_bus_id,
            limits: adapter.limits(),
            features: adapter.features(),
            subgroup_lanes: (info.subgroup_min_size, info.subgroup_max_size),
            matrix_block: matrix::block(adapter),
            registers: 256,
            memory: if info.device_type == wgpu::DeviceType::Cpu { None } else { memory::of(adapter) },
            kernel_tier: None,
        };
        summary.registers = registers(&summary.name);
        let preferred: &[KernelTier] = match summary.is_software() {
            true => &[KernelTier::Host, KernelTier::Fallback, KernelTier::Portable],
            false => &[KernelTier::Matrix, KernelTier::Subgroup, KernelTier::Portable],
        };
        summary.kernel_tier = preferred.iter().copied().find(|tier| summary.lacks(*tier).is_none());
        summary
    }

    /// The first requirement of a tier that the adapter does not meet.
    pub fn lacks(&self, tier: KernelTier) -> Option<String> {
        let (least, most) = self.subgroup_lanes;
        self.missing().or_else(|| match tier {
            KernelTier::Portable => None,
            KernelTier::Host => self.lacks_host(),
            _ if !self.features.contains(wgpu::Features::SUBGROUP) => Some("subgroups are not supported".into()),
            KernelTier::Fallback if self.lanes().is_none() => {
                Some(format!("subgroup size {least} to {most}, a fixed size of 4, 8, 16 or 32 needed"))
            }
            KernelTier::Fallback | KernelTier::Subgroup => None,
            KernelTier::Matrix => self.lacks_matrices(),
        })
    }

    fn lacks_host(&self) -> Option<String> {
        if !cfg!(feature = "host") {
            return Some("polytape was built without the feature `host`".into());
        }
        if !self.is_software() {
            return Some("its memory is not the host's: not a software adapter".into());
        }
        let maps = self.features.contains(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS);
        (!maps).then(|| "it cannot map storage buffers".into())
    }

    fn lacks_matrices(&self) -> Option<String> {
        let shared = self.limits.max_compute_workgroup_storage_size;
        if !self.features.contains(wgpu::Features::SHADER_F16) {
            return Some("f16 in shaders is not supported".into());
        }
        if !self.features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX) || self.matrix_block.is_none() {
            return Some("no 16 × 16 or 8 × 8 cooperative matrices with f16 inputs and f32 accumulation".into());
        }
        (shared < 32 << 10).then(|| format!("bytes of shared memory per workgroup: {shared}, at least {} needed", 32 << 10))
    }

    /// The tiers it can run.
    pub fn kernel_tiers(&self) -> impl Iterator<Item = KernelTier> {
        KernelTier::ALL.into_iter().filter(|tier| self.lacks(*tier).is_none())
    }

    /// Whether shaders run on the CPU.
    pub fn is_software(&self) -> bool {
        self.kind == wgpu::DeviceType::Cpu
    }

    /// The first requirement of this crate that the adapter does not meet.
    pub fn missing(&self) -> Option<String> {
        let need = |have: u32, want: u32, what: &str| (have < want).then(|| format!("{what}: {have}, at least {want} needed"));
        if !self.features.contains(wgpu::Features::IMMEDIATES) {
            return Some("immediate data (push constants) is not supported".into());
        }
        need(self.limits.max_immediate_size, IMMEDIATE_BYTES, "bytes of immediate data")
            .or_else(|| need(self.limits.max_compute_invocations_per_workgroup, 256, "invocations per workgroup"))
            .or_else(|| need(self.limits.max_compute_workgroup_storage_size, 16 << 10, "bytes of shared memory per workgroup"))
            .or_else(|| need(self.limits.max_storage_buffers_per_shader_stage, 8, "storage buffers per kernel"))
    }

    /// The default of [`GpuOptions::memory_budget`](super::GpuOptions::memory_budget): nine tenths of the memory, so that this crate's
    /// error comes before the driver's. What is left is for the driver and for copies to and from the device.
    pub fn memory_budget(&self) -> Option<u64> {
        self.memory.map(|bytes| bytes / 10 * 9)
    }

    /// The fixed subgroup size, if [`KernelTier::Fallback`] supports it.
    pub(super) fn lanes(&self) -> Option<u32> {
        let (least, most) = self.subgroup_lanes;
        let fixed = least == most && matches!(least, 4 | 8 | 16 | 32);
        (fixed && self.features.contains(wgpu::Features::SUBGROUP)).then_some(least)
    }

    fn preference(&self) -> usize {
        use wgpu::DeviceType::{Cpu, DiscreteGpu, IntegratedGpu, Other, VirtualGpu};
        [DiscreteGpu, IntegratedGpu, VirtualGpu, Other, Cpu].iter().position(|kind| *kind == self.kind).unwrap_or(usize::MAX)
    }
}

/// [`AdapterSummary::registers`] of an adapter of this name. No API tells them; these are those that compilers without hardware were seen to
/// give out, see docs/drivers.md.
fn registers(name: &str) -> u32 {
    let after = |part: &str| name.find(part).map(|at| &name[at + part.len()..]);
    let model = after("Adreno").map(|rest| rest.trim_start_matches(|c: char| !c.is_ascii_digit() && c != 'X'));
    match model {
        // 7xx, X1 and newer have twice as many.
        Some(model) if model.starts_with(|c: char| ('1'..='6').contains(&c)) => 96,
        _ if name.starts_with("Apple") => 128,
        _ => 256,
    }
}

/// Immediate data (push constant) bytes per dispatch; every native backend supports at least this many.
pub(super) const IMMEDIATE_BYTES: u32 = 128;

/// All adapters of the machine, in the order of [`AdapterChoice::Index`].
pub fn adapters() -> Vec<AdapterSummary> {
    pollster::block_on(enumerate()).iter().map(|(summary, _)| summary.clone()).collect()
}

pub(super) async fn enumerate() -> Vec<(AdapterSummary, wgpu::Adapter)> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: wgpu::Backends::PRIMARY,
        flags: wgpu::InstanceFlags::empty(),
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    let found = instance.enumerate_adapters(wgpu::Backends::PRIMARY).await;
    found.into_iter().enumerate().map(|(index, adapter)| (AdapterSummary::new(index, &adapter), adapter)).collect()
}

/// The adapter of the user's choice. `warn` is called for every GPU that [`AdapterChoice::Best`] passes over, with the reason.
pub(super) fn choose(
    choice: &AdapterChoice,
    mut found: Vec<(AdapterSummary, wgpu::Adapter)>,
    warn: fn(&str),
) -> Result<(AdapterSummary, wgpu::Adapter)> {
    let summaries: Vec<&AdapterSummary> = found.iter().map(|(summary, _)| summary).collect();
    if *choice == AdapterChoice::Best {
        passed_over(&summaries).iter().for_each(|line| warn(line));
    }
    let names: Vec<String> = summaries.iter().map(|summary| format!("{} {}", summary.index, summary.name)).collect();
    let wanted = match choice {
        AdapterChoice::Best => "one that meets the requirements".to_string(),
        AdapterChoice::Cpu => "a CPU fallback adapter".to_string(),
        AdapterChoice::Index(index) => format!("index {index}"),
        AdapterChoice::Name(part) => format!("a name containing `{part}`"),
    };
    match position(choice, &summaries) {
        Some(at) => Ok(found.swap_remove(at)),
        None if names.is_empty() => Err(Error::Adapter(format!(
            "no Vulkan, Metal or DX12 adapter on this machine, {wanted} expected; on Linux without a GPU, install Mesa's Vulkan drivers"
        ))),
        None => Err(Error::Adapter(format!("found {}; expected {wanted}", names.join(", ")))),
    }
}

fn position(choice: &AdapterChoice, found: &[&AdapterSummary]) -> Option<usize> {
    match choice {
        AdapterChoice::Best => {
            (0..found.len()).filter(|&i| found[i].kernel_tier.is_some()).min_by_key(|&i| found[i].preference())
        }
        AdapterChoice::Cpu => found.iter().position(|summary| summary.is_software()),
        AdapterChoice::Index(index) => (*index < found.len()).then_some(*index),
        AdapterChoice::Name(part) => {
            let part = part.to_lowercase();
            found.iter().position(|summary| !part.is_empty() && summary.name.to_lowercase().contains(&part))
        }
    }
}

/// A line for each GPU that would be preferred to the best usable adapter but lacks something.
fn passed_over(found: &[&AdapterSummary]) -> Vec<String> {
    let best = position(&AdapterChoice::Best, found).map_or(usize::MAX, |best| found[best].preference());
    let unusable = found.iter().filter(|summary| !summary.is_software() && summary.preference() <= best);
    unusable.filter_map(|summary| Some(format!("`{}` cannot be used: {}", summary.name, summary.missing()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(name: &str, kind: wgpu::DeviceType, usable: bool) -> AdapterSummary {
        let features = if usable { wgpu::Features::IMMEDIATES } else { wgpu::Features::empty() };
        AdapterSummary {
            index: 0,
            name: name.into(),
            kind,
            backend: wgpu::Backend::Vulkan,
            driver: String::new(),
            pci: String::new(),
            limits: wgpu::Limits { max_immediate_size: IMMEDIATE_BYTES, ..wgpu::Limits::default() },
            features,
            subgroup_lanes: (32, 32),
            matrix_block: None,
            registers: 256,
            memory: None,
            kernel_tier: usable.then_some(KernelTier::Portable),
        }
    }

    #[test]
    fn adapters_of_few_registers_are_known_by_name() {
        for (name, expected) in [
            ("Apple M1 (G13G A0)", 128),
            ("Apple M4 Max", 128),
            ("Turnip Adreno (TM) 660", 96),
            ("Adreno (TM) 540", 96),
            ("Turnip Adreno (TM) 750", 256),
            ("Snapdragon(R) X Elite - X1E78100 - Qualcomm(R) Adreno(TM) GPU", 256),
            ("Qualcomm Adreno X1-85", 256),
            ("AMD Radeon RX 6600 (RADV NAVI23)", 256),
            ("NVIDIA H200", 256),
        ] {
            assert_eq!(registers(name), expected, "{name}");
        }
    }

    #[test]
    fn the_best_adapter_is_usable_and_what_is_passed_over_is_named() {
        use wgpu::DeviceType::{Cpu, DiscreteGpu, IntegratedGpu};
        let card = adapter("card", DiscreteGpu, false);
        let chip = adapter("chip", IntegratedGpu, true);
        let cpu = adapter("cpu", Cpu, true);
        let reason = "`card` cannot be used: immediate data (push constants) is not supported";
        for (found, best, lines) in [
            (vec![&cpu, &card], Some(0), vec![reason]),
            (vec![&card, &cpu, &chip], Some(2), vec![reason]),
            (vec![&chip, &cpu], Some(0), vec![]),
            (vec![&card], None, vec![reason]),
        ] {
            assert_eq!(position(&AdapterChoice::Best, &found), best);
            assert_eq!(passed_over(&found), lines);
        }
    }
}
