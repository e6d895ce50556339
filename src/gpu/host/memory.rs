//! Mapped buffers: which are in the host's hands, and how they change hands.

use std::sync::atomic::{AtomicPtr, Ordering};

use super::super::device::Gpu;
use super::super::kernel::Slice;
use super::super::pool::Buffer;
use crate::error::{Error, Result};

/// Where a buffer is mapped: null while the adapter has it.
#[derive(Debug, Default)]
pub(in crate::gpu) struct Mapping(AtomicPtr<u8>);

impl Mapping {
    /// That of a buffer mapped at creation.
    pub(in crate::gpu) fn created(buffer: &wgpu::Buffer) -> Result<Self> {
        Ok(Self(AtomicPtr::new(pointer(buffer)?)))
    }

    fn get(&self) -> *mut u8 {
        self.0.load(Ordering::Acquire)
    }
}

/// The memory of a mapped buffer: valid until it is unmapped or freed.
fn pointer(buffer: &wgpu::Buffer) -> Result<*mut u8> {
    let view = buffer.get_mapped_range_mut(..);
    let mut view = view.map_err(|error| Error::Device(format!("mapping a buffer: {error}")))?;
    Ok(view.slice(..).as_raw_element_ptr().as_ptr())
}

impl Gpu {
    /// The memory of a buffer, after everything recorded that uses it. The caller has its turn.
    pub(in crate::gpu) fn host_pointer(&self, buffer: &Buffer) -> Result<*mut u8> {
        let known = buffer.mapping().get();
        if !known.is_null() {
            return Ok(known);
        }
        self.flush()?;
        pollster::block_on(self.map(buffer.raw(), wgpu::MapMode::Write))?;
        let mapped = pointer(buffer.raw())?;
        buffer.mapping().0.store(mapped, Ordering::Release);
        Ok(mapped)
    }

    /// Hands buffers to the adapter. The caller has its turn.
    pub(in crate::gpu) fn hand_over(&self, slices: &[Slice<'_>]) {
        for slice in slices {
            if !slice.buffer.mapping().0.swap(std::ptr::null_mut(), Ordering::AcqRel).is_null() {
                slice.buffer.raw().unmap();
            }
        }
    }

    /// Writes to a buffer, on the host tier; elsewhere nothing and false.
    pub(in crate::gpu) fn host_write(&self, bytes: &[u8], to: &Buffer) -> Result<bool> {
        let Some(executor) = &self.inner.executor else { return Ok(false) };
        let _turn = executor.turn();
        assert!(bytes.len() as u64 <= to.bytes(), "bug: more bytes than the buffer has");
        // SAFETY: within the mapped buffer, as asserted.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.host_pointer(to)?, bytes.len()) };
        Ok(true)
    }

    /// Fills a buffer with zeros, on the host tier; elsewhere nothing and false.
    pub(in crate::gpu) fn host_clear(&self, buffer: &Buffer) -> Result<bool> {
        let Some(executor) = &self.inner.executor else { return Ok(false) };
        let _turn = executor.turn();
        // SAFETY: the whole of the mapped buffer.
        unsafe { std::ptr::write_bytes(self.host_pointer(buffer)?, 0, buffer.bytes() as usize) };
        Ok(true)
    }

    /// Copies from one buffer to another, on the host tier; elsewhere nothing and false.
    pub(in crate::gpu) fn host_copy(&self, from: &Slice<'_>, to: &Buffer, to_offset: u64) -> Result<bool> {
        let Some(executor) = &self.inner.executor else { return Ok(false) };
        let _turn = executor.turn();
        let to_bytes = self.host_bytes(&Slice { buffer: to, offset: to_offset, size: from.size })?;
        // SAFETY: within the mapped buffers, which are two, as `Gpu::copy` has checked.
        unsafe { std::ptr::copy_nonoverlapping(self.host_bytes(from)?, to_bytes, from.size as usize) };
        Ok(true)
    }

    /// The bytes of each slice, on the host tier; elsewhere none.
    pub(in crate::gpu) fn host_read(&self, slices: &[Slice<'_>]) -> Result<Option<Vec<Vec<u8>>>> {
        let Some(executor) = &self.inner.executor else { return Ok(None) };
        let _turn = executor.turn();
        let read = |slice: &Slice<'_>| {
            // SAFETY: within the mapped buffer.
            Ok(unsafe { std::slice::from_raw_parts(self.host_bytes(slice)?, slice.size as usize) }.to_vec())
        };
        slices.iter().map(read).collect::<Result<_>>().map(Some)
    }

    /// The memory of a slice. The caller has its turn.
    pub(super) fn host_bytes(&self, slice: &Slice<'_>) -> Result<*mut u8> {
        assert!(slice.offset + slice.size <= slice.buffer.bytes(), "bug: a slice beyond its buffer");
        // SAFETY: within the buffer, as asserted.
        Ok(unsafe { self.host_pointer(slice.buffer)?.add(slice.offset as usize) })
    }
}
