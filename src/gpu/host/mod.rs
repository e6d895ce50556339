//! The host tier: twins of kernels, Rust functions over the memory of a software adapter, which is the host's own.
//!
//! A [`Kernel`](super::Kernel) may name a twin, written beside it. [`Gpu::launch`](super::Gpu::launch) then calls the twin at once,
//! with the buffers mapped, instead of recording a dispatch. Buffers are mapped all the time, and unmapped only while a kernel without
//! a twin has them on the adapter; the twin of the next kernel that needs them waits for it. The WGSL is the definition: a twin
//! computes the same function of the same bindings, constants and arguments, with sums in an order of its own that depends on neither
//! the number of threads nor the processor.

mod memory;
pub(crate) mod simd;
mod threads;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::device::Gpu;
use super::kernel::{Access, Launch};
pub(super) use memory::Mapping;
pub(crate) use threads::Threads;

use crate::error::Result;

/// A twin: does what one dispatch of its kernel does.
pub(crate) type Twin = fn(&Host<'_>);

/// Cost of a task of [`Host::rows`]: some microseconds, enough to hide the fork.
const TASK: usize = 32_768;

/// Where twins run: the threads, and the lock that makes one dispatch follow the other, as on a queue.
pub(super) struct Executor {
    turn: Mutex<()>,
    threads: Threads,
}

impl Executor {
    /// `threads` of `None` takes one per core.
    pub(super) fn new(threads: Option<usize>) -> Result<Self> {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self { turn: Mutex::new(()), threads: Threads::new(threads.unwrap_or_else(cores).max(1))? })
    }

    /// Waits until no other thread computes on this device.
    pub(super) fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a twin works on: the launch of its kernel, with the bindings in memory.
pub(crate) struct Host<'a> {
    launch: &'a Launch<'a>,
    bindings: Vec<Binding>,
    threads: &'a Threads,
    has_outputs: AtomicBool,
}

struct Binding {
    values: *mut f32,
    numel: usize,
    access: Access,
}

// SAFETY: the pointers are to mapped buffers that the launch borrows; `input` and `outputs` keep to Rust's rules of aliasing.
unsafe impl Sync for Host<'_> {}

impl<'a> Host<'a> {
    /// A constant of the kernel.
    pub(crate) fn constant(&self, name: &str) -> u32 {
        let found = self.launch.constants.iter().find(|(constant, _)| *constant == name);
        found.map(|(_, value)| *value).unwrap_or_else(|| panic!("bug: the kernel has no constant {name}"))
    }

    /// Whether a constant of the kernel is set.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.constant(name) != 0
    }

    /// An argument: a u32 of the kernel's `var<immediate>`.
    pub(crate) fn argument(&self, at: usize) -> u32 {
        bytemuck::pod_read_unaligned(&self.launch.arguments[4 * at..][..4])
    }

    /// An argument as a size.
    pub(crate) fn size(&self, at: usize) -> usize {
        self.argument(at) as usize
    }

    /// An argument as an f32.
    pub(crate) fn number(&self, at: usize) -> f32 {
        f32::from_bits(self.argument(at))
    }

    /// The whole `var<immediate>`.
    pub(crate) fn arguments<T: bytemuck::AnyBitPattern>(&self) -> T {
        bytemuck::pod_read_unaligned(self.launch.arguments)
    }

    /// The values of a binding that is read.
    pub(crate) fn input(&self, binding: usize) -> &'a [f32] {
        let Binding { values, numel, access } = self.bindings[binding];
        assert!(access == Access::Read, "bug: binding {binding} is written");
        // SAFETY: mapped memory of the launch's buffers; no binding that is written overlaps it, as `Gpu::launch` has checked.
        unsafe { std::slice::from_raw_parts(values, numel) }
    }

    /// The same as u32.
    pub(crate) fn indices(&self, binding: usize) -> &'a [u32] {
        bytemuck::cast_slice(self.input(binding))
    }

    /// The values of all bindings that are written, in their order. Once.
    pub(crate) fn outputs<const N: usize>(&self) -> [&'a mut [f32]; N] {
        assert!(!self.has_outputs.swap(true, Ordering::Relaxed), "bug: the outputs were taken twice");
        let mut written = self.bindings.iter().filter(|binding| binding.access == Access::ReadWrite);
        let outputs = std::array::from_fn(|_| {
            let binding = written.next().expect("bug: fewer bindings are written");
            // SAFETY: mapped memory of the launch's buffers, handed out once; no other binding overlaps it.
            unsafe { std::slice::from_raw_parts_mut(binding.values, binding.numel) }
        });
        assert!(written.next().is_none(), "bug: more bindings are written");
        outputs
    }

    /// Number of workgroups in x, y and z.
    pub(crate) fn workgroups(&self) -> [u32; 3] {
        self.launch.workgroups
    }

    /// The threads.
    pub(crate) fn threads(&self) -> &'a Threads {
        self.threads
    }

    /// [`Host::rows`] for an elementwise kernel of [`map`](crate::map), whose first argument is the number of elements.
    pub(crate) fn map<const N: usize>(
        &self,
        cost: usize,
        outputs: [&mut [f32]; N],
        f: impl Fn(Range<usize>, [&mut [f32]; N]) + Sync,
    ) {
        self.rows(self.size(0), cost, outputs.map(|output| (output, 1)), f);
    }

    /// Calls `f` with ranges that together make `rows` rows, and with their part of each output, given with its elements per row.
    /// `f` is compiled for the processor's vectors if it is marked `#[inline(always)]`. A row takes about as long as adding `cost` elements of an array in the cache. The ranges depend on `rows` and `cost` alone.
    pub(crate) fn rows<const N: usize>(
        &self,
        rows: usize,
        cost: usize,
        outputs: [(&mut [f32], usize); N],
        f: impl Fn(Range<usize>, [&mut [f32]; N]) + Sync,
    ) {
        let step = (TASK / cost.max(1)).max(1);
        let outputs = outputs.map(|(values, width)| {
            assert!(rows * width <= values.len(), "bug: {rows} rows of {width} in {} values", values.len());
            (Shared(values.as_mut_ptr()), width)
        });
        self.threads.run(rows.div_ceil(step), &|task| {
            let range = task * step..rows.min((task + 1) * step);
            // SAFETY: within the slice, as asserted, and no two tasks' ranges overlap.
            let part = |(values, width): (Shared, usize)| unsafe {
                std::slice::from_raw_parts_mut(values.at(range.start * width), range.len() * width)
            };
            let parts = outputs.map(part);
            simd::dispatch(
                #[inline(always)]
                || f(range.clone(), parts),
            );
        });
    }
}

/// A pointer that several threads write through, each in its own place.
#[derive(Clone, Copy)]
pub(crate) struct Shared(pub(crate) *mut f32);

// SAFETY: whoever writes through it sees to it that no two threads touch the same element.
unsafe impl Send for Shared {}
unsafe impl Sync for Shared {}

impl Shared {
    /// The pointer to element `at`.
    ///
    /// # Safety
    /// The element is within the allocation.
    pub(crate) unsafe fn at(self, at: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(at) }
    }
}

impl Gpu {
    /// Runs the twin of a kernel. The caller has its turn.
    pub(super) fn launch_host(&self, executor: &Executor, twin: Twin, launch: &Launch<'_>) -> Result<()> {
        let bind = |slice: &super::Slice<'_>, access: Access| {
            let values = self.host_bytes(slice)?.cast::<f32>();
            Ok(Binding { values, numel: slice.size as usize / 4, access })
        };
        let accesses = launch.kernel.bindings;
        let bindings = launch.buffers.iter().zip(accesses).map(|(slice, access)| bind(slice, *access)).collect::<Result<_>>()?;
        let start = std::time::Instant::now();
        twin(&Host { launch, bindings, threads: &executor.threads, has_outputs: AtomicBool::new(false) });
        self.recorder().count_host(launch, start.elapsed());
        Ok(())
    }
}
