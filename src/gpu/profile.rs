//! Time per kernel, from timestamp queries around each dispatch.

use std::collections::BTreeMap;
use std::fmt;

use crate::error::{Error, Result};

/// Timestamp queries per submit: two per dispatch.
const QUERIES: u32 = 512;

/// Totals of one kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct KernelTime {
    /// Number of dispatches.
    pub dispatches: u64,
    /// Seconds on the device.
    pub seconds: f64,
    /// Seconds of the longest dispatch.
    pub longest: f64,
    /// FLOP, for kernels that report them.
    pub work: u64,
}

/// Time per kernel; displays as a table sorted by time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ProfileTable {
    /// By kernel name.
    pub kernels: BTreeMap<&'static str, KernelTime>,
}

pub(super) struct Timer {
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    readable: wgpu::Buffer,
    nanoseconds_per_tick: f64,
    pending: Vec<(&'static str, u64)>,
    table: ProfileTable,
}

impl Timer {
    pub(super) fn new(device: &wgpu::Device, queue: &wgpu::Queue) -> Self {
        let buffer = |usage| {
            let size = u64::from(QUERIES) * 8;
            device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false })
        };
        Self {
            queries: device.create_query_set(&wgpu::QuerySetDescriptor {
                label: None,
                ty: wgpu::QueryType::Timestamp,
                count: QUERIES,
            }),
            resolved: buffer(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC),
            readable: buffer(wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ),
            nanoseconds_per_tick: f64::from(queue.get_timestamp_period()),
            pending: Vec::new(),
            table: ProfileTable::default(),
        }
    }

    /// The query set and the index of the first of two queries for the next dispatch.
    pub(super) fn next(&mut self, kernel: &'static str, work: u64) -> (wgpu::QuerySet, u32) {
        let at = 2 * self.pending.len() as u32;
        self.pending.push((kernel, work));
        (self.queries.clone(), at)
    }

    pub(super) fn is_full(&self) -> bool {
        2 * self.pending.len() as u32 >= QUERIES
    }

    pub(super) fn resolve(&self, encoder: &mut wgpu::CommandEncoder) {
        let count = 2 * self.pending.len() as u32;
        if count > 0 {
            encoder.resolve_query_set(&self.queries, 0..count, &self.resolved, 0);
            encoder.copy_buffer_to_buffer(&self.resolved, 0, &self.readable, 0, u64::from(count) * 8);
        }
    }

    /// Adds the times of the submit that has just finished.
    pub(super) fn collect(&mut self, device: &wgpu::Device) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let failed = |problem: String| Error::Device(format!("profile: {problem}"));
        self.readable.map_async(wgpu::MapMode::Read, .., |_| {});
        device.poll(wgpu::PollType::wait_indefinitely()).map_err(|error| failed(error.to_string()))?;
        {
            let view = self.readable.get_mapped_range(..).map_err(|error| failed(error.to_string()))?;
            let ticks: &[u64] = bytemuck::cast_slice(&view);
            for ((kernel, work), pair) in self.pending.drain(..).zip(ticks.chunks_exact(2)) {
                self.table.add(kernel, work, pair[1].saturating_sub(pair[0]) as f64 * self.nanoseconds_per_tick * 1e-9);
            }
        }
        self.readable.unmap();
        Ok(())
    }

    /// Adds one dispatch that was timed elsewhere.
    #[cfg(feature = "host")]
    pub(super) fn add(&mut self, kernel: &'static str, work: u64, seconds: f64) {
        self.table.add(kernel, work, seconds);
    }

    /// Forgets the times so far.
    pub(super) fn clear(&mut self) {
        self.table = ProfileTable::default();
    }

    pub(super) fn table(&self) -> ProfileTable {
        self.table.clone()
    }
}

impl ProfileTable {
    fn add(&mut self, kernel: &'static str, work: u64, seconds: f64) {
        let total = self.kernels.entry(kernel).or_default();
        total.dispatches += 1;
        total.work += work;
        total.seconds += seconds;
        total.longest = total.longest.max(seconds);
    }
}

impl fmt::Display for ProfileTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows: Vec<_> = self.kernels.iter().collect();
        rows.sort_by(|a, b| b.1.seconds.total_cmp(&a.1.seconds));
        let total: f64 = rows.iter().map(|row| row.1.seconds).sum();
        writeln!(f, "{:<28} {:>10} {:>10} {:>7} {:>10}", "kernel", "dispatches", "ms", "share", "GFLOP/s")?;
        for (name, time) in rows {
            let share = 100.0 * time.seconds / total.max(f64::MIN_POSITIVE);
            let rate = match time.work {
                0 => String::new(),
                work => format!("{:.1}", work as f64 * 1e-9 / time.seconds.max(f64::MIN_POSITIVE)),
            };
            writeln!(f, "{name:<28} {:>10} {:>10.2} {share:>6.1}% {rate:>10}", time.dispatches, time.seconds * 1e3)?;
        }
        write!(f, "{:<28} {:>10} {:>10.2}", "total", "", total * 1e3)
    }
}
