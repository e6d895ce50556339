//! Choosing an adapter, its limits and features, the kernel profile; and [`Gpu`], the handle that everything else takes.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex};

use super::kernel::PipelineCache;
use super::pool::{Buffer, GRANULE, MemoryUse, Pool};
use super::profile::ProfileTable;
use super::queue::{QueueCounters, Recorder};
use crate::error::{Error, Result};

/// Which adapter to use.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum AdapterChoice {
    /// The best kind there is: a discrete card, then an integrated one, then a virtual one, then software.
    #[default]
    Best,
    /// The CPU fallback adapter (Mesa lavapipe, WARP).
    Cpu,
    /// The position in [`adapters`].
    Index(usize),
    /// The first adapter whose name contains this text, in any case.
    Name(String),
}

impl FromStr for AdapterChoice {
    type Err = std::convert::Infallible;

    /// `best`, `cpu`, a number, or else part of a name.
    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        Ok(match text.to_ascii_lowercase().as_str() {
            "best" => Self::Best,
            "cpu" => Self::Cpu,
            lower => lower.parse().map_or_else(|_| Self::Name(text.to_string()), Self::Index),
        })
    }
}

/// Which set of kernels an adapter gets. Results agree within the test tolerances on every profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Profile {
    /// Software adapters with subgroups: one subgroup per workgroup, no shared memory, operands spread over the lanes.
    Fallback,
    /// WebGPU's defaults: 256 invocations and 16 KiB of shared memory per workgroup.
    Portable,
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fallback => "fallback",
            Self::Portable => "portable",
        })
    }
}

impl FromStr for Profile {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "fallback" => Ok(Self::Fallback),
            "portable" => Ok(Self::Portable),
            _ => Err(Error::Value(format!("kernel profile: found `{text}`, expected fallback or portable"))),
        }
    }
}

/// How to open a device.
#[derive(Debug, Clone)]
pub struct GpuOptions {
    /// Which adapter.
    pub adapter: AdapterChoice,
    /// The kernels to use instead of those that suit the adapter; `None` lets the adapter decide.
    pub kernels: Option<Profile>,
    /// Bytes of device memory that buffers may take together; `None` leaves the limit to the driver.
    pub memory_budget: Option<u64>,
    /// The most bytes of one buffer that a kernel is shown at a time; `None` takes what the adapter allows. Larger tensors are
    /// processed in windows, which a small limit lets a test see.
    pub binding_limit: Option<u64>,
    /// The most floating-point operations of one dispatch of a product or of attention, which are cut to it; `None` takes what
    /// lasts less than a tenth of a second on slow adapters of the kind: a watchdog ends what lasts seconds.
    pub work_limit: Option<u64>,
    /// Compile shaders with bounds checks. On in debug builds; the kernels of this crate stay in bounds without them.
    pub checked_shaders: bool,
    /// Measure the time of each kernel with timestamp queries; see [`Gpu::profile`]. Slows everything down.
    pub profile: bool,
    /// Called with one line when something deserves the user's attention, such as a software adapter.
    pub warn: fn(&str),
}

impl Default for GpuOptions {
    fn default() -> Self {
        Self {
            adapter: AdapterChoice::Best,
            kernels: None,
            memory_budget: None,
            binding_limit: None,
            work_limit: None,
            checked_shaders: cfg!(debug_assertions),
            profile: false,
            warn: |line| eprintln!("warning: {line}"),
        }
    }
}

/// What [`adapters`] tells of an adapter.
#[derive(Debug, Clone)]
pub struct AdapterSummary {
    /// Position in the list, for [`AdapterChoice::Index`].
    pub index: usize,
    /// The driver's name for it.
    pub name: String,
    /// Discrete, integrated, virtual, CPU or other.
    pub kind: wgpu::DeviceType,
    /// Vulkan, Metal or DX12.
    pub backend: wgpu::Backend,
    /// Driver name and version.
    pub driver: String,
    /// What the adapter allows.
    pub limits: wgpu::Limits,
    /// What the adapter can do.
    pub features: wgpu::Features,
    /// Smallest and largest number of lanes of a subgroup.
    pub subgroup_lanes: (u32, u32),
    /// The kernels it would get; `None` when it cannot run this crate, see [`AdapterSummary::missing`].
    pub profile: Option<Profile>,
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
            limits: adapter.limits(),
            features: adapter.features(),
            subgroup_lanes: (info.subgroup_min_size, info.subgroup_max_size),
            profile: None,
        };
        summary.profile = summary.missing().is_none().then(|| match summary.lanes() {
            Some(_) if summary.is_software() => Profile::Fallback,
            _ => Profile::Portable,
        });
        summary
    }

    /// Whether shaders run on the CPU.
    pub fn is_software(&self) -> bool {
        self.kind == wgpu::DeviceType::Cpu
    }

    /// What this crate needs and the adapter lacks.
    pub fn missing(&self) -> Option<String> {
        let need = |have: u32, want: u32, what: &str| (have < want).then(|| format!("{what}: {have}, at least {want} needed"));
        if !self.features.contains(wgpu::Features::IMMEDIATES) {
            return Some("immediate data (push constants) is not supported".into());
        }
        need(self.limits.max_immediate_size, IMMEDIATE_BYTES, "bytes of immediate data")
            .or_else(|| need(self.limits.max_compute_invocations_per_workgroup, 256, "invocations per workgroup"))
            .or_else(|| need(self.limits.max_compute_workgroup_storage_size, 16 << 10, "bytes of workgroup memory"))
            .or_else(|| need(self.limits.max_storage_buffers_per_shader_stage, 8, "storage buffers per kernel"))
    }

    /// The fixed number of lanes of a subgroup, where the kernels of [`Profile::Fallback`] can use it.
    fn lanes(&self) -> Option<u32> {
        let (least, most) = self.subgroup_lanes;
        let fixed = least == most && matches!(least, 4 | 8 | 16 | 32);
        (fixed && self.features.contains(wgpu::Features::SUBGROUP)).then_some(least)
    }

    fn preference(&self) -> usize {
        use wgpu::DeviceType::{Cpu, DiscreteGpu, IntegratedGpu, Other, VirtualGpu};
        [DiscreteGpu, IntegratedGpu, VirtualGpu, Other, Cpu].iter().position(|kind| *kind == self.kind).unwrap_or(usize::MAX)
    }
}

/// Bytes of arguments that a dispatch may carry; every native backend has at least these.
pub(super) const IMMEDIATE_BYTES: u32 = 128;

/// Floating-point operations of a dispatch below a tenth of a second: at 40 GFLOP/s on a software adapter of two cores, at 200 on a
/// small integrated GPU.
const SOFTWARE_WORK: u64 = 4_000_000_000;
const GPU_WORK: u64 = 16_000_000_000;
/// A submit ends once it holds so many of them, which is below half a second.
const WORK_LIMITS_PER_SUBMIT: u64 = 3;

/// All adapters of the machine, in the order that [`AdapterChoice::Index`] counts.
pub fn adapters() -> Vec<AdapterSummary> {
    pollster::block_on(enumerate()).iter().map(|(summary, _)| summary.clone()).collect()
}

async fn enumerate() -> Vec<(AdapterSummary, wgpu::Adapter)> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: wgpu::Backends::PRIMARY,
        flags: wgpu::InstanceFlags::empty(),
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    let found = instance.enumerate_adapters(wgpu::Backends::PRIMARY).await;
    found.into_iter().enumerate().map(|(index, adapter)| (AdapterSummary::new(index, &adapter), adapter)).collect()
}

fn choose(choice: &AdapterChoice, mut found: Vec<(AdapterSummary, wgpu::Adapter)>) -> Result<(AdapterSummary, wgpu::Adapter)> {
    let names: Vec<String> = found.iter().map(|(summary, _)| format!("{} {}", summary.index, summary.name)).collect();
    let position = match choice {
        AdapterChoice::Best => {
            (0..found.len()).filter(|&i| found[i].0.profile.is_some()).min_by_key(|&i| found[i].0.preference())
        }
        AdapterChoice::Cpu => found.iter().position(|(summary, _)| summary.is_software()),
        AdapterChoice::Index(index) => (*index < found.len()).then_some(*index),
        AdapterChoice::Name(part) => {
            let part = part.to_lowercase();
            found.iter().position(|(summary, _)| summary.name.to_lowercase().contains(&part))
        }
    };
    let wanted = match choice {
        AdapterChoice::Best => "one that can run compute shaders".to_string(),
        AdapterChoice::Cpu => "a CPU fallback adapter".to_string(),
        AdapterChoice::Index(index) => format!("number {index}"),
        AdapterChoice::Name(part) => format!("a name containing `{part}`"),
    };
    match position {
        Some(at) => Ok(found.swap_remove(at)),
        None if names.is_empty() => Err(Error::Adapter(format!(
            "no Vulkan, Metal or DX12 adapter on this machine, {wanted} expected; on Linux without a GPU, install Mesa's Vulkan drivers"
        ))),
        None => Err(Error::Adapter(format!("found {}; expected {wanted}", names.join(", ")))),
    }
}

/// A device with its queue, kernels and buffers. Cheap to clone; every clone is the same device.
#[derive(Clone)]
pub struct Gpu {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pub(super) summary: AdapterSummary,
    pub(super) profile: Profile,
    pub(super) checked_shaders: bool,
    pub(super) binding_limit: u64,
    pub(super) work_limit: u64,
    pub(super) pool: Arc<Pool>,
    pub(super) pipelines: PipelineCache,
    pub(super) recorder: Mutex<Recorder>,
    pub(super) failure: Arc<Mutex<Option<String>>>,
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gpu({}, {} kernels)", self.inner.summary.name, self.inner.profile)
    }
}

impl Gpu {
    /// Opens a device, blocking until it is there.
    pub fn open(options: &GpuOptions) -> Result<Self> {
        pollster::block_on(Self::open_async(options))
    }

    /// Opens a device.
    pub async fn open_async(options: &GpuOptions) -> Result<Self> {
        let (summary, adapter) = choose(&options.adapter, enumerate().await)?;
        let profile = Self::choose_profile(&summary, options.kernels)?;
        if summary.is_software() {
            (options.warn)(&format!(
                "`{}` is a software adapter: kernels run on the CPU, tens to hundreds of times slower than on a GPU",
                summary.name
            ));
        }
        let (device, queue) = Self::request(&adapter, &summary, options.profile).await?;
        let failure = Arc::new(Mutex::new(None));
        watch(&device, &failure);
        let allowed = summary.limits.max_storage_buffer_binding_size;
        let binding_limit = options.binding_limit.map_or(allowed, |limit| limit.min(allowed)) & !(GRANULE - 1);
        let usual = if summary.is_software() { SOFTWARE_WORK } else { GPU_WORK };
        let work_limit = options.work_limit.unwrap_or(usual).max(1);
        let recorder = Recorder::new(&device, &queue, options.profile, WORK_LIMITS_PER_SUBMIT * usual);
        Ok(Self {
            inner: Arc::new(Inner {
                pool: Arc::new(Pool::new(device.clone(), options.memory_budget)),
                pipelines: PipelineCache::default(),
                recorder: Mutex::new(recorder),
                checked_shaders: options.checked_shaders,
                binding_limit,
                work_limit,
                device,
                queue,
                summary,
                profile,
                failure,
            }),
        })
    }

    fn choose_profile(summary: &AdapterSummary, forced: Option<Profile>) -> Result<Profile> {
        if let Some(missing) = summary.missing() {
            return Err(Error::Adapter(format!("`{}` cannot be used: {missing}", summary.name)));
        }
        match forced {
            Some(Profile::Fallback) if summary.lanes().is_none() => Err(Error::Adapter(format!(
                "`{}` cannot run the fallback kernels: they need subgroups of one fixed size",
                summary.name
            ))),
            Some(profile) => Ok(profile),
            None => Ok(summary.profile.unwrap_or(Profile::Portable)),
        }
    }

    async fn request(adapter: &wgpu::Adapter, summary: &AdapterSummary, timed: bool) -> Result<(wgpu::Device, wgpu::Queue)> {
        let timestamps = wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES;
        if timed && !summary.features.contains(timestamps) {
            return Err(Error::Adapter(format!("`{}` has no timestamp queries inside passes, so no profile", summary.name)));
        }
        let optional = wgpu::Features::SUBGROUP | if timed { timestamps } else { wgpu::Features::empty() };
        let descriptor = wgpu::DeviceDescriptor {
            required_features: wgpu::Features::IMMEDIATES | (optional & summary.features),
            required_limits: summary.limits.clone(),
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..Default::default()
        };
        let opened = adapter.request_device(&descriptor).await;
        opened.map_err(|error| Error::Adapter(format!("`{}` refused a device: {error}", summary.name)))
    }

    /// The adapter behind this device.
    pub fn adapter(&self) -> &AdapterSummary {
        &self.inner.summary
    }

    /// The kernels in use.
    pub fn kernels(&self) -> Profile {
        self.inner.profile
    }

    /// Lanes of a subgroup for the kernels of [`Profile::Fallback`].
    pub(crate) fn lanes(&self) -> u32 {
        self.inner.summary.lanes().unwrap_or(8)
    }

    /// The largest number of bytes that a kernel can see of one buffer.
    pub fn binding_limit(&self) -> u64 {
        self.inner.binding_limit
    }

    /// Device memory in use.
    pub fn memory(&self) -> MemoryUse {
        self.inner.pool.usage()
    }

    /// Whether a buffer was allocated on this device.
    pub(super) fn owns(&self, buffer: &Buffer) -> bool {
        self.inner.pool.owns(buffer)
    }

    /// Starts the peak of [`Gpu::memory`] anew at what is live now.
    pub fn reset_peak(&self) {
        self.inner.pool.reset_peak();
    }

    /// A buffer of at least `bytes` bytes with arbitrary contents.
    pub fn allocate(&self, bytes: u64) -> Result<Buffer> {
        self.inner.pool.allocate(bytes)
    }

    /// Time per kernel since the device was opened, when [`GpuOptions::profile`] was set.
    pub fn profile(&self) -> Result<ProfileTable> {
        self.flush()?;
        Ok(self.recorder().profile_table())
    }

    /// Dispatches, submits and copied bytes since the device was opened.
    pub fn counters(&self) -> QueueCounters {
        self.recorder().counters()
    }
}

/// Keeps what the device says outside of any call, for the next call to return as its error.
fn watch(device: &wgpu::Device, failure: &Arc<Mutex<Option<String>>>) {
    let keep = |slot: &Arc<Mutex<Option<String>>>, text: String| {
        let mut slot = slot.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        slot.get_or_insert(text);
    };
    let slot = failure.clone();
    device.set_device_lost_callback(move |reason, message| {
        if reason != wgpu::DeviceLostReason::Destroyed {
            keep(&slot, format!("lost: {message}"));
        }
    });
    let slot = failure.clone();
    device.on_uncaptured_error(Arc::new(move |error| keep(&slot, error.to_string())));
}
