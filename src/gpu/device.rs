//! Opening a device; and [`Gpu`], the handle that everything else takes.

use std::fmt;
use std::sync::{Arc, Mutex};

use super::adapter::{AdapterChoice, AdapterSummary, KernelTier, choose, enumerate};
use super::kernel::PipelineCache;
use super::matrix;
use super::pool::{Buffer, GRANULE, MemoryUse, Pool};
use super::profile::ProfileTable;
use super::queue::{QueueCounters, Recorder};
use super::tune::{Tuner, Tuning};
use crate::error::{Error, Result};

/// How to open a device.
#[derive(Debug, Clone)]
pub struct GpuOptions {
    /// Which adapter.
    pub adapter: AdapterChoice,
    /// The kernels to use instead of those that suit the adapter; `None` lets the adapter decide.
    pub kernels: Option<KernelTier>,
    /// Bytes of device memory that buffers may take together; `None` leaves the limit to the driver.
    pub memory_budget: Option<u64>,
    /// The most bytes of one buffer that a kernel is shown at a time; `None` takes what the adapter allows. Larger tensors are
    /// processed in windows, which a small limit lets a test see.
    pub binding_limit: Option<u64>,
    /// The most floating-point operations of one dispatch of a product or of attention, which are cut to it; `None` takes what
    /// lasts less than a tenth of a second on slow adapters of the kind: a watchdog ends what lasts seconds.
    pub work_limit: Option<u64>,
    /// Whether to try out which kernel is fastest for a class of shapes.
    pub tuning: Tuning,
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
            tuning: Tuning::Off,
            checked_shaders: cfg!(debug_assertions),
            profile: false,
            warn: |line| eprintln!("warning: {line}"),
        }
    }
}

/// Floating-point operations of a dispatch below a tenth of a second: at 40 GFLOP/s on a software adapter of two cores, at 200 on a
/// small integrated GPU.
const SOFTWARE_WORK: u64 = 4_000_000_000;
const GPU_WORK: u64 = 16_000_000_000;
/// A submit ends once it holds so many of them, which is below half a second.
const WORK_LIMITS_PER_SUBMIT: u64 = 3;

/// A device with its queue, kernels and buffers. Cheap to clone; every clone is the same device.
#[derive(Clone)]
pub struct Gpu {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pub(super) summary: AdapterSummary,
    pub(super) tier: KernelTier,
    pub(super) checked_shaders: bool,
    pub(super) binding_limit: u64,
    pub(super) work_limit: u64,
    pub(super) pool: Arc<Pool>,
    pub(super) pipelines: PipelineCache,
    pub(super) recorder: Mutex<Recorder>,
    pub(super) tuner: Tuner,
    pub(super) failure: Arc<Mutex<Option<String>>>,
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gpu({}, {} kernels)", self.inner.summary.name, self.inner.tier)
    }
}

impl Gpu {
    /// Opens a device, blocking until it is there.
    pub fn open(options: &GpuOptions) -> Result<Self> {
        pollster::block_on(Self::open_async(options))
    }

    /// Opens a device.
    pub async fn open_async(options: &GpuOptions) -> Result<Self> {
        let (summary, adapter) = choose(&options.adapter, enumerate().await, options.warn)?;
        let mut tier = Self::choose_tier(&summary, options.kernels)?;
        if summary.is_software() {
            (options.warn)(&format!(
                "`{}` is a software adapter: kernels run on the CPU, tens to hundreds of times slower than on a GPU",
                summary.name
            ));
        }
        if tier == KernelTier::Matrix
            && let Err(problem) = Self::try_matrices(&adapter, &summary).await
        {
            if options.kernels.is_some() {
                return Err(Error::Adapter(format!("`{}` cannot run the {tier} kernels: {problem}", summary.name)));
            }
            (options.warn)(&format!("the matrix units cannot be used, so the subgroup kernels run: {problem}"));
            tier = KernelTier::Subgroup;
        }
        Self::open_with(&adapter, &summary, tier, options).await
    }

    /// A product on a device of its own, which is thrown away with whatever may break there.
    async fn try_matrices(adapter: &wgpu::Adapter, summary: &AdapterSummary) -> Result<()> {
        matrix::check(&Self::open_with(adapter, summary, KernelTier::Matrix, &GpuOptions::default()).await?).await
    }

    async fn open_with(
        adapter: &wgpu::Adapter,
        summary: &AdapterSummary,
        tier: KernelTier,
        options: &GpuOptions,
    ) -> Result<Self> {
        let (device, queue) = Self::request(adapter, summary, tier, options.profile).await?;
        let failure = Arc::new(Mutex::new(None));
        watch(&device, &failure);
        let allowed = summary.limits.max_storage_buffer_binding_size;
        let binding_limit = options.binding_limit.map_or(allowed, |limit| limit.min(allowed)) & !(GRANULE - 1);
        let usual = if summary.is_software() { SOFTWARE_WORK } else { GPU_WORK };
        let work_limit = options.work_limit.unwrap_or(usual).max(1);
        let recorder = Recorder::new(&device, &queue, options.profile, WORK_LIMITS_PER_SUBMIT * usual);
        let tuned_for = format!("{} {}, {tier} kernels", summary.name, summary.driver);
        Ok(Self {
            inner: Arc::new(Inner {
                tuner: Tuner::new(&options.tuning, &tuned_for, options.warn),
                pool: Arc::new(Pool::new(device.clone(), options.memory_budget)),
                pipelines: PipelineCache::default(),
                recorder: Mutex::new(recorder),
                checked_shaders: options.checked_shaders,
                binding_limit,
                work_limit,
                device,
                queue,
                summary: summary.clone(),
                tier,
                failure,
            }),
        })
    }

    fn choose_tier(summary: &AdapterSummary, forced: Option<KernelTier>) -> Result<KernelTier> {
        if let Some(missing) = summary.missing() {
            return Err(Error::Adapter(format!("`{}` cannot be used: {missing}", summary.name)));
        }
        let tier = forced.or(summary.kernel_tier).unwrap_or(KernelTier::Portable);
        match summary.lacks(tier) {
            Some(lack) => Err(Error::Adapter(format!("`{}` cannot run the {tier} kernels: {lack}", summary.name))),
            None => Ok(tier),
        }
    }

    async fn request(
        adapter: &wgpu::Adapter,
        summary: &AdapterSummary,
        tier: KernelTier,
        timed: bool,
    ) -> Result<(wgpu::Device, wgpu::Queue)> {
        let timestamps = wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES;
        if timed && !summary.features.contains(timestamps) {
            return Err(Error::Adapter(format!("`{}` has no timestamp queries inside passes, so no profile", summary.name)));
        }
        let optional = wgpu::Features::SUBGROUP | if timed { timestamps } else { wgpu::Features::empty() };
        let mut needed = wgpu::Features::IMMEDIATES;
        let mut experimental_features = wgpu::ExperimentalFeatures::disabled();
        if tier == KernelTier::Matrix {
            needed |= wgpu::Features::SHADER_F16 | wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
            // SAFETY: the features that this allows may have bugs that break memory safety. Only cooperative matrices are asked
            // for, in two kernels of this crate that stay in bounds.
            experimental_features = unsafe { wgpu::ExperimentalFeatures::enabled() };
        }
        let descriptor = wgpu::DeviceDescriptor {
            required_features: needed | (optional & summary.features),
            experimental_features,
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
    pub fn kernels(&self) -> KernelTier {
        self.inner.tier
    }

    /// Lanes of a subgroup for the kernels of [`KernelTier::Fallback`].
    pub(crate) fn lanes(&self) -> u32 {
        self.inner.summary.lanes().unwrap_or(8)
    }

    /// The most lanes of a subgroup, and the side of the blocks of cooperative matrices, for the kernels of [`KernelTier::Matrix`].
    pub(crate) fn matrices(&self) -> Option<(u32, u32)> {
        let summary = &self.inner.summary;
        summary.matrix_block.map(|block| (summary.subgroup_lanes.1, block))
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
