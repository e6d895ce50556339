//! What a configuration needs, before it runs. `memory` and `flops` hold the formulas.

mod bindings;
mod flops;
mod limits;
mod memory;
mod model;
mod ranks;

use polytape::gpu::{DeviceType, KernelTier};
use polytape::{Gpu, Stacks};
use serde::Serialize;

use crate::config::Config;
use crate::model::flops as model_flops;
use crate::terminal::failure::Failure;
use crate::terminal::format::{binary, grouped};
pub use flops::StepFlops;
use limits::{Advice, Limits};
use memory::Moment;
use model::Model;
pub use ranks::Ask;
use ranks::Ranks;

/// The plan; what `--json` prints.
#[derive(Serialize)]
pub struct Report {
    /// Summary of the model and of a step.
    model: String,
    /// `train.precision`.
    precision: String,
    parameters: usize,
    /// Without the embedding and the head.
    non_embedding_parameters: usize,
    tokens_per_step: usize,
    /// Bytes at the peak of a step.
    memory: Moment,
    memory_bytes: u64,
    largest_buffer: LargestBuffer,
    /// Forward and backward of the model.
    flops_per_token: f64,
    flops_per_step: StepFlops,
    /// The PC layers' share of a step's FLOPs.
    pc_share: f64,
    /// Absent without an adapter.
    #[serde(skip_serializing_if = "Option::is_none")]
    adapter: Option<Adapter>,
    /// Bytes of device memory; absent where unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_limit: Option<u64>,
    /// Absent if the memory is unknown and no other limit is exceeded.
    #[serde(skip_serializing_if = "Option::is_none")]
    fits: Option<bool>,
    /// 0 if not even one sequence fits; absent if the memory is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    largest_batch_size: Option<usize>,
    /// Configurations that fit, if the plan does not.
    advice: Vec<Advice>,
    /// With `--ranks` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    ranks: Option<Ranks>,
}

#[derive(Serialize)]
struct LargestBuffer {
    name: String,
    bytes: u64,
}

#[derive(Serialize)]
struct Adapter {
    name: String,
    kernels: String,
    /// Absent on the host tier, which binds nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    binding_limit: Option<u64>,
    buffer_limit: u64,
    /// Absent where it cannot be bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    attention: Option<Attention>,
    /// Why it cannot run there: a binding beyond the limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    binding_problem: Option<String>,
    /// Why it cannot run there: a buffer beyond `buffer_limit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    buffer_problem: Option<String>,
}

/// How attention is bound.
#[derive(Serialize)]
struct Attention {
    /// Sequences at a time, of those of a micro-batch.
    sequences: usize,
    of_sequences: usize,
    /// Queries of each at a time.
    queries: usize,
    of_queries: usize,
    /// The most bytes of one binding.
    bytes: u64,
}

impl Adapter {
    fn new(gpu: &Gpu, model: &Model, limits: &Limits) -> Self {
        let binding_limit = limits.binding;
        let windows = binding_limit.and_then(|limit| bindings::attention(model, limit).ok());
        let attention = windows.map(|windows| Attention {
            sequences: windows.sequences,
            of_sequences: model.batch,
            queries: windows.queries,
            of_queries: model.seq_len,
            bytes: windows.bytes,
        });
        Self {
            name: gpu.adapter().name.clone(),
            kernels: gpu.kernels().to_string(),
            binding_limit,
            buffer_limit: gpu.adapter().limits.max_buffer_size,
            attention,
            binding_problem: binding_limit.and_then(|limit| bindings::problem(model, limit)),
            buffer_problem: limits.buffer_problem(model),
        }
    }
}

impl Attention {
    fn text(&self) -> String {
        let Self { sequences, of_sequences, queries, of_queries, bytes } = self;
        let part = if queries < of_queries {
            format!("{queries} of {of_queries} queries of a sequence at a time")
        } else if sequences < of_sequences {
            format!("{sequences} of {of_sequences} sequences at a time")
        } else {
            "whole".to_owned()
        };
        format!("bound {part}, {}", binary(*bytes))
    }
}

impl Report {
    /// Of a configuration whose vocabulary is resolved; `device_memory` is in bytes, if the user gives it.
    pub fn new(config: &Config, device_memory: Option<u64>, gpu: Option<&Gpu>, ranks: Option<Ask>) -> Result<Self, Failure> {
        let limits = Limits::new(device_memory, gpu);
        let model = &Model::new(config, stacks(device_memory, gpu))?;
        let memory = memory::peak(model);
        let (name, bytes) = memory::largest_buffer(model, limits.shared);
        let flops = StepFlops::new(model);
        let fits = limits.fit(model);
        Ok(Self {
            model: model.to_string(),
            precision: model.precision.to_string(),
            parameters: model.trainable(),
            non_embedding_parameters: model.non_embedding(),
            tokens_per_step: model.tokens() * model.micro_batches,
            memory,
            memory_bytes: memory.total(),
            largest_buffer: LargestBuffer { name, bytes },
            flops_per_token: model_flops::per_token(&model.sizes, model.seq_len),
            flops_per_step: flops,
            pc_share: flops.pc / flops.total(),
            adapter: gpu.map(|gpu| Adapter::new(gpu, model, &limits)),
            memory_limit: limits.memory,
            fits: (limits.memory.is_some() || !fits).then_some(fits),
            largest_batch_size: limits.memory.map(|_| limits.largest_batch(model).unwrap_or(0)),
            advice: limits.advice(model),
            ranks: ranks.map(|ask| Ranks::new(config, model, flops, ask)).transpose()?,
        })
    }

    /// As one JSON object.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("bug: the plan does not serialise") + "\n"
    }

    /// As human-readable text.
    pub fn text(&self) -> String {
        let (all, rest) = (grouped(self.parameters as u64), grouped(self.non_embedding_parameters as u64));
        let mut lines = vec![format!("model              {}", self.model)];
        lines.push(format!("precision          {}", self.products()));
        lines.push(format!("parameters         {all} ({rest} without embedding and head)"));
        lines.push(format!("memory             {} at its peak, the {}", binary(self.memory_bytes), self.memory.name));
        let Moment { parameters, gradients, optimizer, effective_weights, activations, workspace, .. } = self.memory;
        for (kind, bytes) in [
            ("parameters", parameters),
            ("gradients", gradients),
            ("optimizer", optimizer),
            ("effective weights", effective_weights),
            ("activations", activations),
            ("workspace", workspace),
        ] {
            lines.push(format!("  {kind:<18} {:>10}", binary(bytes)));
        }
        lines.push(format!(
            "largest buffer     {}, {}{}",
            binary(self.largest_buffer.bytes),
            self.largest_buffer.name,
            self.windows()
        ));
        if let Some(adapter) = &self.adapter {
            let attention = adapter.attention.as_ref().map(|attention| format!("attention          {}", attention.text()));
            lines.extend(attention);
            let problems = adapter.binding_problem.iter().chain(&adapter.buffer_problem);
            lines.extend(problems.map(|problem| format!("cannot run         {problem}")));
        }
        lines.extend(self.arithmetic());
        lines.extend(self.verdict());
        lines.extend(self.ranks.iter().flat_map(Ranks::lines));
        lines.join("\n") + "\n"
    }

    /// The precision of the model's matrix products.
    fn products(&self) -> String {
        let has_units = self.adapter.as_ref().map(|adapter| adapter.kernels == KernelTier::Matrix.to_string());
        let how = match (self.precision.as_str(), has_units) {
            ("f32", _) => "",
            (_, None) => " in linear layers and head",
            (_, Some(true)) => " in linear layers and head, on matrix units",
            (_, Some(false)) => " in linear layers and head, rounded without matrix units: slower than f32",
        };
        format!("{}{how}", self.precision)
    }

    fn windows(&self) -> String {
        let Some((adapter, limit)) = self.adapter.as_ref().and_then(|adapter| Some((adapter, adapter.binding_limit?))) else {
            return String::new();
        };
        let windows = self.largest_buffer.bytes.div_ceil(limit);
        let how = if windows == 1 { "whole".to_owned() } else { format!("in {windows} windows") };
        format!("; bound {how}, as {} binds {} at a time", adapter.name, binary(limit))
    }

    fn arithmetic(&self) -> [String; 2] {
        let StepFlops { model, recomputation, pc, optimizer } = self.flops_per_step;
        let total = self.flops_per_step.total();
        let share = |part: f64| format!("{:.1} %", 100.0 * part / total);
        let parts = [("model", model), ("recomputation", recomputation), ("PC layers", pc), ("optimizer", optimizer)];
        let parts: Vec<String> =
            parts.iter().filter(|(_, part)| *part > 0.0).map(|(name, part)| format!("{name} {}", share(*part))).collect();
        [
            format!("FLOPs per token    {} forward and backward", decimal(self.flops_per_token)),
            format!(
                "FLOPs per step     {} for {} tokens: {}",
                decimal(total),
                grouped(self.tokens_per_step as u64),
                parts.join(", ")
            ),
        ]
    }

    fn verdict(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let limit = match self.memory_limit {
            Some(bytes) => binary(bytes),
            None => "unknown; --memory BYTES sets it".to_owned(),
        };
        lines.push(format!("device memory      {limit}"));
        match self.fits {
            None => lines.push("fits               unknown".to_owned()),
            Some(true) => {
                let most = self.largest_batch_size.unwrap_or_default();
                lines.push(format!("fits               yes; the largest train.batch_size that fits is {most}"));
            }
            Some(false) if self.advice.is_empty() => {
                lines.push(
                    "fits               no, and no train.batch_size does, with or without train.checkpoint_activations"
                        .to_owned(),
                );
            }
            Some(false) => lines.push("fits               no; with the same tokens per step, this does:".to_owned()),
        }
        for Advice { checkpoint_activations, batch_size, grad_accumulation, bytes } in &self.advice {
            let recompute = if *checkpoint_activations { "train.checkpoint_activations=true " } else { "" };
            let bytes = binary(*bytes);
            lines.push(format!(
                "  --set {recompute}train.batch_size={batch_size} train.grad_accumulation={grad_accumulation}  ({bytes})"
            ));
        }
        lines
    }
}

/// How the device puts matrices together: without one, a GPU with this much memory.
fn stacks(device_memory: Option<u64>, gpu: Option<&Gpu>) -> Stacks {
    let stacks = gpu.map_or_else(Stacks::default, Stacks::of);
    device_memory.map_or(stacks, |bytes| stacks.with_memory(bytes))
}

/// Why a step of the configuration cannot run on the device; `None` where it can, or where its memory is not known.
pub fn problem(config: &Config, gpu: &Gpu) -> Result<Option<String>, Failure> {
    let model = Model::new(config, stacks(None, Some(gpu)))?;
    // An integrated GPU's memory is the system's.
    let shares = gpu.adapter().kind == DeviceType::IntegratedGpu;
    let limits = Limits::new(if shares { limits::available_memory() } else { None }, Some(gpu));
    if limits.fit(&model) {
        return Ok(None);
    }
    let binding = limits.binding.and_then(|limit| bindings::problem(&model, limit));
    let needs = || {
        format!(
            "needs {} of memory, where there is {}",
            binary(memory::peak(&model).total()),
            limits.memory.map_or_else(|| "too little".to_owned(), binary)
        )
    };
    Ok(Some(binding.or_else(|| limits.buffer_problem(&model)).unwrap_or_else(needs)))
}

/// FLOPs with a decimal prefix: `5.92 TFLOP`.
fn decimal(operations: f64) -> String {
    let prefixes = ["", "k", "M", "G", "T", "P", "E"];
    let (mut size, mut prefix) = (operations, 0);
    while size >= 999.5 && prefix + 1 < prefixes.len() {
        size /= 1000.0;
        prefix += 1;
    }
    format!("{size:.2} {}FLOP", prefixes[prefix])
}

#[cfg(test)]
mod tests;
