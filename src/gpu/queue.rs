//! Uploads, copies, read-back; submitting and waiting.

use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use super::device::Gpu;
use super::kernel::Slice;
use super::pool::Buffer;
use super::recorder::{self, Recorder, SMALL_UPLOAD};
use crate::error::{Error, Result};

/// What has gone through the queue since the device was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueCounters {
    /// Kernels dispatched.
    pub dispatches: u64,
    /// Command buffers submitted.
    pub submits: u64,
    /// Bytes copied to the device.
    pub bytes_uploaded: u64,
    /// Bytes copied from the device.
    pub bytes_read: u64,
    /// Time for which the host waited for the device; the rest of a step's time is the host's own work.
    pub waited: Duration,
}

/// How long another thread may take to call a callback whose work is done.
const CALLBACK_TIMEOUT: Duration = Duration::from_secs(10);

impl Gpu {
    pub(super) fn recorder(&self) -> MutexGuard<'_, Recorder> {
        self.inner.recorder.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Submits what has been recorded, without waiting for it to run; it waits for kernels that are still being compiled.
    pub fn flush(&self) -> Result<()> {
        let goal = self.recorder().taken();
        loop {
            let mut recorder = self.recorder();
            let Some(pipeline) = recorder.encode_up_to(goal)? else {
                recorder.submit()?;
                break;
            };
            drop(recorder); // other threads record on
            let _ = pipeline.wait(); // encoding reports what is wrong with it
        }
        self.failure()
    }

    /// Submits what has been recorded and waits until the device has done it.
    pub fn synchronize(&self) -> Result<()> {
        self.flush()?;
        self.wait()
    }

    fn wait(&self) -> Result<()> {
        let started = Instant::now();
        recorder::wait(&self.inner.device, None)?;
        let mut recorder = self.recorder();
        recorder.is_idle();
        recorder.counters().waited += started.elapsed();
        drop(recorder);
        self.failure()
    }

    /// Turns the timing of kernels on, with a new [`Gpu::profile`], or off, on a device that was opened with
    /// [`GpuOptions::profile`](super::GpuOptions::profile): there it is on at first. Elsewhere it does nothing.
    pub fn time_kernels(&self, on: bool) -> Result<()> {
        self.flush()?;
        self.recorder().time_kernels(on);
        Ok(())
    }

    fn failure(&self) -> Result<()> {
        let failure = self.inner.failure.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        failure.as_ref().map_or(Ok(()), |text| Err(Error::Device(text.clone())))
    }

    /// A new buffer holding `bytes`.
    pub fn upload(&self, bytes: &[u8]) -> Result<Buffer> {
        let size = (bytes.len() as u64).next_multiple_of(wgpu::COPY_BUFFER_ALIGNMENT);
        let buffer = if size <= SMALL_UPLOAD {
            let generation = self.recorder().generation();
            self.inner.pool.allocate_unused(size, generation)?
        } else {
            self.allocate(size)?
        };
        if size == 0 || self.inner.is_rehearsal {
            return Ok(buffer);
        }
        #[cfg(feature = "host")]
        if self.host_write(bytes, &buffer)? {
            self.recorder().counters().bytes_uploaded += size;
            return Ok(buffer);
        }
        if size <= SMALL_UPLOAD {
            self.recorder().upload_small(&self.inner.pool, bytes, size, &buffer)?;
            return Ok(buffer);
        }
        // A buffer mapped at creation keeps its place in the recording; `Queue::write_buffer` would run before everything
        // recorded so far.
        let staging = self.inner.pool.staging(size, wgpu::BufferUsages::COPY_SRC)?;
        recorder::write(&staging, 0, bytes)?;
        staging.unmap();
        self.recorder().upload(&staging, 0, size, &buffer)?;
        Ok(buffer)
    }

    /// Records filling a buffer with zeros.
    pub fn clear(&self, buffer: &Buffer) -> Result<()> {
        self.check("clear", &Slice { buffer, offset: 0, size: buffer.bytes() })?;
        if self.inner.is_rehearsal {
            return Ok(());
        }
        #[cfg(feature = "host")]
        if self.host_clear(buffer)? {
            return Ok(());
        }
        self.recorder().clear(buffer)
    }

    /// An error unless this is a slice of one of the device's buffers that can be copied.
    fn check(&self, what: &str, slice: &Slice<'_>) -> Result<()> {
        if let Some(problem) = slice.problem(self) {
            return Err(Error::Value(format!("{what}: the buffer {problem}")));
        }
        let Slice { offset, size, .. } = slice;
        if [offset, size].iter().all(|bytes| bytes.is_multiple_of(wgpu::COPY_BUFFER_ALIGNMENT)) {
            return Ok(());
        }
        let expected = format!("expected multiples of {}", wgpu::COPY_BUFFER_ALIGNMENT);
        Err(Error::Value(format!("{what}: found {size} bytes from {offset}, {expected}")))
    }

    /// Records copying a slice to another buffer, there from `to_offset` on. Errors: a buffer that has fewer bytes, a size or an offset
    /// that is no multiple of 4, one buffer as both.
    pub fn copy(&self, from: Slice<'_>, to: &Buffer, to_offset: u64) -> Result<()> {
        self.check("copy from", &from)?;
        self.check("copy to", &Slice { buffer: to, offset: to_offset, size: from.size })?;
        if std::ptr::eq(from.buffer, to) {
            return Err(Error::Value("copy: found one buffer, expected two; copy through a third".into()));
        }
        if self.inner.is_rehearsal {
            return Ok(());
        }
        #[cfg(feature = "host")]
        if self.host_copy(&from, to, to_offset)? {
            return Ok(());
        }
        self.recorder().copy((from.buffer, from.offset), (to, to_offset), from.size)
    }

    /// Runs everything recorded and returns the bytes of each slice. Errors: slices beyond their buffers, sizes or offsets that are no
    /// multiples of 4.
    pub fn read(&self, slices: &[Slice<'_>]) -> Result<Vec<Vec<u8>>> {
        pollster::block_on(self.read_async(slices))
    }

    /// [`Gpu::read`] without blocking.
    pub async fn read_async(&self, slices: &[Slice<'_>]) -> Result<Vec<Vec<u8>>> {
        slices.iter().try_for_each(|slice| self.check("read", slice))?;
        let total: u64 = slices.iter().map(|slice| slice.size).sum();
        if total == 0 || self.inner.is_rehearsal {
            return Ok(slices.iter().map(|slice| vec![0; slice.size as usize]).collect());
        }
        #[cfg(feature = "host")]
        if let Some(bytes) = self.host_read(slices)? {
            self.recorder().counters().bytes_read += total;
            return Ok(bytes);
        }
        let staging = self.inner.pool.staging(total, wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST)?;
        let mut at = 0;
        for slice in slices {
            self.recorder().copy_out((slice.buffer, slice.offset), (&staging, at), slice.size)?;
            at += slice.size;
        }
        self.recorder().counters().bytes_read += total;
        self.flush()?;
        self.map(&staging, wgpu::MapMode::Read).await?;
        let view = staging.get_mapped_range(..).map_err(|error| Error::Device(format!("read-back: {error}")))?;
        let mut at = 0;
        let cut = |slice: &Slice<'_>| {
            let from = at as usize;
            at += slice.size;
            view[from..at as usize].to_vec()
        };
        Ok(slices.iter().map(cut).collect())
    }

    /// Maps a buffer, after what has been submitted.
    pub(super) async fn map(&self, buffer: &wgpu::Buffer, mode: wgpu::MapMode) -> Result<()> {
        let (sender, receiver) = std::sync::mpsc::channel();
        buffer.map_async(mode, .., move |result| drop(sender.send(result)));
        self.wait()?;
        // Another thread's poll may have taken the callback and be about to call it, after this thread's poll has returned.
        match receiver.recv_timeout(CALLBACK_TIMEOUT) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Error::Device(format!("read-back: {error}"))),
            Err(_) => Err(Error::Device("read-back: the device did not answer".into())),
        }
    }
}
