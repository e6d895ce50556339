//! Kernels: their WGSL and bindings, checks of a launch, its dispatches.

use std::sync::Arc;

use super::adapter::KernelTier;
use super::device::Gpu;
#[cfg(feature = "host")]
use super::host::Twin;
use super::pace::Trial;
use super::pipeline::Pipeline;
use super::pool::{Buffer, GRANULE};
use super::variant::{KernelVariant, Rehearsed};
use crate::error::{Error, Result};

/// Access mode of a binding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// `var<storage, read>`
    Read,
    /// `var<storage, read_write>`
    ReadWrite,
}

/// A compute shader: WGSL source, entry point, and the storage buffers it binds, in order from `@group(0) @binding(0)`.
///
/// Arguments are passed as a `var<immediate>` of at most 128 bytes: a struct without arrays, because DX12 would pad those. Loops
/// marked `@unroll` are unrolled in the text: naga does not unroll, and an array indexed by a loop variable cannot live in
/// registers. `@declare` repeats declarations the same way, and `@if NAME { … } @else { … }` is conditional compilation. The source
/// is preceded by `shaders/prelude.wgsl`, whose `linear_index` goes with [`grid`], and by the constant `SUBGROUPS`: whether the
/// device's [`KernelTier`] has subgroup reductions.
#[derive(Debug, Clone, Copy)]
pub struct Kernel {
    pub(super) name: &'static str,
    pub(super) source: &'static str,
    pub(super) entry: &'static str,
    pub(super) bindings: &'static [Access],
    /// In bounds by construction: release builds compile it without bounds checks.
    pub(super) trusted: bool,
    /// How a long dispatch is split; see [`Kernel::cut_along`].
    split: Option<Split>,
    /// What the host tier runs instead.
    #[cfg(feature = "host")]
    twin: Option<Twin>,
}

/// Names the twin of a kernel of this crate, with the feature `host`.
macro_rules! with_twin {
    ($kernel:expr, $twin:path) => {{
        #[cfg(feature = "host")]
        let kernel = $kernel.with_twin($twin);
        #[cfg(not(feature = "host"))]
        let kernel = $kernel;
        kernel
    }};
}
pub(crate) use with_twin;

/// The workgroup axis to split along, and the argument that receives the first workgroup.
#[derive(Debug, Clone, Copy)]
struct Split {
    axis: usize,
    argument: usize,
}

/// A range of a buffer, in bytes.
#[derive(Clone, Copy)]
pub struct Slice<'a> {
    /// The buffer.
    pub buffer: &'a Buffer,
    /// First byte: of a binding a multiple of 256, of a copy one of 4.
    pub offset: u64,
    /// Number of bytes: of a binding one at least, rounded up to a multiple of 16; of a copy a multiple of 4.
    pub size: u64,
}

/// One dispatch of a kernel.
#[derive(Clone, Copy)]
pub struct Launch<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// Compile-time constants; each combination is its own pipeline.
    pub constants: &'a [(&'static str, u32)],
    /// One slice per binding.
    pub buffers: &'a [Slice<'a>],
    /// Contents of its `var<immediate>`.
    pub arguments: &'a [u8],
    /// Number of workgroups in x, y and z.
    pub workgroups: [u32; 3],
    /// Upper bound on the loop iterations of one invocation, summed over its loops that are not unrolled. Mesa before 25
    /// silently stops an invocation after 65,535.
    pub iterations: u64,
    /// FLOP, to bound dispatches and submits and to report FLOP/s; 0 if negligible.
    pub work: u64,
}

/// The silent iteration limit per invocation of Mesa before 25.
const ITERATION_LIMIT: u64 = 65_535;

/// Maximum workgroups along x before folding into y.
const GROUPS_X: u64 = 32_768;

/// The workgroup grid for `invocations` at `size` per workgroup, folded over x and y: one dimension is limited to 65,535. The
/// shader computes its index by `linear_index(workgroup_id, num_workgroups, local_invocation_index, size)` and returns if it is
/// out of range.
pub fn grid(invocations: u64, size: u32) -> [u32; 3] {
    let count = invocations.div_ceil(u64::from(size));
    let x = count.min(GROUPS_X);
    [x as u32, count.div_ceil(x.max(1)) as u32, 1]
}

impl Kernel {
    /// A kernel from WGSL source, an entry point and its bindings in order; `name` appears in errors and profiles. Compiled
    /// with bounds checks.
    pub const fn new(name: &'static str, source: &'static str, entry: &'static str, bindings: &'static [Access]) -> Self {
        Self {
            name,
            source,
            entry,
            bindings,
            trusted: false,
            split: None,
            #[cfg(feature = "host")]
            twin: None,
        }
    }

    /// A kernel of this crate: every index is guarded and every loop bounded, so checks are compiled out.
    pub(crate) const fn trusted(
        name: &'static str,
        source: &'static str,
        entry: &'static str,
        bindings: &'static [Access],
    ) -> Self {
        Self { trusted: true, ..Self::new(name, source, entry, bindings) }
    }

    /// The same kernel with a twin for the host tier: a function that computes the same from the same bindings, constants and
    /// arguments.
    #[cfg(feature = "host")]
    pub(crate) const fn with_twin(self, twin: Twin) -> Self {
        Self { twin: Some(twin), ..self }
    }

    /// Allows a dispatch long enough to trip the driver's watchdog to be split along a workgroup axis, 0 to 2. The shader adds
    /// the u32 at index `argument` of its `var<immediate>` to its `workgroup_id`; the caller passes 0 there. Panics for another axis.
    pub const fn cut_along(self, axis: usize, argument: usize) -> Self {
        assert!(axis < 3, "cut_along: an axis from 0 to 2 expected");
        Self { split: Some(Split { axis, argument }), ..self }
    }

    pub(super) fn variant(&self, tier: KernelTier, constants: &[(&'static str, u32)], argument_bytes: u32) -> KernelVariant {
        let Self { name, source, entry, bindings, .. } = *self;
        KernelVariant { kernel: name, entry, bindings, constants: constants.to_vec(), argument_bytes, tier, source }
    }

    /// Parses and validates the text with naga; needs no device.
    #[cfg(test)]
    pub(crate) fn validate(&self, tier: KernelTier, constants: &[(&'static str, u32)]) -> Result<()> {
        use wgpu::naga::{front::wgsl, valid};
        let text = self.variant(tier, constants, 0).text()?;
        let module = wgsl::parse_str(&text).map_err(|error| self.error(error.emit_to_string(&text)))?;
        let mut validator = valid::Validator::new(valid::ValidationFlags::all(), valid::Capabilities::all());
        validator.validate(&module).map(drop).map_err(|error| self.error(error.emit_to_string(&text)))
    }

    pub(super) fn error(&self, problem: impl Into<String>) -> Error {
        Error::Kernel { kernel: self.name, problem: problem.into() }
    }
}

impl Gpu {
    /// Records one dispatch. It executes after everything recorded before it, at the latest before the next read-back.
    pub fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        let kernel = launch.kernel;
        if launch.workgroups.contains(&0) {
            return Ok(());
        }
        if launch.buffers.len() != kernel.bindings.len() {
            let problem = format!("{} buffers given, {} bindings declared", launch.buffers.len(), kernel.bindings.len());
            return Err(kernel.error(problem));
        }
        self.check_buffers(launch)?;
        #[cfg(feature = "host")]
        let _turn = match &self.inner.executor {
            Some(executor) => {
                let turn = executor.turn();
                if let Some(twin) = kernel.twin {
                    return self.launch_host(executor, twin, launch);
                }
                self.hand_over(launch.buffers);
                Some(turn)
            }
            None => None,
        };
        self.dispatch(launch)
    }

    /// Records the dispatches of a launch.
    fn dispatch(&self, launch: &Launch<'_>) -> Result<()> {
        let kernel = launch.kernel;
        self.check_limits(launch)?;
        if self.inner.is_rehearsal {
            self.note(kernel, launch.constants, launch.arguments.len() as u32);
            self.rehearse(Rehearsed { kernel: kernel.name, workgroups: launch.workgroups });
            return Ok(());
        }
        let pipeline = self.pipeline(kernel, launch.constants, launch.arguments.len() as u32)?;
        let bind_group = self.bind_group(&pipeline, launch.buffers);
        let pace = &self.inner.pace;
        let limit = pace.limit(&pipeline);
        match kernel.split {
            Some(split) if launch.work > limit => self.dispatch_in_pieces(split, &pipeline, &bind_group, launch),
            // The adapter may be slower than assumed.
            Some(_) if launch.work > limit / 8 && pace.wants_first_trial(&pipeline) => {
                self.dispatch_timed(&pipeline, &bind_group, launch)
            }
            _ => self.recorder().dispatch(&pipeline, &bind_group, launch),
        }
    }

    /// Dispatches and waits, to learn the kernel's speed.
    fn dispatch_timed(&self, pipeline: &Arc<Pipeline>, bind_group: &wgpu::BindGroup, launch: &Launch<'_>) -> Result<()> {
        self.synchronize()?;
        pipeline.wait()?;
        let trial = Trial::begin();
        self.recorder().dispatch(pipeline, bind_group, launch)?;
        self.synchronize()?;
        trial.end(pipeline, launch.work);
        Ok(())
    }

    /// Splits a long dispatch. The first pieces of a kernel are timed, and the next are as long as that allows.
    fn dispatch_in_pieces(
        &self,
        Split { axis, argument }: Split,
        pipeline: &Arc<Pipeline>,
        bind_group: &wgpu::BindGroup,
        launch: &Launch<'_>,
    ) -> Result<()> {
        let pace = &self.inner.pace;
        let groups = launch.workgroups[axis];
        let mut arguments = launch.arguments.to_vec();
        let mut first = 0;
        while first < groups {
            let step = (u128::from(groups) * u128::from(pace.limit(pipeline)) / u128::from(launch.work)).max(1);
            let count = u128::from(groups - first).min(step) as u32;
            arguments[4 * argument..][..4].copy_from_slice(&first.to_ne_bytes());
            let mut workgroups = launch.workgroups;
            workgroups[axis] = count;
            let work = (u128::from(launch.work) * u128::from(count) / u128::from(groups)) as u64;
            let piece = Launch { arguments: &arguments, workgroups, work, ..*launch };
            first += count;
            if first < groups && pace.wants_trial(pipeline) {
                self.dispatch_timed(pipeline, bind_group, &piece)?;
            } else {
                self.recorder().dispatch(pipeline, bind_group, &piece)?;
            }
        }
        Ok(())
    }

    fn bind_group(&self, pipeline: &Pipeline, slices: &[Slice<'_>]) -> wgpu::BindGroup {
        let mut key = Vec::with_capacity(1 + 3 * slices.len());
        key.push(pipeline.layout.number);
        key.extend(slices.iter().flat_map(|slice| [slice.buffer.number(), slice.offset, slice.size]));
        self.inner.pool.bind_group(&key, || {
            let bindings = slices.iter().map(|slice| wgpu::BindingResource::Buffer(slice.binding()));
            let entries: Vec<_> =
                (0..).zip(bindings).map(|(binding, resource)| wgpu::BindGroupEntry { binding, resource }).collect();
            let layout = &pipeline.layout.bindings;
            self.inner.device.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout, entries: &entries })
        })
    }

    /// Mistakes that would otherwise surface as an asynchronous device error.
    fn check_buffers(&self, launch: &Launch<'_>) -> Result<()> {
        let kernel = launch.kernel;
        for (at, slice) in launch.buffers.iter().enumerate() {
            if let Some(problem) = slice.problem(self) {
                return Err(kernel.error(format!("the buffer of binding {at} {problem}")));
            }
            let Slice { offset, size, .. } = slice;
            if *size == 0 || !offset.is_multiple_of(GRANULE) {
                let expected = format!("expected one or more from a multiple of {GRANULE}");
                return Err(kernel.error(format!("binding {at}: found {size} bytes from {offset}, {expected}")));
            }
            let clashes = |&other: &usize| {
                let (slice, other_slice) = (&launch.buffers[at], &launch.buffers[other]);
                let are_read = [at, other].map(|binding| kernel.bindings[binding] == Access::Read);
                std::ptr::eq(slice.buffer, other_slice.buffer)
                    && (are_read[0] != are_read[1] || !are_read[0] && slice.overlaps(other_slice))
            };
            if let Some(other) = (0..at).find(clashes) {
                let problem = format!("bindings {other} and {at} are the same buffer, and one of them is written");
                return Err(kernel.error(problem));
            }
        }
        Ok(())
    }

    fn check_limits(&self, launch: &Launch<'_>) -> Result<()> {
        let kernel = launch.kernel;
        if let Some(Split { argument, .. }) = kernel.split
            && launch.arguments.len() / 4 <= argument
        {
            let found = format!("found {} bytes of arguments", launch.arguments.len());
            return Err(kernel.error(format!("{found}, expected a u32 at index {argument} for the first workgroup")));
        }
        if self.adapter().is_software() && launch.iterations > ITERATION_LIMIT {
            let problem = format!("{} loop iterations in one invocation, at most {ITERATION_LIMIT} are safe", launch.iterations);
            return Err(kernel.error(problem));
        }
        let most = self.adapter().limits.max_compute_workgroups_per_dimension;
        if launch.workgroups.iter().any(|&count| count > most) {
            return Err(kernel.error(format!("{:?} workgroups, at most {most} per dimension", launch.workgroups)));
        }
        match launch.buffers.iter().find(|slice| slice.size > self.binding_limit()) {
            Some(slice) => {
                let problem = format!("a binding of {} bytes, the adapter allows {}", slice.size, self.binding_limit());
                Err(kernel.error(problem))
            }
            None => Ok(()),
        }
    }
}

impl<'a> Slice<'a> {
    /// What makes it no slice of this device, as a sentence about its buffer.
    pub(super) fn problem(&self, gpu: &Gpu) -> Option<String> {
        if !gpu.owns(self.buffer) {
            return Some("belongs to another device".into());
        }
        let is_within = self.offset.checked_add(self.size).is_some_and(|end| end <= self.buffer.bytes());
        let Self { buffer, offset, size } = self;
        (!is_within).then(|| format!("has {} bytes, fewer than {size} from {offset}", buffer.bytes()))
    }

    /// Whether two slices of one buffer have bytes in common.
    fn overlaps(&self, other: &Self) -> bool {
        self.offset < other.offset + other.size && other.offset < self.offset + self.size
    }

    fn binding(&self) -> wgpu::BufferBinding<'a> {
        let size = std::num::NonZeroU64::new(self.size.next_multiple_of(16));
        wgpu::BufferBinding { buffer: self.buffer.raw(), offset: self.offset, size }
    }
}
