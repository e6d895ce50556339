//! Buffers, reused by exact size after drop. One in-order queue makes that safe: whatever is recorded next runs after the
//! work that still reads the old contents.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::error::{Error, Result};

/// Sizes are rounded up to this many bytes, so that vec4 kernels may touch the tail of the last vector.
pub(super) const GRANULE: u64 = 256;

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
    idle: HashMap<u64, Vec<wgpu::Buffer>>,
    usage: MemoryUse,
}

pub(super) struct Pool {
    device: wgpu::Device,
    budget: Option<u64>,
    state: Mutex<State>,
}

/// A storage buffer on the device. Goes back to the pool when dropped.
pub struct Buffer {
    raw: Option<wgpu::Buffer>,
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

    fn create(&self, state: &mut State, size: u64) -> Result<wgpu::Buffer> {
        let exceeds = |allocated: u64| self.budget.is_some_and(|budget| allocated + size > budget);
        if exceeds(state.usage.allocated) {
            state.idle.clear();
            state.usage.allocated = state.usage.live;
        }
        let failed = Error::OutOfMemory { requested: size, live: state.usage.live, budget: self.budget };
        if exceeds(state.usage.allocated) || size > self.device.limits().max_buffer_size {
            return Err(failed);
        }
        let raw = match self.try_create(size) {
            Some(raw) => raw,
            None => {
                state.idle.clear();
                state.usage.allocated = state.usage.live;
                self.try_create(size).ok_or(failed)?
            }
        };
        state.usage.allocated += size;
        Ok(raw)
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
            let size = raw.size();
            let mut state = self.pool.lock();
            state.usage.live -= size;
            state.idle.entry(size).or_default().push(raw);
        }
    }
}
