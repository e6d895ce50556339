//! Whether a plan fits, the largest micro-batch that does, and what would fit instead.

use polytape::Gpu;
use serde::Serialize;

use super::model::Model;
use super::{bindings, memory};
use crate::terminal::format::binary;

/// What a plan must fit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Bytes of device memory; `None` where unknown.
    pub memory: Option<u64>,
    /// Bytes of the largest buffer; `None` without an adapter.
    pub buffer: Option<u64>,
    /// Bytes that a kernel binds at a time; `None` without an adapter.
    pub binding: Option<u64>,
    /// Bytes up to which activations of one shape share a buffer, on the host tier, too; `None` without an adapter.
    pub shared: Option<u64>,
}

/// A change that makes the plan fit without changing the tokens of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Advice {
    pub checkpoint_activations: bool,
    pub batch_size: usize,
    pub grad_accumulation: usize,
    /// Bytes that it then needs.
    pub bytes: u64,
}

/// The largest micro-batch that a configuration accepts.
const MOST_SEQUENCES: usize = 1 << 20;

impl Limits {
    /// Device memory is what the user gives; else a software adapter has the system's, and a GPU what a run may use of what it reports.
    pub fn new(given: Option<u64>, gpu: Option<&Gpu>) -> Self {
        let software = gpu.is_some_and(|gpu| gpu.adapter().is_software());
        Self {
            memory: given.or_else(|| if software { available_memory() } else { gpu?.adapter().memory_budget() }),
            buffer: gpu.map(|gpu| gpu.adapter().limits.max_buffer_size),
            binding: gpu.and_then(bindings::limit),
            shared: gpu.map(Gpu::binding_limit),
        }
    }

    /// The buffer that a step would ask for in vain.
    pub fn buffer_problem(&self, model: &Model) -> Option<String> {
        let (name, bytes) = memory::largest_buffer(model, self.shared);
        let limit = self.buffer.filter(|limit| bytes > *limit)?;
        Some(format!("needs a buffer of {} for {name}, where the adapter has {} at most", binary(bytes), binary(limit)))
    }

    /// Whether the plan stays within what is known.
    pub fn fit(&self, model: &Model) -> bool {
        let has_memory = self.memory.is_none_or(|limit| memory::peak(model).total() <= limit);
        let is_bound = self.binding.is_none_or(|limit| bindings::problem(model, limit).is_none());
        has_memory && self.buffer_problem(model).is_none() && is_bound
    }

    /// The largest micro-batch that fits; `None` if not even one sequence does.
    pub fn largest_batch(&self, model: &Model) -> Option<usize> {
        let fits = |batch: usize| self.fit(&Model { batch, ..model.clone() });
        if !fits(1) {
            return None;
        }
        // Memory grows with the batch: between one that fits and one that does not lies the answer.
        let (mut fitting, mut failing) = (1, MOST_SEQUENCES + 1);
        while failing - fitting > 1 {
            // Doubling first keeps the sizes near those that are plausible.
            let middle = (2 * fitting).min(fitting + (failing - fitting) / 2);
            if fits(middle) {
                fitting = middle;
            } else {
                failing = middle;
            }
        }
        Some(fitting)
    }

    /// What would fit, if the plan does not: as large a micro-batch as divides the step's sequences, with and without recomputed
    /// activations.
    pub fn advice(&self, model: &Model) -> Vec<Advice> {
        if self.fit(model) {
            return Vec::new();
        }
        let sequences = model.batch * model.micro_batches;
        let advise = |checkpoint_activations: bool| {
            let mut model = Model { checkpoint_activations, ..model.clone() };
            // More micro-batches need a little more memory: gradients are kept from one to the next.
            model.micro_batches = 2 * model.replicas;
            let most = self.largest_batch(&model)?.min(sequences);
            model.batch = (1..=most).rev().find(|&batch| sequences.is_multiple_of(batch * model.replicas))?;
            model.micro_batches = sequences / model.batch;
            let bytes = memory::peak(&model).total();
            let (batch_size, grad_accumulation) = (model.batch, model.micro_batches);
            self.fit(&model).then_some(Advice { checkpoint_activations, batch_size, grad_accumulation, bytes })
        };
        let kept = if model.checkpoint_activations { None } else { advise(false) };
        let recomputed = advise(true).filter(|advice| kept.is_none_or(|kept| advice.batch_size > kept.batch_size));
        kept.into_iter().chain(recomputed).collect()
    }
}

/// Memory that programs may still take, where the system tells.
pub fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kibibytes| kibibytes << 10)
}
