//! [`Gpu`], the handle to an open device, and [`GpuOptions`].

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex};

use super::adapter::{AdapterChoice, AdapterSummary, KernelTier, choose, enumerate};
#[cfg(feature = "host")]
use super::host::Executor;
use super::matrix::{self, MatrixUnits};
use super::pace::Pace;
use super::pipeline::Pipelines;
use super::pool::{Buffer, GRANULE, MemoryUse, Pool};
use super::profile::ProfileTable;
use super::queue::QueueCounters;
use super::recorder::Recorder;
use super::tune::{Tuner, Tuning};
use super::variant::{KernelVariant, Rehearsed};
use crate::error::{Error, Result};

/// Options of [`Gpu::open`].
#[derive(Debug, Clone)]
pub struct GpuOptions {
    /// The adapter to open.
    pub adapter: AdapterChoice,
    /// The kernel tier; `None` picks the best one that the adapter supports.
    pub kernels: Option<KernelTier>,
    /// Device memory budget for all buffers, in bytes; `None` takes [`AdapterSummary::memory_budget`], and where the driver does not
    /// tell its memory, leaves the limit to the driver.
    pub memory_budget: Option<u64>,
    /// Maximum size of a binding, in bytes; `None` uses the adapter's limit. Larger tensors are processed in windows, which
    /// tests exercise with a small limit.
    pub binding_limit: Option<u64>,
    /// Maximum FLOP per dispatch of products and attention, which are split to respect it; `None` picks what takes under 100 ms, well
    /// below the seconds that trip the driver's watchdog: on a slow adapter of its kind, and from the first long dispatches on as
    /// measured. Splitting changes no bit.
    pub work_limit: Option<u64>,
    /// Autotuning of kernels per shape class.
    pub tuning: Tuning,
    /// Compile the kernels of this crate on all cores while the host records on. The error of a compiler, which a kernel of this crate
    /// has only on a faulty driver, then comes from a later call. A dispatch that is timed waits for its compiler.
    /// Off: a launch waits for its kernel and returns it.
    pub compile_ahead: bool,
    /// Compile shaders with bounds checks. On in debug builds; the kernels of this crate do not rely on them.
    pub checked_shaders: bool,
    /// Skip the self-test of the [`KernelTier::Matrix`] kernels: for drivers that compile and execute nothing.
    pub skip_self_test: bool,
    /// Time every kernel with timestamp queries, which slows execution down; see [`Gpu::profile`].
    pub profile: bool,
    /// Threads of the [`KernelTier::Host`] kernels; `None` takes one per core. Results are the same bits for any number.
    pub threads: Option<usize>,
    /// Called with a one-line warning, such as that the adapter is a software one.
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
            compile_ahead: true,
            checked_shaders: cfg!(debug_assertions),
            skip_self_test: false,
            profile: false,
            threads: None,
            warn: |line| eprintln!("warning: {line}"),
        }
    }
}

/// A device with its queue, pipelines and buffers. Cheap to clone: clones share the device.
#[derive(Clone)]
pub struct Gpu {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) device: wgpu::Device,
    pub(super) summary: AdapterSummary,
    pub(super) tier: KernelTier,
    pub(super) shader_tier: KernelTier,
    /// See [`MatrixUnits::rounds_f16`].
    pub(super) rounds_f16: bool,
    pub(super) compile_ahead: bool,
    pub(super) binding_limit: u64,
    pub(super) pace: Arc<Pace>,
    /// On the host tier.
    #[cfg(feature = "host")]
    pub(super) executor: Option<Executor>,
    pub(super) pool: Arc<Pool>,
    pub(super) pipelines: Pipelines,
    pub(super) variants: Mutex<BTreeSet<KernelVariant>>,
    /// The dispatches that a rehearsal would have made.
    pub(super) rehearsed: Mutex<Vec<Rehearsed>>,
    /// Notes the variants and the dispatches, and runs nothing.
    pub(super) is_rehearsal: bool,
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
    /// Opens a device, blocking.
    pub fn open(options: &GpuOptions) -> Result<Self> {
        pollster::block_on(Self::open_async(options))
    }

    /// Opens a device.
    pub async fn open_async(options: &GpuOptions) -> Result<Self> {
        let (summary, adapter) = choose(&options.adapter, enumerate().await, options.warn)?;
        let mut tier = Self::choose_tier(&summary, options.kernels)?;
        if summary.is_software() {
            (options.warn)(&format!(
                "`{}` is a software adapter: the {tier} kernels run on the CPU, tens to hundreds of times slower than on a GPU",
                summary.name
            ));
        }
        let mut rounds_f16 = false;
        if tier == KernelTier::Matrix && !options.skip_self_test {
            match Self::try_matrices(&adapter, &summary).await {
                Ok(rounds) => rounds_f16 = rounds,
                Err(problem) if options.kernels.is_some() => {
                    return Err(Error::Adapter(format!("`{}` cannot run the {tier} kernels: {problem}", summary.name)));
                }
                Err(problem) => {
                    (options.warn)(&format!("the matrix units failed their self-test, using the subgroup kernels: {problem}"));
                    tier = KernelTier::Subgroup;
                }
            }
        }
        Self::open_with(&adapter, &summary, tier, rounds_f16, options).await
    }

    /// Runs the self-test on a throwaway device, so that a failure cannot corrupt the real one.
    async fn try_matrices(adapter: &wgpu::Adapter, summary: &AdapterSummary) -> Result<bool> {
        matrix::check(&Self::open_with(adapter, summary, KernelTier::Matrix, false, &GpuOptions::default()).await?).await
    }

    async fn open_with(
        adapter: &wgpu::Adapter,
        summary: &AdapterSummary,
        tier: KernelTier,
        rounds_f16: bool,
        options: &GpuOptions,
    ) -> Result<Self> {
        let opened = Self::request(adapter, summary, tier, options.profile).await?;
        Self::over(opened, summary, tier, rounds_f16, options, false)
    }

    /// A handle to an open device, used as the adapter `summary` describes it.
    pub(super) fn over(
        (device, queue): (wgpu::Device, wgpu::Queue),
        summary: &AdapterSummary,
        tier: KernelTier,
        rounds_f16: bool,
        options: &GpuOptions,
        is_rehearsal: bool,
    ) -> Result<Self> {
        let failure = Arc::new(Mutex::new(None));
        watch(&device, &failure);
        let allowed = summary.limits.max_storage_buffer_binding_size;
        let binding_limit = options.binding_limit.map_or(allowed, |limit| limit.min(allowed)) & !(GRANULE - 1);
        let memory_budget = options.memory_budget.or_else(|| summary.memory_budget());
        let pace = Arc::new(Pace::new(summary, options.work_limit));
        let recorder = Recorder::new(&device, &queue, options.profile, &pace, &failure);
        let shader_tier = match tier {
            KernelTier::Host if summary.lacks(KernelTier::Fallback).is_none() => KernelTier::Fallback,
            KernelTier::Host => KernelTier::Portable,
            tier => tier,
        };
        let tuned_for = format!("{} {}, {tier} kernels", summary.name, summary.driver);
        Ok(Self {
            inner: Arc::new(Inner {
                tuner: Tuner::new(&options.tuning, &tuned_for, options.warn),
                pool: Arc::new(Pool::new(device.clone(), memory_budget, tier == KernelTier::Host, is_rehearsal)),
                #[cfg(feature = "host")]
                executor: (tier == KernelTier::Host).then(|| Executor::new(options.threads)).transpose()?,
                pipelines: Pipelines::new(&device, shader_tier, options.checked_shaders),
                variants: Mutex::default(),
                rehearsed: Mutex::default(),
                is_rehearsal,
                recorder: Mutex::new(recorder),
                compile_ahead: options.compile_ahead,
                binding_limit,
                pace,
                device,
                summary: summary.clone(),
                tier,
                shader_tier,
                rounds_f16,
                failure,
            }),
        })
    }

    pub(super) fn choose_tier(summary: &AdapterSummary, forced: Option<KernelTier>) -> Result<KernelTier> {
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
            return Err(Error::Adapter(format!(
                "`{}` has no timestamp queries inside passes, which profiling needs",
                summary.name
            )));
        }
        let optional = wgpu::Features::SUBGROUP | if timed { timestamps } else { wgpu::Features::empty() };
        let mut needed = wgpu::Features::IMMEDIATES;
        let mut experimental_features = wgpu::ExperimentalFeatures::disabled();
        if tier == KernelTier::Host {
            needed |= wgpu::Features::MAPPABLE_PRIMARY_BUFFERS;
        }
        if tier == KernelTier::Matrix {
            needed |= wgpu::Features::SHADER_F16 | wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
            // SAFETY: experimental features may have bugs that break memory safety. Only cooperative matrices are requested, for
            // kernels of this crate that stay in bounds.
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
        opened.map_err(|error| Error::Adapter(format!("`{}` cannot open a device: {error}", summary.name)))
    }

    /// The adapter behind this device.
    pub fn adapter(&self) -> &AdapterSummary {
        &self.inner.summary
    }

    /// The kernel tier in use.
    pub fn kernels(&self) -> KernelTier {
        self.inner.tier
    }

    /// The tier of the kernels that run on the adapter: on the host tier, those without a twin.
    pub(crate) fn shader_tier(&self) -> KernelTier {
        self.inner.shader_tier
    }

    /// Subgroup size for [`KernelTier::Fallback`].
    pub(crate) fn lanes(&self) -> u32 {
        self.inner.summary.lanes().unwrap_or(8)
    }

    /// The matrix units, for [`KernelTier::Matrix`].
    pub(crate) fn matrices(&self) -> Option<MatrixUnits> {
        let summary = &self.inner.summary;
        let rounds_f16 = self.inner.rounds_f16;
        let scalars = summary.backend == wgpu::Backend::Metal;
        summary.matrix_block.map(|block| MatrixUnits { lanes: summary.subgroup_lanes, block, rounds_f16, scalars })
    }

    /// Workgroups taken to fill the device: 16 with [`KernelTier::Fallback`], 64 on an integrated GPU, else 256. No API
    /// reports the number of cores. Products with fewer tiles split their inner dimension (split-K), so that results depend on it; it
    /// depends on the kernel tier and the kind of the adapter alone.
    pub fn full_occupancy(&self) -> usize {
        match (self.kernels(), self.adapter().kind) {
            (KernelTier::Fallback, _) => 16,
            (_, wgpu::DeviceType::IntegratedGpu) => 64,
            _ => 256,
        }
    }

    /// Maximum size of a binding, in bytes.
    pub fn binding_limit(&self) -> u64 {
        self.inner.binding_limit
    }

    /// Bytes that all buffers together may take; `None` where nothing bounds them.
    pub fn memory_budget(&self) -> Option<u64> {
        self.inner.pool.budget()
    }

    /// Maximum size of a binding of a kernel that has a twin: none on the host tier, which binds nothing.
    pub(crate) fn twin_limit(&self) -> u64 {
        if self.inner.tier == KernelTier::Host { u64::MAX } else { self.inner.binding_limit }
    }

    /// Device memory in use.
    pub fn memory(&self) -> MemoryUse {
        self.inner.pool.usage()
    }

    /// Whether a buffer was allocated on this device.
    pub(super) fn owns(&self, buffer: &Buffer) -> bool {
        self.inner.pool.owns(buffer)
    }

    /// Resets the peak of [`Gpu::memory`] to the bytes live now.
    pub fn reset_peak(&self) {
        self.inner.pool.reset_peak();
    }

    /// A buffer of at least `bytes` bytes with undefined contents.
    pub fn allocate(&self, bytes: u64) -> Result<Buffer> {
        self.inner.pool.allocate(bytes)
    }

    /// Time per kernel since the device was opened, or since [`Gpu::time_kernels`]; empty without [`GpuOptions::profile`].
    pub fn profile(&self) -> Result<ProfileTable> {
        self.flush()?;
        Ok(self.recorder().profile_table())
    }

    /// Dispatches, submits and copied bytes since the device was opened.
    pub fn counters(&self) -> QueueCounters {
        *self.recorder().counters()
    }
}

/// Stores the first asynchronous device error, for the next call to return.
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
