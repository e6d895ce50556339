//! Buffers, reused by exact size after drop. One in-order queue makes that safe: whatever is recorded next runs after the
//! work that still reads the old contents.
//!
//! Idle buffers may hold up to 1.5 × the peak of live bytes, at least [`IDLE_FLOOR`]; beyond that the longest idle are released
//! until half of the limit is left. A training step, which repeats its sizes, keeps all of its buffers; sizes that do not recur are
//! evicted.
//!
//! Of the idle buffers of a size, the one with the lowest number is reused. The choice depends only on which buffers are live, so
//! that a step with the allocations of the step before binds the same buffers in the same places, and finds its bind groups.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::hash::BuildFast;
#[cfg(feature = "host")]
use super::host::Mapping;
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

/// Idle buffers of fewer bytes than this in total are always kept.
const IDLE_FLOOR: u64 = 16 << 20;

#[derive(Default)]
struct State {
    /// By size and number.
    idle: HashMap<u64, BTreeMap<u64, Idle>, BuildFast>,
    usage: MemoryUse,
    /// The largest `usage.live` since the device was opened.
    most_live: u64,
    created: u64,
    /// Buffers that have become idle so far.
    dropped: u64,
    bind_groups: BindGroups,
}

/// Bind groups by what they are made from: the layout's number, then each buffer's number, offset and size. They keep their buffers
/// alive, so they are released with any of them. When the cache is full, entries unused since it was half full are evicted.
#[derive(Default)]
struct BindGroups {
    recent: HashMap<Box<[u64]>, wgpu::BindGroup, BuildFast>,
    older: HashMap<Box<[u64]>, wgpu::BindGroup, BuildFast>,
}

/// Half of the cache's capacity: more than the dispatches of a step.
const RECENT_BIND_GROUPS: usize = 16_384;

impl BindGroups {
    fn get(&mut self, key: &[u64], create: impl FnOnce() -> wgpu::BindGroup) -> wgpu::BindGroup {
        if let Some(known) = self.recent.get(key) {
            return known.clone();
        }
        if self.recent.len() >= RECENT_BIND_GROUPS {
            self.older = std::mem::take(&mut self.recent);
        }
        let (key, group) = self.older.remove_entry(key).unwrap_or_else(|| (key.into(), create()));
        self.recent.insert(key, group.clone());
        group
    }

    fn release(&mut self, buffers: &HashSet<u64>) {
        let stays = |key: &[u64]| !key[1..].chunks(3).any(|slice| buffers.contains(&slice[0]));
        self.recent.retain(|key, _| stays(key));
        self.older.retain(|key, _| stays(key));
    }
}

/// A driver's buffer and a number that no other buffer of the pool has or had.
struct Raw {
    buffer: wgpu::Buffer,
    bytes: u64,
    number: u64,
    /// The recorder's generation of the last command that uses it.
    last_use: AtomicU64,
    #[cfg(feature = "host")]
    mapping: Mapping,
}

struct Idle {
    raw: Raw,
    /// `State::dropped` when it became idle.
    since: u64,
}

impl State {
    fn idle_bytes(&self) -> u64 {
        self.usage.allocated - self.usage.live
    }

    /// Releases idle buffers to the driver, the longest idle first, until at most `keep` bytes are left.
    fn release_idle(&mut self, keep: u64) {
        let mut ages: Vec<(u64, u64)> =
            self.idle.iter().flat_map(|(&size, buffers)| buffers.values().map(move |idle| (idle.since, size))).collect();
        ages.sort_unstable();
        let mut left = self.idle_bytes();
        let mut first_spared = u64::MAX;
        for (since, size) in ages {
            if left <= keep {
                first_spared = since;
                break;
            }
            left -= size;
        }
        let mut released = HashSet::new();
        self.idle.retain(|_, buffers| {
            buffers.retain(|number, idle| idle.since >= first_spared || !released.insert(*number));
            !buffers.is_empty()
        });
        self.usage.allocated = self.usage.live + left;
        self.bind_groups.release(&released);
    }

    /// The error of a request that exhausts the budget, if that is given, or that the driver refused.
    fn out_of_memory(&self, requested: u64, budget: Option<u64>) -> Error {
        Error::OutOfMemory { requested, live: self.usage.live, budget }
    }
}

pub(super) struct Pool {
    device: wgpu::Device,
    budget: Option<u64>,
    usage: wgpu::BufferUsages,
    /// Buffers are not used: the driver's are as small as can be.
    is_rehearsal: bool,
    state: Mutex<State>,
}

/// A storage buffer on the device. Goes back to the pool when dropped.
pub struct Buffer {
    raw: Option<Raw>,
    pool: Arc<Pool>,
}

impl Pool {
    /// With `mapped`, for the host tier, buffers are mapped as long as the adapter does not use them.
    pub(super) fn new(device: wgpu::Device, budget: Option<u64>, mapped: bool, is_rehearsal: bool) -> Self {
        let mut usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        usage.set(wgpu::BufferUsages::MAP_WRITE, mapped);
        Self { device, budget, usage, is_rehearsal, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(super) fn owns(self: &Arc<Self>, buffer: &Buffer) -> bool {
        Arc::ptr_eq(self, &buffer.pool)
    }

    pub(super) fn budget(&self) -> Option<u64> {
        self.budget
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
        self.take(bytes, |idle| idle.pop_first().map(|(_, idle)| idle))
    }

    /// [`Pool::allocate`] of a buffer that no command of the recorder's `generation` uses.
    pub(super) fn allocate_unused(self: &Arc<Self>, bytes: u64, generation: u64) -> Result<Buffer> {
        self.take(bytes, |idle| {
            let found = idle.iter().find(|(_, idle)| idle.raw.last_use.load(Ordering::Relaxed) < generation);
            let number = *found?.0;
            idle.remove(&number)
        })
    }

    fn take(self: &Arc<Self>, bytes: u64, choose: impl FnOnce(&mut BTreeMap<u64, Idle>) -> Option<Idle>) -> Result<Buffer> {
        let mut state = self.lock();
        let Some(size) = bytes.max(1).checked_next_multiple_of(GRANULE) else {
            return Err(state.out_of_memory(bytes, self.budget));
        };
        let raw = match state.idle.get_mut(&size).and_then(choose) {
            Some(idle) => idle.raw,
            None => self.create(&mut state, size)?,
        };
        state.usage.live += size;
        state.usage.peak = state.usage.peak.max(state.usage.live);
        state.most_live = state.most_live.max(state.usage.live);
        Ok(Buffer { raw: Some(raw), pool: self.clone() })
    }

    /// The bind group of this key: that of an earlier dispatch where there was one.
    pub(super) fn bind_group(&self, key: &[u64], create: impl FnOnce() -> wgpu::BindGroup) -> wgpu::BindGroup {
        self.lock().bind_groups.get(key, create)
    }

    /// A buffer that takes bytes to the device, mapped, or from it. It is out of the budget, which counts what lasts: a copy is gone
    /// once the device has done it.
    pub(super) fn staging(&self, size: u64, usage: wgpu::BufferUsages) -> Result<wgpu::Buffer> {
        let is_upload = usage.contains(wgpu::BufferUsages::COPY_SRC);
        let descriptor = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: is_upload };
        self.create_or_release(&mut self.lock(), &descriptor)
    }

    fn create(&self, state: &mut State, size: u64) -> Result<Raw> {
        let most = self.budget.unwrap_or(u64::MAX);
        let fits = |allocated: u64| allocated.checked_add(size).is_some_and(|total| total <= most);
        if !fits(state.usage.allocated) {
            state.release_idle(0);
        }
        if !fits(state.usage.allocated) {
            return Err(state.out_of_memory(size, self.budget));
        }
        let descriptor = wgpu::BufferDescriptor {
            label: None,
            size: if self.is_rehearsal { GRANULE } else { size },
            usage: self.usage,
            mapped_at_creation: self.usage.contains(wgpu::BufferUsages::MAP_WRITE),
        };
        let buffer = self.create_or_release(state, &descriptor)?;
        #[cfg(feature = "host")]
        let mapping = if descriptor.mapped_at_creation { Mapping::created(&buffer)? } else { Mapping::default() };
        state.usage.allocated += size;
        state.created += 1;
        Ok(Raw {
            buffer,
            bytes: size,
            number: state.created,
            last_use: AtomicU64::new(0),
            #[cfg(feature = "host")]
            mapping,
        })
    }

    /// A new buffer, for which idle ones make room if they must.
    fn create_or_release(&self, state: &mut State, descriptor: &wgpu::BufferDescriptor<'_>) -> Result<wgpu::Buffer> {
        if descriptor.size > self.device.limits().max_buffer_size {
            return Err(state.out_of_memory(descriptor.size, None));
        }
        if let Some(buffer) = self.try_create(descriptor) {
            return Ok(buffer);
        }
        state.release_idle(0);
        self.try_create(descriptor).ok_or_else(|| state.out_of_memory(descriptor.size, None))
    }

    fn try_create(&self, descriptor: &wgpu::BufferDescriptor<'_>) -> Option<wgpu::Buffer> {
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffer = self.device.create_buffer(descriptor);
        pollster::block_on(scope.pop()).is_none().then_some(buffer)
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

    /// The recorder's generation of the last command that uses it.
    pub(super) fn last_use(&self) -> u64 {
        self.held().last_use.load(Ordering::Relaxed)
    }

    /// Keeps that a command of the recorder's `generation` uses it.
    pub(super) fn use_in(&self, generation: u64) {
        self.held().last_use.store(generation, Ordering::Relaxed);
    }

    #[cfg(feature = "host")]
    pub(super) fn mapping(&self) -> &Mapping {
        &self.held().mapping
    }

    fn held(&self) -> &Raw {
        self.raw.as_ref().expect("bug: a live buffer has its wgpu buffer")
    }

    /// Size in bytes, rounded up to the pool's granule.
    pub fn bytes(&self) -> u64 {
        self.held().bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(raw) = self.raw.take() {
            let size = raw.bytes;
            let mut state = self.pool.lock();
            state.usage.live -= size;
            state.dropped += 1;
            let since = state.dropped;
            state.idle.entry(size).or_default().insert(raw.number, Idle { raw, since });
            let most_idle = (state.most_live / 2).saturating_mul(3).max(IDLE_FLOOR);
            if state.idle_bytes() > most_idle {
                state.release_idle(most_idle / 2);
            }
        }
    }
}
