//! One open encoder and compute pass, submits of bounded length, copies, read-back.

use std::collections::VecDeque;
use std::sync::MutexGuard;
use std::time::Duration;

use super::device::Gpu;
use super::kernel::{Launch, Slice};
use super::pool::Buffer;
use super::profile::{ProfileTable, Timer};
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
}

/// Commands that were recorded and not yet submitted.
#[derive(Default)]
struct Open {
    encoder: Option<wgpu::CommandEncoder>,
    pass: Option<wgpu::ComputePass<'static>>,
    dispatches: u32,
    work: u64,
}

pub(super) struct Recorder {
    device: wgpu::Device,
    open: Open,
    timer: Option<Timer>,
    in_flight: VecDeque<wgpu::SubmissionIndex>,
    counters: QueueCounters,
    work_per_submit: u64,
}

/// A submit ends after this many dispatches, so that the device starts early and the host keeps recording.
const DISPATCHES_PER_SUBMIT: u32 = 128;
/// What moving a byte counts for in a submit's work: adapters do about so many operations in that time.
const OPERATIONS_PER_BYTE: u64 = 4;
/// Submits that may wait in the driver before recording pauses; bounds the memory that the driver holds for them.
const SUBMITS_IN_FLIGHT: usize = 3;
/// How long another thread may take to call a callback whose work is done.
const CALLBACK_TIMEOUT: Duration = Duration::from_secs(10);

impl Recorder {
    /// `work_per_submit` is in floating-point operations.
    pub(super) fn new(device: &wgpu::Device, queue: &wgpu::Queue, timed: bool, work_per_submit: u64) -> Self {
        Self {
            device: device.clone(),
            open: Open::default(),
            timer: timed.then(|| Timer::new(device, queue)),
            in_flight: VecDeque::new(),
            counters: QueueCounters::default(),
            work_per_submit,
        }
    }

    pub(super) fn counters(&self) -> QueueCounters {
        self.counters
    }

    pub(super) fn profile_table(&self) -> ProfileTable {
        self.timer.as_ref().map(Timer::table).unwrap_or_default()
    }

    /// The encoder, with no pass open: for copies.
    fn encoder(&mut self) -> &mut wgpu::CommandEncoder {
        self.open.pass = None;
        let device = &self.device;
        self.open.encoder.get_or_insert_with(|| device.create_command_encoder(&Default::default()))
    }

    fn pass(&mut self) -> &mut wgpu::ComputePass<'static> {
        if self.open.pass.is_none() {
            let pass = self.encoder().begin_compute_pass(&Default::default()).forget_lifetime();
            self.open.pass = Some(pass);
        }
        self.open.pass.as_mut().expect("bug: a pass was opened just now")
    }

    pub(super) fn dispatch(&mut self, pipeline: &wgpu::ComputePipeline, bind_group: &wgpu::BindGroup, launch: &Launch<'_>) {
        let timestamps = self.timer.as_mut().map(|timer| timer.next(launch.kernel.name(), launch.work));
        let pass = self.pass();
        if let Some((queries, at)) = &timestamps {
            pass.write_timestamp(queries, *at);
        }
        pass.set_pipeline(pipeline);
        pass.set_bind_group(0, bind_group, &[]);
        if !launch.arguments.is_empty() {
            pass.set_immediates(0, launch.arguments);
        }
        let [x, y, z] = launch.workgroups;
        pass.dispatch_workgroups(x, y, z);
        if let Some((queries, at)) = &timestamps {
            pass.write_timestamp(queries, at + 1);
        }
        self.open.dispatches += 1;
        let bytes: u64 = launch.buffers.iter().map(|slice| slice.size).sum();
        self.open.work += launch.work.max(OPERATIONS_PER_BYTE * bytes);
        self.counters.dispatches += 1;
    }

    /// Counts the run of a twin, and its time if kernels are timed.
    #[cfg(feature = "host")]
    pub(super) fn count_host(&mut self, launch: &Launch<'_>, time: Duration) {
        self.counters.dispatches += 1;
        if let Some(timer) = &mut self.timer {
            timer.add(launch.kernel.name(), launch.work, time.as_secs_f64());
        }
    }

    fn is_due(&self) -> bool {
        let timer_full = self.timer.as_ref().is_some_and(Timer::is_full);
        self.open.dispatches >= DISPATCHES_PER_SUBMIT || self.open.work >= self.work_per_submit || timer_full
    }
}

impl Gpu {
    pub(super) fn recorder(&self) -> MutexGuard<'_, Recorder> {
        self.inner.recorder.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(super) fn flush_if_due(&self) -> Result<()> {
        if self.recorder().is_due() { self.flush() } else { Ok(()) }
    }

    /// Submits what has been recorded, without waiting for it to run.
    pub fn flush(&self) -> Result<()> {
        let mut recorder = self.recorder();
        let mut open = std::mem::take(&mut recorder.open);
        drop(open.pass.take());
        let Some(mut encoder) = open.encoder else {
            return self.failure();
        };
        if let Some(timer) = recorder.timer.as_mut() {
            timer.resolve(&mut encoder);
        }
        let index = self.inner.queue.submit([encoder.finish()]);
        recorder.counters.submits += 1;
        recorder.in_flight.push_back(index);
        if recorder.timer.is_some() {
            self.wait(None)?;
            recorder.in_flight.clear();
            if let Some(timer) = recorder.timer.as_mut() {
                timer.collect(&self.inner.device)?;
            }
        }
        while recorder.in_flight.len() > SUBMITS_IN_FLIGHT {
            let oldest = recorder.in_flight.pop_front();
            self.wait(oldest)?;
        }
        self.failure()
    }

    /// Submits what has been recorded and waits until the device has done it.
    pub fn synchronize(&self) -> Result<()> {
        self.flush()?;
        self.wait(None)
    }

    fn wait(&self, submission_index: Option<wgpu::SubmissionIndex>) -> Result<()> {
        let waited = self.inner.device.poll(wgpu::PollType::Wait { submission_index, timeout: None });
        waited.map_err(|error| Error::Device(error.to_string()))?;
        self.failure()
    }

    fn failure(&self) -> Result<()> {
        let failure = self.inner.failure.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        failure.as_ref().map_or(Ok(()), |text| Err(Error::Device(text.clone())))
    }

    /// A new buffer holding `bytes`.
    pub fn upload(&self, bytes: &[u8]) -> Result<Buffer> {
        let buffer = self.allocate(bytes.len() as u64)?;
        let padded = (bytes.len() as u64).next_multiple_of(wgpu::COPY_BUFFER_ALIGNMENT);
        if padded == 0 || self.inner.is_rehearsal {
            return Ok(buffer);
        }
        #[cfg(feature = "host")]
        if self.host_write(bytes, &buffer)? {
            self.recorder().counters.bytes_uploaded += padded;
            return Ok(buffer);
        }
        // A buffer mapped at creation keeps its place in the recording; `Queue::write_buffer` would run before everything
        // recorded so far.
        let staging = self.inner.pool.staging(padded, wgpu::BufferUsages::COPY_SRC)?;
        match staging.get_mapped_range_mut(..) {
            Ok(mut view) => view.slice(..bytes.len()).copy_from_slice(bytes),
            Err(error) => return Err(Error::Device(format!("staging buffer of {padded} bytes: {error}"))),
        }
        staging.unmap();
        let mut recorder = self.recorder();
        recorder.encoder().copy_buffer_to_buffer(&staging, 0, buffer.raw(), 0, padded);
        recorder.counters.bytes_uploaded += padded;
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
        self.recorder().encoder().clear_buffer(buffer.raw(), 0, None);
        Ok(())
    }

    /// An error unless this is a slice of one of the device's buffers.
    fn check(&self, what: &str, slice: &Slice<'_>) -> Result<()> {
        slice.problem(self).map_or(Ok(()), |problem| Err(Error::Value(format!("{what}: the buffer {problem}"))))
    }

    /// Records copying `size` bytes (a multiple of 4) from one buffer to another. An error where either has fewer.
    pub fn copy(&self, from: Slice<'_>, to: &Buffer, to_offset: u64) -> Result<()> {
        self.check("copy from", &from)?;
        self.check("copy to", &Slice { buffer: to, offset: to_offset, size: from.size })?;
        if self.inner.is_rehearsal {
            return Ok(());
        }
        #[cfg(feature = "host")]
        if self.host_copy(&from, to, to_offset)? {
            return Ok(());
        }
        let mut recorder = self.recorder();
        recorder.encoder().copy_buffer_to_buffer(from.buffer.raw(), from.offset, to.raw(), to_offset, from.size);
        Ok(())
    }

    /// Runs everything recorded and returns the bytes of each slice, whose sizes are multiples of 4.
    pub fn read(&self, slices: &[Slice<'_>]) -> Result<Vec<Vec<u8>>> {
        pollster::block_on(self.read_async(slices))
    }

    /// Runs everything recorded and returns the bytes of each slice, whose sizes are multiples of 4.
    pub async fn read_async(&self, slices: &[Slice<'_>]) -> Result<Vec<Vec<u8>>> {
        slices.iter().try_for_each(|slice| self.check("read", slice))?;
        let total: u64 = slices.iter().map(|slice| slice.size).sum();
        if total == 0 || self.inner.is_rehearsal {
            return Ok(slices.iter().map(|slice| vec![0; slice.size as usize]).collect());
        }
        #[cfg(feature = "host")]
        if let Some(bytes) = self.host_read(slices)? {
            self.recorder().counters.bytes_read += total;
            return Ok(bytes);
        }
        let staging = self.inner.pool.staging(total, wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST)?;
        let mut at = 0;
        for slice in slices {
            self.recorder().encoder().copy_buffer_to_buffer(slice.buffer.raw(), slice.offset, &staging, at, slice.size);
            at += slice.size;
        }
        self.recorder().counters.bytes_read += total;
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
        self.wait(None)?;
        // Another thread's poll may have taken the callback and be about to call it, after this thread's poll has returned.
        match receiver.recv_timeout(CALLBACK_TIMEOUT) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Error::Device(format!("read-back: {error}"))),
            Err(_) => Err(Error::Device("read-back: the device did not answer".into())),
        }
    }
}
