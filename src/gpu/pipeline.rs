//! Pipelines: WGSL to modules to pipelines, cached by kernel and constants, compiled on all cores.
//!
//! A kernel of this crate is compiled on a thread of its own while its launch, and what follows, waits to be recorded: see
//! [`Recorder`](super::recorder::Recorder). A user's kernel is compiled in its launch, which returns the compiler's error.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::adapter::{IMMEDIATE_BYTES, KernelTier};
use super::device::Gpu;
use super::hash::BuildFast;
use super::kernel::{Access, Kernel};
use super::workers::Workers;
use crate::error::{Error, Result};

/// Where the bindings and arguments of kernels with the same list of accesses go. Kernels share it, so that the driver keeps what is
/// bound from one dispatch to the next.
pub(super) struct Layout {
    /// A number that no other layout of the device has.
    pub(super) number: u64,
    pub(super) bindings: wgpu::BindGroupLayout,
    pipeline: wgpu::PipelineLayout,
}

/// A kernel with its constants, compiled or on its way.
pub(super) struct Pipeline {
    kernel: &'static str,
    pub(super) layout: Arc<Layout>,
    compiled: OnceLock<std::result::Result<wgpu::ComputePipeline, String>>,
    /// FLOP/s of its dispatches, as measured last; 0 before.
    speed: AtomicU64,
    /// How often it was measured.
    trials: AtomicU64,
}

impl Pipeline {
    /// The pipeline, unless it is still being compiled; an error if it cannot be.
    pub(super) fn ready(&self) -> Option<Result<&wgpu::ComputePipeline>> {
        self.compiled.get().map(|outcome| self.outcome(outcome))
    }

    /// Waits until it is compiled.
    pub(super) fn wait(&self) -> Result<&wgpu::ComputePipeline> {
        self.outcome(self.compiled.wait())
    }

    fn outcome<'a>(&self, outcome: &'a std::result::Result<wgpu::ComputePipeline, String>) -> Result<&'a wgpu::ComputePipeline> {
        outcome.as_ref().map_err(|problem| Error::Kernel { kernel: self.kernel, problem: problem.clone() })
    }

    /// FLOP/s of its dispatches, once measured.
    pub(super) fn speed(&self) -> Option<f64> {
        let speed = self.speed.load(Ordering::Relaxed);
        (speed > 0).then_some(speed as f64)
    }

    /// How often it was measured.
    pub(super) fn trials(&self) -> u64 {
        self.trials.load(Ordering::Relaxed)
    }

    /// Keeps a measurement.
    pub(super) fn measured(&self, speed: f64) {
        self.speed.store((speed as u64).max(1), Ordering::Relaxed);
        self.trials.fetch_add(1, Ordering::Relaxed);
    }
}

/// What a pipeline is made from. The source is identified by address and length, which are cheaper to compare than its text.
struct Key {
    source: (usize, usize),
    entry: &'static str,
    bindings: &'static [Access],
    constants: Vec<(&'static str, u32)>,
    argument_bytes: u32,
}

impl Key {
    fn is(&self, kernel: &Kernel, constants: &[(&'static str, u32)], argument_bytes: u32) -> bool {
        let same = |(a, b): (&(&'static str, u32), &(&'static str, u32))| a.1 == b.1 && (std::ptr::eq(a.0, b.0) || a.0 == b.0);
        self.source == address(kernel)
            && self.argument_bytes == argument_bytes
            && self.constants.len() == constants.len()
            && self.constants.iter().zip(constants).all(same)
            && self.entry == kernel.entry
            && self.bindings == kernel.bindings
    }
}

fn address(kernel: &Kernel) -> (usize, usize) {
    (kernel.source.as_ptr() as usize, kernel.source.len())
}

type Module = Arc<OnceLock<std::result::Result<wgpu::ShaderModule, String>>>;

/// By the key's hash: those whose keys share it.
type Found = HashMap<u64, Vec<(Key, Arc<Pipeline>)>, BuildFast>;

/// All pipelines of a device.
pub(super) struct Pipelines {
    found: Mutex<Found>,
    layouts: Mutex<HashMap<&'static [Access], Arc<Layout>>>,
    compiler: Arc<Compiler>,
    workers: Workers,
}

/// What the threads that compile share.
struct Compiler {
    device: wgpu::Device,
    tier: KernelTier,
    checked_shaders: bool,
    /// By text and whether it has bounds checks: entry points of one source share their module.
    modules: Mutex<HashMap<(String, bool), Module>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pipelines {
    /// For kernels of `tier`, with bounds checks even in kernels of this crate if `checked_shaders`.
    pub(super) fn new(device: &wgpu::Device, tier: KernelTier, checked_shaders: bool) -> Self {
        let compiler = Compiler { device: device.clone(), tier, checked_shaders, modules: Mutex::default() };
        Self { found: Mutex::default(), layouts: Mutex::default(), compiler: Arc::new(compiler), workers: Workers::default() }
    }

    fn layout(&self, bindings: &'static [Access]) -> Arc<Layout> {
        let mut layouts = lock(&self.layouts);
        let number = layouts.len() as u64;
        layouts.entry(bindings).or_insert_with(|| Arc::new(Layout::new(&self.compiler.device, number, bindings))).clone()
    }
}

impl Layout {
    fn new(device: &wgpu::Device, number: u64, accesses: &[Access]) -> Self {
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
        let entries: Vec<_> = accesses.iter().enumerate().map(entry).collect();
        let bindings = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries });
        let pipeline = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: None,
            bind_group_layouts: &[Some(&bindings)],
            immediate_size: IMMEDIATE_BYTES,
        });
        Self { number, bindings, pipeline }
    }
}

impl Gpu {
    /// The pipeline of a kernel with these constants: at once, and compiled later, for a kernel of this crate.
    pub(super) fn pipeline(
        &self,
        kernel: &Kernel,
        constants: &[(&'static str, u32)],
        argument_bytes: u32,
    ) -> Result<Arc<Pipeline>> {
        let pipelines = &self.inner.pipelines;
        let values: (_, _, _) = (address(kernel), kernel.entry.as_ptr() as usize, argument_bytes);
        let mut hasher = BuildFast::default().build_hasher();
        values.hash(&mut hasher);
        constants.iter().for_each(|(_, value)| value.hash(&mut hasher));
        let hash = std::hash::Hasher::finish(&hasher);
        let mut found = lock(&pipelines.found);
        let known = found.get(&hash).and_then(|same| same.iter().find(|(key, _)| key.is(kernel, constants, argument_bytes)));
        if let Some((_, pipeline)) = known {
            let pipeline = pipeline.clone();
            drop(found);
            return self.compiled_or_later(kernel, pipeline);
        }
        if argument_bytes > IMMEDIATE_BYTES {
            return Err(kernel.error(format!("{argument_bytes} bytes of arguments, at most {IMMEDIATE_BYTES} are portable")));
        }
        let key = Key {
            source: address(kernel),
            entry: kernel.entry,
            bindings: kernel.bindings,
            constants: constants.to_vec(),
            argument_bytes,
        };
        let pipeline = Arc::new(Pipeline {
            kernel: kernel.name,
            layout: pipelines.layout(kernel.bindings),
            compiled: OnceLock::new(),
            speed: AtomicU64::new(0),
            trials: AtomicU64::new(0),
        });
        let job = Job { compiler: pipelines.compiler.clone(), kernel: *kernel, constants: constants.to_vec(), argument_bytes };
        found.entry(hash).or_default().push((key, pipeline.clone()));
        drop(found);
        self.note(kernel, constants, argument_bytes);
        if self.waits_for(kernel) {
            job.run(&pipeline);
        } else {
            let target = pipeline.clone();
            pipelines.workers.run(Box::new(move || job.run(&target)));
        }
        self.compiled_or_later(kernel, pipeline)
    }

    /// Whether a launch of the kernel waits for its compiler: for the error that it may have.
    fn waits_for(&self, kernel: &Kernel) -> bool {
        !kernel.trusted || !self.inner.compile_ahead
    }

    fn compiled_or_later(&self, kernel: &Kernel, pipeline: Arc<Pipeline>) -> Result<Arc<Pipeline>> {
        if self.waits_for(kernel) {
            pipeline.wait()?;
        }
        Ok(pipeline)
    }
}

/// A pipeline to be compiled.
struct Job {
    compiler: Arc<Compiler>,
    kernel: Kernel,
    constants: Vec<(&'static str, u32)>,
    argument_bytes: u32,
}

impl Job {
    fn run(self, pipeline: &Pipeline) {
        /// Those who wait must not wait forever if a compiler panics.
        struct Ends<'a>(&'a Pipeline);
        impl Drop for Ends<'_> {
            fn drop(&mut self) {
                self.0.compiled.get_or_init(|| Err("its compiler panicked".into()));
            }
        }
        let ends = Ends(pipeline);
        let outcome = self.compile(&pipeline.layout);
        ends.0.compiled.get_or_init(|| outcome);
    }

    fn compile(&self, layout: &Layout) -> std::result::Result<wgpu::ComputePipeline, String> {
        let Compiler { device, tier, checked_shaders, modules } = &*self.compiler;
        let text = self.kernel.variant(*tier, &self.constants, self.argument_bytes).composed()?;
        let is_checked = *checked_shaders || !self.kernel.trusted;
        if is_checked {
            check_arguments(&text, self.argument_bytes)?;
        }
        let module = lock(modules).entry((text.clone(), is_checked)).or_default().clone();
        let module = module.get_or_init(|| self.module(text, is_checked)).as_ref().map_err(String::clone)?;
        let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(self.kernel.name),
            layout: Some(&layout.pipeline),
            module,
            entry_point: Some(self.kernel.entry),
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: None,
        });
        pollster::block_on(scope.pop()).map_or(Ok(pipeline), |error| Err(error.to_string()))
    }

    fn module(&self, text: String, is_checked: bool) -> std::result::Result<wgpu::ShaderModule, String> {
        let device = &self.compiler.device;
        let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let label = Some(self.kernel.name);
        let descriptor = wgpu::ShaderModuleDescriptor { label, source: wgpu::ShaderSource::Wgsl(text.into()) };
        let module = if is_checked {
            device.create_shader_module(descriptor)
        } else {
            // SAFETY: only kernels of this crate are trusted; they guard every index and bound every loop, and the tests run them
            // with the checks on.
            unsafe { device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) }
        };
        pollster::block_on(scope.pop()).map_or(Ok(module), |error| Err(error.to_string()))
    }
}

/// Checks that the `var<immediate>` is a struct of scalars and vectors of exactly the given size: otherwise Vulkan would read
/// undefined bytes, and DX12 has no matching layout. Parse errors are left to the compiler, which reports them better.
fn check_arguments(text: &str, given: u32) -> std::result::Result<(), String> {
    use wgpu::naga::{AddressSpace, TypeInner, front::wgsl};
    let Ok(module) = wgsl::parse_str(text) else { return Ok(()) };
    let arguments = module.global_variables.iter().find(|(_, variable)| variable.space == AddressSpace::Immediate);
    let declared = match arguments.map(|(_, variable)| &module.types[variable.ty].inner) {
        None => 0,
        Some(TypeInner::Struct { members, .. }) => {
            let inner = |ty| &module.types[ty].inner;
            if members.iter().any(|member| matches!(inner(member.ty), TypeInner::Array { .. } | TypeInner::Struct { .. })) {
                return Err("its `var<immediate>` may hold only scalars and vectors".into());
            }
            members.last().map_or(0, |last| last.offset + inner(last.ty).size(module.to_ctx()))
        }
        Some(_) => return Err("its `var<immediate>` is not a struct".into()),
    };
    if declared == given { Ok(()) } else { Err(format!("{given} bytes of arguments given, {declared} declared")) }
}
