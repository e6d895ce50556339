//! WGSL → pipeline: composition, cache, bindings, dispatch.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::adapter::{IMMEDIATE_BYTES, KernelTier};
use super::device::Gpu;
use super::pool::{BindGroupKey, Buffer};
use super::wgsl::compose;
use crate::error::{Error, Result};

/// How a kernel uses a binding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// `var<storage, read>`
    Read,
    /// `var<storage, read_write>`
    ReadWrite,
}

/// A compute shader: its text, its entry point, and the storage buffers it binds, in order from `@group(0) @binding(0)`.
///
/// Arguments reach the shader as a `var<immediate>`, at most 128 bytes: a structure without arrays, as DX12 wants it. Loops marked
/// `@unroll` are written out: naga does not unroll loops, and an array indexed by a loop variable cannot live in registers.
/// `@declare` repeats declarations in the same way, and `@if NAME { … } @else { … }` chooses text by a constant. Before the source
/// stands `shaders/prelude.wgsl`, of which kernels of any number of invocations use `linear_index` beside [`grid`], and the constant
/// `SUBGROUPS`: whether the device's [`KernelTier`] reduces by subgroups.
#[derive(Debug)]
pub struct Kernel {
    name: &'static str,
    source: &'static str,
    entry: &'static str,
    bindings: &'static [Access],
    /// Stays in bounds by itself, so that release builds leave the compiler's bounds checks out.
    trusted: bool,
    /// How a dispatch of much work is cut; see [`Kernel::cut_along`].
    cut: Option<Cut>,
}

/// The axis of the workgroups and the argument that names the first of them.
#[derive(Debug, Clone, Copy)]
struct Cut {
    axis: usize,
    argument: usize,
}

/// A part of a buffer, in bytes.
#[derive(Clone, Copy)]
pub struct Slice<'a> {
    /// The buffer.
    pub buffer: &'a Buffer,
    /// First byte; a multiple of 256.
    pub offset: u64,
    /// Number of bytes; rounded up to a multiple of 16 when bound.
    pub size: u64,
}

/// One dispatch of a kernel.
#[derive(Clone, Copy)]
pub struct Launch<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// Values of its `const` names; each combination is a pipeline of its own.
    pub constants: &'a [(&'static str, u32)],
    /// One slice per binding.
    pub buffers: &'a [Slice<'a>],
    /// The bytes of its `var<immediate>`.
    pub arguments: &'a [u8],
    /// Number of workgroups in x, y and z.
    pub workgroups: [u32; 3],
    /// The most loop iterations that one invocation makes, summed over its loops that are not unrolled. Old Mesa stops an
    /// invocation silently after 65,535.
    pub iterations: u64,
    /// Floating-point operations, for bounding dispatches and submits and for profiles; 0 when it is too small to matter.
    pub work: u64,
}

/// Old Mesa's silent limit on the iterations of one invocation.
const ITERATION_LIMIT: u64 = 65_535;

/// Workgroups along x; the rest goes to y.
const GROUPS_X: u64 = 32_768;

/// The workgroups that hold `invocations`, `size` in each, folded over x and y, as one dimension has at most 65,535. The shader
/// calls `linear_index(workgroup_id, num_workgroups, local_invocation_index, size)` and returns where that is out of range.
pub fn grid(invocations: u64, size: u32) -> [u32; 3] {
    let count = invocations.div_ceil(u64::from(size));
    let x = count.min(GROUPS_X);
    [x as u32, count.div_ceil(x.max(1)) as u32, 1]
}

pub(super) struct Pipeline {
    pub(super) raw: wgpu::ComputePipeline,
    pub(super) layout: wgpu::BindGroupLayout,
}

/// A pipeline by everything it is made from; the source by its place and length, which are cheaper to compare than its text.
#[derive(PartialEq, Eq, Hash)]
struct PipelineKey {
    source: (usize, usize),
    entry: &'static str,
    bindings: &'static [Access],
    constants: Vec<(&'static str, u32)>,
    argument_bytes: u32,
}

#[derive(Default)]
pub(super) struct PipelineCache {
    compiled: Mutex<HashMap<PipelineKey, Arc<Pipeline>>>,
}

impl Kernel {
    /// A kernel named `name` in errors and profiles, from WGSL text, an entry point, and its bindings in order. Compiled with
    /// bounds checks.
    pub const fn new(name: &'static str, source: &'static str, entry: &'static str, bindings: &'static [Access]) -> Self {
        Self { name, source, entry, bindings, trusted: false, cut: None }
    }

    /// A kernel of this crate, which guards every index and bounds every loop by itself.
    pub(crate) const fn trusted(
        name: &'static str,
        source: &'static str,
        entry: &'static str,
        bindings: &'static [Access],
    ) -> Self {
        Self { name, source, entry, bindings, trusted: true, cut: None }
    }

    /// Lets a dispatch whose work would anger a watchdog be issued as several along an axis of its workgroups, 0 to 2. The shader
    /// adds to its `workgroup_id` the u32 at place `argument` of its `var<immediate>`, where the caller leaves 0.
    pub const fn cut_along(self, axis: usize, argument: usize) -> Self {
        Self { cut: Some(Cut { axis, argument }), ..self }
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// The complete WGSL text with these constants, for a device with these kernels.
    fn text(&self, profile: KernelTier, constants: &[(&str, u32)]) -> Result<String> {
        let subgroups = u32::from(matches!(profile, KernelTier::Subgroup | KernelTier::Matrix));
        let constants = [constants, &[("SUBGROUPS", subgroups)]].concat();
        compose(self.source, &constants).map_err(|problem| self.error(problem))
    }

    /// What the compiler says of the text, which needs no device.
    #[cfg(test)]
    pub(crate) fn validate(&self, profile: KernelTier, constants: &[(&str, u32)]) -> Result<()> {
        use wgpu::naga::{front::wgsl, valid};
        let text = self.text(profile, constants)?;
        let module = wgsl::parse_str(&text).map_err(|error| self.error(error.emit_to_string(&text)))?;
        let mut validator = valid::Validator::new(valid::ValidationFlags::all(), valid::Capabilities::all());
        validator.validate(&module).map(drop).map_err(|error| self.error(error.emit_to_string(&text)))
    }

    pub(super) fn error(&self, problem: impl Into<String>) -> Error {
        Error::Kernel { kernel: self.name, problem: problem.into() }
    }
}

impl Gpu {
    /// Records one dispatch. It runs after everything recorded before it, at the latest when something is read back.
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
        self.check_limits(launch)?;
        let pipeline = self.pipeline(kernel, launch.constants, launch.arguments.len() as u32)?;
        let bind_group = self.bind_group(&pipeline, launch.buffers);
        let Some(Cut { axis, argument }) = kernel.cut.filter(|_| launch.work > self.inner.work_limit) else {
            self.recorder().dispatch(&pipeline.raw, &bind_group, launch);
            return self.flush_if_due();
        };
        let groups = launch.workgroups[axis];
        let step = (u64::from(groups) * self.inner.work_limit / launch.work).max(1) as u32;
        let mut arguments = launch.arguments.to_vec();
        for first in (0..groups).step_by(step as usize) {
            let count = step.min(groups - first);
            arguments[4 * argument..][..4].copy_from_slice(&first.to_ne_bytes());
            let mut workgroups = launch.workgroups;
            workgroups[axis] = count;
            let work = launch.work / u64::from(groups) * u64::from(count);
            self.recorder().dispatch(&pipeline.raw, &bind_group, &Launch { arguments: &arguments, workgroups, work, ..*launch });
            self.flush_if_due()?;
        }
        Ok(())
    }

    fn bind_group(&self, pipeline: &Arc<Pipeline>, slices: &[Slice<'_>]) -> wgpu::BindGroup {
        let numbered = slices.iter().map(|slice| (slice.buffer.number(), slice.offset, slice.size)).collect();
        let key = BindGroupKey { pipeline: Arc::as_ptr(pipeline) as usize, slices: numbered };
        self.inner.pool.bind_group(key, || {
            let bindings = slices.iter().map(|slice| wgpu::BindingResource::Buffer(slice.binding()));
            let entries: Vec<_> =
                (0..).zip(bindings).map(|(binding, resource)| wgpu::BindGroupEntry { binding, resource }).collect();
            let descriptor = wgpu::BindGroupDescriptor { label: None, layout: &pipeline.layout, entries: &entries };
            self.inner.device.create_bind_group(&descriptor)
        })
    }

    /// What the driver would answer with an error on the whole device.
    fn check_buffers(&self, launch: &Launch<'_>) -> Result<()> {
        let kernel = launch.kernel;
        for (at, slice) in launch.buffers.iter().enumerate() {
            if !self.owns(slice.buffer) {
                return Err(kernel.error(format!("the buffer of binding {at} belongs to another device")));
            }
            let clashes = |&other: &usize| {
                std::ptr::eq(slice.buffer, launch.buffers[other].buffer) && kernel.bindings[at] != kernel.bindings[other]
            };
            if let Some(other) = (0..at).find(clashes) {
                let problem = format!("bindings {other} and {at} are the same buffer, which it would both read and write");
                return Err(kernel.error(problem));
            }
        }
        Ok(())
    }

    fn check_limits(&self, launch: &Launch<'_>) -> Result<()> {
        let kernel = launch.kernel;
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

    fn pipeline(&self, kernel: &Kernel, constants: &[(&'static str, u32)], argument_bytes: u32) -> Result<Arc<Pipeline>> {
        let key = PipelineKey {
            source: (kernel.source.as_ptr() as usize, kernel.source.len()),
            entry: kernel.entry,
            bindings: kernel.bindings,
            constants: constants.to_vec(),
            argument_bytes,
        };
        let mut compiled = self.inner.pipelines.compiled.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(pipeline) = compiled.get(&key) {
            return Ok(pipeline.clone());
        }
        let pipeline = Arc::new(pollster::block_on(self.compile(kernel, constants, argument_bytes))?);
        compiled.insert(key, pipeline.clone());
        Ok(pipeline)
    }

    async fn compile(&self, kernel: &Kernel, constants: &[(&str, u32)], argument_bytes: u32) -> Result<Pipeline> {
        if argument_bytes > IMMEDIATE_BYTES {
            return Err(kernel.error(format!("{argument_bytes} bytes of arguments, at most {IMMEDIATE_BYTES} are portable")));
        }
        let text = kernel.text(self.kernels(), constants)?;
        let is_checked = self.inner.checked_shaders || !kernel.trusted;
        if is_checked {
            check_arguments(&text, argument_bytes).map_err(|problem| kernel.error(problem))?;
        }
        let device = &self.inner.device;
        let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let descriptor = wgpu::ShaderModuleDescriptor { label: Some(kernel.name), source: wgpu::ShaderSource::Wgsl(text.into()) };
        let module = if is_checked {
            device.create_shader_module(descriptor)
        } else {
            // SAFETY: a trusted kernel is one of this crate's; they guard every index and bound every loop, and the tests run
            // them with the checks on against the same reference.
            unsafe { device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) }
        };
        let layout = self.bind_group_layout(kernel);
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(kernel.name),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: argument_bytes,
        });
        let raw = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(kernel.name),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some(kernel.entry),
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: None,
        });
        match scope.pop().await {
            Some(error) => Err(kernel.error(error.to_string())),
            None => Ok(Pipeline { raw, layout }),
        }
    }

    fn bind_group_layout(&self, kernel: &Kernel) -> wgpu::BindGroupLayout {
        let entry = |(binding, access): (usize, &Access)| wgpu::BindGroupLayoutEntry {
            binding: binding as u32,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Storage { read_only: *access == Access::Read },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        };
        let entries: Vec<_> = kernel.bindings.iter().enumerate().map(entry).collect();
        let descriptor = wgpu::BindGroupLayoutDescriptor { label: Some(kernel.name), entries: &entries };
        self.inner.device.create_bind_group_layout(&descriptor)
    }
}

/// That the arguments are a structure, which all that is given fills: else Vulkan reads what nobody wrote, or DX12 has no layout
/// for them. What does not parse is left to the compiler, whose message is better.
fn check_arguments(text: &str, given: u32) -> std::result::Result<(), String> {
    use wgpu::naga::{AddressSpace, TypeInner, front::wgsl};
    let Ok(module) = wgsl::parse_str(text) else { return Ok(()) };
    let arguments = module.global_variables.iter().find(|(_, variable)| variable.space == AddressSpace::Immediate);
    let declared = match arguments.map(|(_, variable)| &module.types[variable.ty].inner) {
        None => 0,
        Some(TypeInner::Struct { members, .. }) => {
            let inner = |ty| &module.types[ty].inner;
            if members.iter().any(|member| matches!(inner(member.ty), TypeInner::Array { .. } | TypeInner::Struct { .. })) {
                return Err("its `var<immediate>` holds more than scalars and vectors".into());
            }
            members.last().map_or(0, |last| last.offset + inner(last.ty).size(module.to_ctx()))
        }
        Some(_) => return Err("its `var<immediate>` is not a structure".into()),
    };
    if declared == given { Ok(()) } else { Err(format!("{given} bytes of arguments given, {declared} declared")) }
}

impl<'a> Slice<'a> {
    fn binding(&self) -> wgpu::BufferBinding<'a> {
        let size = std::num::NonZeroU64::new(self.size.next_multiple_of(16));
        wgpu::BufferBinding { buffer: self.buffer.raw(), offset: self.offset, size }
    }
}
