//! Buffers, reused by exact size after drop. One in-order queue makes that safe: whatever is recorded next runs after the
//! work that still reads the old contents.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::error::{Error, Result};

/// Buffer sizes are rounded up to this many bytes, so that vec4 kernels may touch the tail of the last vector.
pub const GRANULE: u64 = 256;

/// Device memory in bytes, counted over the buffers of one [`Gpu`](super::Gpu).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Held by live buffers.
    pub live: u64,
    /// The largest `live` so far, or since [`Gpu::reset_peak`](super::Gpu::reset_peak).
    pub peak: u64,
    /// Held by live and idle buffers together: what the driver has given out.
    pub allocated: u64,
}

#[derive(Default)]
struct State {
    idle: HashMap<u64, Vec<Raw>>,
    usage: MemoryUse,
    created: u64,
    /// They keep their buffers alive, so they go when idle buffers are given back to the driver.
    bind_groups: HashMap<BindGroupKey, wgpu::BindGroup>,
}

/// What a bind group is made from: the pipeline, by its address in the pipeline cache, and each buffer's number, offset and size.
#[derive(PartialEq, Eq, Hash)]
pub(super) struct BindGroupKey {
    pub(super) pipeline: usize,
    pub(super) slices: Vec<(u64, u64, u64)>,
}

/// More than the dispatches of a step; a run whose buffers never repeat starts anew there.
const MOST_BIND_GROUPS: usize = 16_384;

/// A driver's buffer and a number that no other buffer of the pool has or had.
struct Raw {
    buffer: wgpu::Buffer,
    number: u64,
}

impl State {
    fn clear_idle(&mut self) {
        self.idle.clear();
        self.usage.allocated = self.usage.live;
        self.bind_groups.clear();
    }
}

pub(super) struct Pool {
    device: wgpu::Device,
    budget: Option<u64>,
    state: Mutex<State>,
}

/// A storage buffer on the device. Goes back to the pool when dropped.
pub struct Buffer {
    raw: Option<Raw>,
    pool: Arc<Pool>,
}

impl Pool {
    pub(super) fn new(device: wgpu::Device, budget: Option<u64>) -> Self {
        Self { device, budget, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(super) fn owns(self: &Arc<Self>, buffer: &Buffer) -> bool {
        Arc::ptr_eq(self, &buffer.pool)
    }

    pub(super) fn usage(&self) -> MemoryUse {
        self.lock().usage
    }

    pub(super) fn reset_peak(&self) {
        let mut state = self.lock();
        state.usage.peak = state.usage.live;
    }

    /// A buffer of at least `bytes` bytes whose contents are whatever was there before.
    pub(super) fn allocate(self: &Arc<Self>, bytes: u64) -> Result<Buffer> {
        let size = bytes.max(1).next_multiple_of(GRANULE);
        let mut state = self.lock();
        let raw = match state.idle.get_mut(&size).and_then(Vec::pop) {
            Some(raw) => raw,
            None => self.create(&mut state, size)?,
        };
        state.usage.live += size;
        state.usage.peak = state.usage.peak.max(state.usage.live);
        Ok(Buffer { raw: Some(raw), pool: self.clone() })
    }

    /// The bind group of this key: that of an earlier dispatch where there was one, as the same buffers are handed out step after
    /// step.
    pub(super) fn bind_group(&self, key: BindGroupKey, create: impl FnOnce() -> wgpu::BindGroup) -> wgpu::BindGroup {
        let groups = &mut self.lock().bind_groups;
        if groups.len() >= MOST_BIND_GROUPS {
            groups.clear();
        }
        groups.entry(key).or_insert_with(create).clone()
    }

    fn create(&self, state: &mut State, size: u64) -> Result<Raw> {
        let exceeds = |allocated: u64| self.budget.is_some_and(|budget| allocated + size > budget);
        if exceeds(state.usage.allocated) {
            state.clear_idle();
        }
        let failed = Error::OutOfMemory { requested: size, live: state.usage.live, budget: self.budget };
        if exceeds(state.usage.allocated) || size > self.device.limits().max_buffer_size {
            return Err(failed);
        }
        let buffer = match self.try_create(size) {
            Some(buffer) => buffer,
            None => {
                state.clear_idle();
                self.try_create(size).ok_or(failed)?
            }
        };
        state.usage.allocated += size;
        state.created += 1;
        Ok(Raw { buffer, number: state.created })
    }

    fn try_create(&self, size: u64) -> Option<wgpu::Buffer> {
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let raw = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        pollster::block_on(scope.pop()).is_none().then_some(raw)
    }
}

impl Buffer {
    pub(super) fn raw(&self) -> &wgpu::Buffer {
        &self.held().buffer
    }

    /// A number that no other buffer of the device has or had.
    pub(super) fn number(&self) -> u64 {
        self.held().number
    }

    fn held(&self) -> &Raw {
        self.raw.as_ref().expect("bug: a live buffer has its wgpu buffer")
    }

    /// Size in bytes, rounded up to the pool's granule.
    pub fn bytes(&self) -> u64 {
        self.raw().size()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(raw) = self.raw.take() {
            let size = raw.buffer.size();
            let mut state = self.pool.lock();
            state.usage.live -= size;
            state.idle.entry(size).or_default().push(raw);
        }
    }
}
