//! One open encoder and compute pass, submits of bounded length.
//!
//! A dispatch whose kernel is still being compiled waits here, and what comes after it, in order: the kernels of a first step are
//! compiled on all cores while the host records on.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::kernel::Launch;
use super::pace::Pace;
use super::pipeline::Pipeline;
use super::pool::{Buffer, Pool};
use super::profile::{ProfileTable, Timer};
use super::queue::QueueCounters;
use crate::error::{Error, Result};

/// A submit ends after this many dispatches: few while the device has nothing to do, so that it starts early, else many, so that the
/// host has less to do.
const FIRST_DISPATCHES: u32 = 64;
const DISPATCHES: u32 = 256;
/// Submits that may wait in the driver before recording pauses; bounds the memory that the driver holds for them.
const SUBMITS_IN_FLIGHT: usize = 3;
/// Commands that may wait for a compiler before recording pauses.
const MOST_WAITING: usize = 4096;
/// Size of a buffer that small uploads share, and of the largest of those.
const SHARED_STAGING: u64 = 64 << 10;
pub(super) const SMALL_UPLOAD: u64 = 16 << 10;

/// Commands that were recorded and not yet submitted.
#[derive(Default)]
struct Open {
    /// Copies to buffers that nothing else in this submit uses before: they run first and interrupt no pass.
    early: Option<wgpu::CommandEncoder>,
    encoder: Option<wgpu::CommandEncoder>,
    pass: Option<wgpu::ComputePass<'static>>,
    /// Address of the pipeline set in the pass.
    pipeline: usize,
    dispatches: u32,
    /// Estimate of the time that it takes.
    seconds: f64,
    /// Upload buffers to unmap; small uploads go into the last.
    staging: Vec<wgpu::Buffer>,
    /// Bytes used in the last.
    staged: u64,
}

/// A dispatch without its bindings: what the profile and the limits need.
struct Dispatch {
    kernel: &'static str,
    workgroups: [u32; 3],
    work: u64,
    seconds: f64,
}

enum Command {
    Dispatch { pipeline: Arc<Pipeline>, bind_group: wgpu::BindGroup, arguments: Vec<u8>, dispatch: Dispatch },
    Copy { from: (wgpu::Buffer, u64), to: (wgpu::Buffer, u64), size: u64 },
    Clear(wgpu::Buffer),
}

pub(super) struct Recorder {
    device: wgpu::Device,
    queue: wgpu::Queue,
    pace: Arc<Pace>,
    failure: Arc<Mutex<Option<String>>>,
    open: Open,
    waiting: VecDeque<Command>,
    /// Commands taken, and those of them that are encoded.
    taken: u64,
    encoded: u64,
    /// Counts submits after which nothing waited. A buffer whose number is lower is used by no command that is still to be submitted.
    generation: u64,
    timer: Option<Timer>,
    /// Whether the timer is paused.
    is_untimed: bool,
    in_flight: VecDeque<wgpu::SubmissionIndex>,
    counters: QueueCounters,
}

impl Recorder {
    pub(super) fn new(
        device: &wgpu::Device,
        queue: &wgpu::Queue,
        timed: bool,
        pace: &Arc<Pace>,
        failure: &Arc<Mutex<Option<String>>>,
    ) -> Self {
        Self {
            device: device.clone(),
            queue: queue.clone(),
            pace: pace.clone(),
            failure: failure.clone(),
            open: Open::default(),
            waiting: VecDeque::new(),
            taken: 0,
            encoded: 0,
            generation: 1,
            timer: timed.then(|| Timer::new(device, queue)),
            is_untimed: false,
            in_flight: VecDeque::new(),
            counters: QueueCounters::default(),
        }
    }

    pub(super) fn counters(&mut self) -> &mut QueueCounters {
        &mut self.counters
    }

    /// The timer, unless it is paused.
    fn timer(&mut self) -> Option<&mut Timer> {
        self.timer.as_mut().filter(|_| !self.is_untimed)
    }

    /// See [`Gpu::time_kernels`](super::Gpu::time_kernels).
    pub(super) fn time_kernels(&mut self, on: bool) {
        self.is_untimed = !on;
        if let Some(timer) = self.timer() {
            timer.clear();
        }
    }

    pub(super) fn profile_table(&self) -> ProfileTable {
        self.timer.as_ref().map(Timer::table).unwrap_or_default()
    }

    /// See [`Pool::allocate_unused`].
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Commands taken so far, for [`Recorder::encode_up_to`].
    pub(super) fn taken(&self) -> u64 {
        self.taken
    }

    /// Takes a dispatch, and submits if enough is recorded.
    pub(super) fn dispatch(&mut self, pipeline: &Arc<Pipeline>, bind_group: &wgpu::BindGroup, launch: &Launch<'_>) -> Result<()> {
        self.encode_ready()?;
        let ready = pipeline.ready().transpose()?;
        let mut bytes = 0;
        for slice in launch.buffers {
            slice.buffer.use_in(self.generation);
            bytes += slice.size;
        }
        let dispatch = Dispatch {
            kernel: launch.kernel.name,
            workgroups: launch.workgroups,
            work: launch.work,
            seconds: self.pace.seconds(pipeline, launch.work, bytes),
        };
        self.counters.dispatches += 1;
        self.taken += 1;
        match ready {
            Some(raw) if self.waiting.is_empty() => {
                self.encoded += 1;
                self.encode_dispatch(Arc::as_ptr(pipeline) as usize, raw, bind_group, launch.arguments, &dispatch);
                self.submit_if_due()
            }
            _ => {
                let (pipeline, arguments) = (pipeline.clone(), launch.arguments.to_vec());
                self.waiting.push_back(Command::Dispatch { pipeline, bind_group: bind_group.clone(), arguments, dispatch });
                if self.waiting.len() > MOST_WAITING
                    && let Some(first) = self.first_compiling()
                {
                    let _ = first.wait(); // encoding reports what is wrong with it
                    self.encode_ready()?;
                }
                Ok(())
            }
        }
    }

    /// Takes a copy of `size` bytes between buffers of the pool.
    pub(super) fn copy(&mut self, from: (&Buffer, u64), to: (&Buffer, u64), size: u64) -> Result<()> {
        self.encode_ready()?;
        from.0.use_in(self.generation);
        self.copy_raw((from.0.raw(), from.1), to, size)
    }

    fn copy_raw(&mut self, from: (&wgpu::Buffer, u64), to: (&Buffer, u64), size: u64) -> Result<()> {
        to.0.use_in(self.generation);
        self.take(Command::Copy { from: (from.0.clone(), from.1), to: (to.0.raw().clone(), to.1), size })
    }

    /// Takes a copy to a buffer that is read back.
    pub(super) fn copy_out(&mut self, from: (&Buffer, u64), to: (&wgpu::Buffer, u64), size: u64) -> Result<()> {
        self.encode_ready()?;
        from.0.use_in(self.generation);
        self.take(Command::Copy { from: (from.0.raw().clone(), from.1), to: (to.0.clone(), to.1), size })
    }

    /// Takes the clearing of a buffer.
    pub(super) fn clear(&mut self, buffer: &Buffer) -> Result<()> {
        self.encode_ready()?;
        if self.is_unused(buffer) {
            let early = self.early();
            early.clear_buffer(buffer.raw(), 0, None);
            buffer.use_in(self.generation);
            return Ok(());
        }
        buffer.use_in(self.generation);
        self.take(Command::Clear(buffer.raw().clone()))
    }

    /// Takes the upload of a few bytes, padded to `size`, which share a staging buffer with others.
    pub(super) fn upload_small(&mut self, pool: &Pool, bytes: &[u8], size: u64, to: &Buffer) -> Result<()> {
        self.encode_ready()?;
        if self.open.staging.is_empty() || self.open.staged + size > SHARED_STAGING {
            self.open.staging.push(pool.staging(SHARED_STAGING, wgpu::BufferUsages::COPY_SRC)?);
            self.open.staged = 0;
        }
        let at = self.open.staged;
        // Views must start at multiples of eight bytes.
        self.open.staged += size.next_multiple_of(wgpu::MAP_ALIGNMENT);
        let staging = self.open.staging.last().expect("bug: a staging buffer was made just now").clone();
        write(&staging, at, bytes)?;
        self.upload(&staging, at, size, to)
    }

    /// Takes the copy from a staging buffer.
    pub(super) fn upload(&mut self, staging: &wgpu::Buffer, at: u64, size: u64, to: &Buffer) -> Result<()> {
        self.counters.bytes_uploaded += size;
        self.encode_ready()?;
        if self.is_unused(to) {
            self.early().copy_buffer_to_buffer(staging, at, to.raw(), 0, size);
            to.use_in(self.generation);
            return Ok(());
        }
        self.copy_raw((staging, at), (to, 0), size)
    }

    /// Whether no command that is still to be submitted uses the buffer.
    fn is_unused(&self, buffer: &Buffer) -> bool {
        buffer.last_use() < self.generation
    }

    fn early(&mut self) -> &mut wgpu::CommandEncoder {
        let device = &self.device;
        self.open.early.get_or_insert_with(|| device.create_command_encoder(&Default::default()))
    }

    fn take(&mut self, command: Command) -> Result<()> {
        self.taken += 1;
        if self.waiting.is_empty() {
            self.encode(&command)
        } else {
            self.waiting.push_back(command);
            Ok(())
        }
    }

    /// Encodes what no longer waits for a compiler, and may submit it: before a command is taken, whose buffers are marked with the
    /// generation that it is submitted in.
    fn encode_ready(&mut self) -> Result<()> {
        while !self.waiting.is_empty()
            && self.first_compiling().is_none()
            && let Some(command) = self.waiting.pop_front()
        {
            self.encode(&command)?;
            self.submit_if_due()?;
        }
        Ok(())
    }

    /// Encodes the first `count` commands ever taken, as far as they are compiled; else the pipeline to wait for.
    pub(super) fn encode_up_to(&mut self, count: u64) -> Result<Option<Arc<Pipeline>>> {
        loop {
            self.encode_ready()?;
            if self.encoded >= count || self.waiting.is_empty() {
                return Ok(None);
            }
            // It may have been compiled since.
            if let Some(pipeline) = self.first_compiling() {
                return Ok(Some(pipeline));
            }
        }
    }

    /// The pipeline that the first waiting command waits for.
    fn first_compiling(&self) -> Option<Arc<Pipeline>> {
        match self.waiting.front() {
            Some(Command::Dispatch { pipeline, .. }) if pipeline.ready().is_none() => Some(pipeline.clone()),
            _ => None,
        }
    }

    fn encode(&mut self, command: &Command) -> Result<()> {
        self.encoded += 1;
        match command {
            Command::Dispatch { pipeline, bind_group, arguments, dispatch } => {
                // Whoever recorded it has gone on as if it ran, so nothing on this device can be trusted any more.
                let raw = pipeline.wait().inspect_err(|error| {
                    let mut slot = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
                    slot.get_or_insert(error.to_string());
                })?;
                self.encode_dispatch(Arc::as_ptr(pipeline) as usize, raw, bind_group, arguments, dispatch);
            }
            Command::Copy { from, to, size } => {
                self.encoder().copy_buffer_to_buffer(&from.0, from.1, &to.0, to.1, *size);
            }
            Command::Clear(buffer) => {
                self.encoder().clear_buffer(buffer, 0, None);
            }
        }
        Ok(())
    }

    /// The encoder, with no pass open: for copies.
    fn encoder(&mut self) -> &mut wgpu::CommandEncoder {
        self.open.pass = None;
        let device = &self.device;
        self.open.encoder.get_or_insert_with(|| device.create_command_encoder(&Default::default()))
    }

    fn encode_dispatch(
        &mut self,
        address: usize,
        pipeline: &wgpu::ComputePipeline,
        bind_group: &wgpu::BindGroup,
        arguments: &[u8],
        dispatch: &Dispatch,
    ) {
        let timestamps = self.timer().map(|timer| timer.next(dispatch.kernel, dispatch.work));
        if self.open.pass.is_none() {
            let pass = self.encoder().begin_compute_pass(&Default::default()).forget_lifetime();
            self.open.pass = Some(pass);
            self.open.pipeline = 0;
        }
        let open = &mut self.open;
        let pass = open.pass.as_mut().expect("bug: a pass was opened just now");
        if let Some((queries, at)) = &timestamps {
            pass.write_timestamp(queries, *at);
        }
        if open.pipeline != address {
            pass.set_pipeline(pipeline);
            open.pipeline = address;
        }
        pass.set_bind_group(0, bind_group, &[]);
        if !arguments.is_empty() {
            pass.set_immediates(0, arguments);
        }
        let [x, y, z] = dispatch.workgroups;
        pass.dispatch_workgroups(x, y, z);
        if let Some((queries, at)) = &timestamps {
            pass.write_timestamp(queries, at + 1);
        }
        open.dispatches += 1;
        open.seconds += dispatch.seconds;
    }

    /// Counts the run of a twin, and its time if kernels are timed.
    #[cfg(feature = "host")]
    pub(super) fn count_host(&mut self, launch: &Launch<'_>, time: Duration) {
        self.counters.dispatches += 1;
        if let Some(timer) = self.timer() {
            timer.add(launch.kernel.name, launch.work, time.as_secs_f64());
        }
    }

    fn submit_if_due(&mut self) -> Result<()> {
        let timer_full = self.timer.as_ref().is_some_and(Timer::is_full);
        let most = if self.in_flight.is_empty() { FIRST_DISPATCHES } else { DISPATCHES };
        let is_due = self.open.dispatches >= most || self.open.seconds >= Pace::SUBMIT || timer_full;
        if is_due { self.submit() } else { Ok(()) }
    }

    /// Submits what is encoded, without waiting for it to run.
    pub(super) fn submit(&mut self) -> Result<()> {
        let open = std::mem::take(&mut self.open);
        drop(open.pass);
        open.staging.iter().for_each(wgpu::Buffer::unmap);
        let mut encoder = open.encoder;
        if let (Some(timer), Some(encoder)) = (self.timer(), encoder.as_mut()) {
            timer.resolve(encoder);
        }
        if self.waiting.is_empty() {
            self.generation += 1;
        }
        if open.early.is_none() && encoder.is_none() {
            return Ok(());
        }
        let index = self.queue.submit(open.early.into_iter().chain(encoder).map(wgpu::CommandEncoder::finish));
        self.counters.submits += 1;
        self.in_flight.push_back(index);
        let started = Instant::now();
        if self.timer().is_some() {
            wait(&self.device, None)?;
            self.in_flight.clear();
            let device = self.device.clone();
            if let Some(timer) = self.timer() {
                timer.collect(&device)?;
            }
        }
        while self.in_flight.len() > SUBMITS_IN_FLIGHT {
            let oldest = self.in_flight.pop_front();
            wait(&self.device, oldest)?;
        }
        self.counters.waited += started.elapsed();
        Ok(())
    }

    /// Called when everything submitted has run.
    pub(super) fn is_idle(&mut self) {
        self.in_flight.clear();
    }
}

/// Waits for a submit, or for all.
pub(super) fn wait(device: &wgpu::Device, submission_index: Option<wgpu::SubmissionIndex>) -> Result<()> {
    let waited = device.poll(wgpu::PollType::Wait { submission_index, timeout: None });
    waited.map(drop).map_err(|error| Error::Device(error.to_string()))
}

/// Writes to a part of a mapped buffer.
pub(super) fn write(staging: &wgpu::Buffer, at: u64, bytes: &[u8]) -> Result<()> {
    let end = (at + bytes.len() as u64).next_multiple_of(wgpu::COPY_BUFFER_ALIGNMENT);
    match staging.get_mapped_range_mut(at..end) {
        Ok(mut view) => view.slice(..bytes.len()).copy_from_slice(bytes),
        Err(error) => return Err(Error::Device(format!("staging buffer of {} bytes: {error}", staging.size()))),
    }
    Ok(())
}
