//! Device memory of a step: plain formulas for the buffers that are live at each of its phases.
//!
//! T is the tokens of a micro-batch, d the width, q that of the queries, k that of keys and values, h that of the feed-forward
//! block, V the vocabulary. A block keeps for its backward, per token: its input, the two norms' outputs and the stream after
//! attention (4d), q and the attention's output (2q), k and v (2k), gate, up and their product (3h), and a root per norm and a
//! log-sum-exp per head (2 + heads); with norms of the heads also q and k before them (q + k), and their roots (heads + kv_heads).
//! All else is workspace: what only exists while one operation runs.

use polytape::llama::names;
use polytape::optim::muon_stack;
use polytape::spectral::pc_stack;
use polytape::{Role, logit_rows};
use serde::Serialize;

use super::model::{Model, PcLayer, bytes};

/// Live bytes in one phase of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Moment {
    /// The phase.
    pub name: &'static str,
    /// Parameters with u, v and γ, and the table of rotary angles.
    pub parameters: u64,
    /// The optimizer's moments.
    pub optimizer: u64,
    /// What the model computes with in place of preconditioned matrices.
    pub effective_weights: u64,
    pub gradients: u64,
    /// What the backward needs of the forward.
    pub activations: u64,
    /// What one operation needs while it runs.
    pub workspace: u64,
}

impl Moment {
    /// All together.
    pub fn total(&self) -> u64 {
        self.parameters + self.optimizer + self.effective_weights + self.gradients + self.activations + self.workspace
    }
}

/// The moment of a step at which most memory is in use.
pub fn peak(model: &Model) -> Moment {
    Estimate::new(model).moments().into_iter().max_by_key(Moment::total).expect("bug: a step has moments")
}

/// [`peak`] on one of several ranks, which has these bytes of parameters and of moments alone.
pub fn peak_of_rank(model: &Model, ranks: usize, parameters: u64, optimizer: u64) -> Moment {
    let leaves = model.replicas / ranks;
    let model = &Model { leaves, ..model.clone() };
    let mut estimate = Estimate::new(model);
    let rotary = bytes(model.sizes.max_seq_len * model.sizes.head_dim());
    let seen = model.parameters.iter().map(|parameter| bytes(parameter.numel())).sum();
    // γ is not among the gradients of the weights that the model sees.
    estimate.gradients = seen;
    estimate.base = Moment { parameters: parameters + rotary, optimizer, effective_weights: seen, ..estimate.base };
    // Updates and pull-backs are those of what a rank owns: never the peak.
    let moments = estimate.of_model();
    moments.into_iter().max_by_key(Moment::total).expect("bug: a step has moments")
}

/// The largest single buffer of a step: its name and its bytes. Gate and up share one, as q, k and v of one width do, where that
/// takes no more than `shared` bytes; k and v that are narrower take no more than q does.
pub fn largest_buffer(model: &Model, shared: Option<u64>) -> (String, u64) {
    let tokens = model.tokens();
    let sizes = &model.sizes;
    let parameters = model.parameters.iter().map(|parameter| (parameter.name.clone(), bytes(parameter.numel())));
    let logits = ("logits of the cross-entropy".to_owned(), bytes(logits(model)));
    let stream = ("an activation [tokens, dim]".to_owned(), bytes(tokens * sizes.dim));
    let activations = |count: u64, shape: &str, columns: usize| {
        let one = bytes(tokens * columns);
        let together = count > 1 && shared.is_none_or(|most| count * one <= most);
        if together { (format!("{count} activations {shape}"), count * one) } else { (format!("an activation {shape}"), one) }
    };
    let inner = activations(2, "[tokens, intermediate_size]", sizes.intermediate_size);
    let queries = activations(if sizes.kv_heads == sizes.heads { 3 } else { 1 }, "[tokens, heads·head_dim]", sizes.q_dim());
    let of_pc = pc_stacks(model).map(|(layer, count)| count as u64 * bytes(layer.numel()));
    let of_optimizer = updates(model).into_iter().map(|update| update.bytes);
    let stack = ("matrices of one shape, one after the other".to_owned(), of_pc.chain(of_optimizer).max().unwrap_or(0));
    // Of several as large, the first.
    parameters
        .chain([logits, stream, inner, queries, stack])
        .rev()
        .max_by_key(|(_, bytes)| *bytes)
        .expect("bug: there are buffers")
}

/// Elements of the logits that exist at a time.
fn logits(model: &Model) -> usize {
    logit_rows(model.tokens(), model.sizes.vocab) * model.sizes.vocab
}

/// The shapes of PC layers, each with the most that run together.
fn pc_stacks(model: &Model) -> impl Iterator<Item = (PcLayer, usize)> {
    let most = |layer: PcLayer| pc_stack(model.stacks, [layer.heads, layer.rows, layer.columns]);
    let alike = |layer: PcLayer| model.pc.iter().filter(|other| **other == layer).count();
    model.pc.iter().map(move |layer| (*layer, most(*layer).min(alike(*layer))))
}

/// Parameters that are updated together.
struct Update {
    /// Their bytes.
    bytes: u64,
    /// What the rule needs beside them: for Muon X twice, its Gram matrix and the polynomial's value.
    workspace: u64,
}

impl Update {
    fn of_muon(shape: [usize; 2], count: usize) -> Self {
        let [rows, columns] = shape;
        let (small, bytes_of_all) = (rows.min(columns), count as u64 * bytes(rows * columns));
        Self { bytes: bytes_of_all, workspace: bytes_of_all + 2 * count as u64 * bytes(small * small) }
    }
}

/// The optimizer's updates in its order: parameter by parameter, but Muon's matrices of one shape once there are as many as run together.
fn updates(model: &Model) -> Vec<Update> {
    let mut updates = Vec::new();
    let mut waiting: Vec<([usize; 2], usize)> = Vec::new();
    for parameter in &model.parameters {
        if model.newton_schulz_steps.is_none() || parameter.role != Role::Matrix {
            updates.push(Update { bytes: bytes(parameter.numel()), workspace: 0 });
            continue;
        }
        let shape = [parameter.shape[0], parameter.shape[1]];
        let at = waiting.iter().position(|(known, _)| *known == shape).unwrap_or_else(|| {
            waiting.push((shape, 0));
            waiting.len() - 1
        });
        waiting[at].1 += 1;
        if waiting[at].1 == muon_stack(model.stacks, shape) {
            updates.push(Update::of_muon(shape, std::mem::take(&mut waiting[at].1)));
        }
    }
    updates.extend(waiting.into_iter().map(|(shape, count)| Update::of_muon(shape, count)));
    updates
}

struct Estimate<'a> {
    model: &'a Model,
    /// What is there throughout; no gradients, activations or workspace.
    base: Moment,
    /// Of all trainable parameters.
    gradients: u64,
    /// Of the embedding, or of the head.
    table: u64,
    /// One residual stream.
    stream: u64,
    /// What one block keeps.
    block: u64,
    /// Gradients of one block's matrices and norms.
    block_gradients: u64,
}

impl<'a> Estimate<'a> {
    fn new(model: &'a Model) -> Self {
        let sizes = &model.sizes;
        let trainable: u64 = model.parameters.iter().map(|parameter| bytes(parameter.numel())).sum();
        let gammas = if model.learnable_gamma { model.pc.iter().map(|layer| bytes(layer.heads)).sum() } else { 0 };
        let vectors: u64 =
            model.pc.iter().map(|layer| bytes(layer.heads * layer.rows) + bytes(layer.heads * layer.columns)).sum();
        let rotary = bytes(sizes.max_seq_len * sizes.head_dim());
        let base = Moment {
            name: "",
            parameters: trainable + gammas + vectors + rotary,
            optimizer: model.optimizer_state,
            effective_weights: model.pc.iter().map(|layer| bytes(layer.numel())).sum(),
            gradients: 0,
            activations: 0,
            workspace: 2 * (model.micro_batches * model.leaves / model.replicas) as u64 * bytes(model.tokens()),
        };
        let (tokens, dim) = (model.tokens(), sizes.dim);
        let (q_dim, kv_dim, normed) = (sizes.q_dim(), sizes.kv_dim(), u64::from(sizes.qk_norm));
        let kept = [
            (4, dim),
            (2 + normed, q_dim),
            (2 + normed, kv_dim),
            (3, sizes.intermediate_size),
            (2, 1),
            (1 + normed, sizes.heads),
            (normed, sizes.kv_heads),
        ];
        let is_first = |name: &str| names::layer_and_part(name).is_some_and(|(layer, _)| layer == 0);
        let block_gradients = model.parameters.iter().filter(|parameter| is_first(&parameter.name));
        Self {
            model,
            base,
            gradients: trainable + gammas,
            table: bytes(sizes.vocab * dim),
            stream: bytes(tokens * dim),
            block: kept.iter().map(|&(count, width)| count * bytes(tokens * width)).sum(),
            block_gradients: block_gradients.map(|parameter| bytes(parameter.numel())).sum(),
        }
    }

    fn moments(&self) -> Vec<Moment> {
        let mut moments = self.of_model();
        moments.push(self.optimizer());
        moments.extend(self.preconditioner());
        moments
    }

    /// Those of the micro-batches.
    fn of_model(&self) -> Vec<Moment> {
        let mut moments = vec![self.cross_entropy(), self.cross_entropy_backward(), self.embedding_backward()];
        moments.extend([self.model.sizes.layers - 1, 0].map(|block| self.block_backward(block)));
        // Sums of earlier leaves: one waits on each level of the tree.
        let waiting = u64::from(self.model.leaves.ilog2()) * self.gradients;
        moments.iter_mut().for_each(|moment| moment.gradients += waiting);
        moments
    }

    /// A moment with these bytes added to what is there throughout.
    fn at(&self, name: &'static str, gradients: u64, activations: u64, workspace: u64) -> Moment {
        Moment { name, gradients, activations, workspace: self.base.workspace + workspace, ..self.base }
    }

    /// Activations once the blocks up to `block` have run, with the last norm's input and roots.
    fn kept(&self, blocks: usize) -> u64 {
        let per_block = if self.model.checkpoint_activations { self.stream } else { self.block };
        blocks as u64 * per_block + self.stream + bytes(self.model.tokens())
    }

    /// Gradients that earlier micro-batches of a leaf have left.
    fn earlier(&self) -> u64 {
        if self.model.accumulates() { self.gradients } else { 0 }
    }

    /// The end of a forward: all activations, the head's input, a chunk of logits, and the gradients of both.
    fn cross_entropy(&self) -> Moment {
        let workspace = 2 * self.stream + self.table + bytes(logits(self.model)) + bytes(self.model.tokens());
        self.at("end of the forward", self.earlier(), self.kept(self.model.sizes.layers), workspace)
    }

    /// The head's gradients are scaled into copies, one after the other.
    fn cross_entropy_backward(&self) -> Moment {
        let workspace = self.table + self.stream + self.table.max(self.stream);
        self.at("beginning of the backward", self.earlier(), self.kept(self.model.sizes.layers), workspace)
    }

    /// Inside the backward of a block, at SwiGLU: its gradients go from one [T, h] to two while gate and up are still there.
    fn block_backward(&self, block: usize) -> Moment {
        let (sizes, tokens) = (&self.model.sizes, self.model.tokens());
        let mut workspace = self.stream + 2 * bytes(tokens * sizes.intermediate_size);
        if self.model.checkpoint_activations {
            // The block again, with its output; its input is the one that was kept.
            workspace += self.block;
        }
        let after = (sizes.layers - 1 - block) as u64 * self.block_gradients;
        let head = if sizes.tied && !self.model.accumulates() { self.table } else { self.table + bytes(sizes.dim) };
        let down = bytes(sizes.dim * sizes.intermediate_size);
        let gradients = if self.model.accumulates() { self.gradients } else { head + after + down };
        workspace += if self.model.accumulates() { down } else { 0 };
        self.at("backward of a block", gradients, self.kept(block + 1) - self.stream, workspace)
    }

    /// The end of a backward: the embedding's gradient is made whole and then added.
    fn embedding_backward(&self) -> Moment {
        let is_added = self.model.accumulates() || self.model.sizes.tied;
        self.at("backward of the embedding", self.gradients, 0, self.stream + if is_added { self.table } else { 0 })
    }

    /// Gradients go as their updates are done.
    fn optimizer(&self) -> Moment {
        let (mut left, mut most) = (self.gradients, self.gradients);
        for update in updates(self.model) {
            most = most.max(left + update.workspace);
            left -= update.bytes;
        }
        let mut moment = self.at("optimizer", self.gradients, 0, most - self.gradients);
        moment.effective_weights = 0;
        moment
    }

    /// The backward through the polynomial of each stack of PC layers: two matrices of its size for each, and the powers of its Gram matrix
    /// with what flows back to them.
    fn preconditioner(&self) -> Option<Moment> {
        // X, K and the levels; then R, S and what makes D of them, most where there are Horner's steps.
        let (kept, derivative) = match self.model.degree {
            degree @ (0 | 1) => (degree, 2),
            degree @ (2 | 4) => (degree / 2 + 1, 4),
            3 => (3, 5),
            degree => (degree - 1, 5),
        };
        let workspace = |(layer, count): (PcLayer, usize)| {
            let (matrix, gram) = (bytes(layer.numel()), bytes(layer.gram()));
            count as u64 * (matrix + (kept + derivative) as u64 * gram).max(2 * matrix)
        };
        let most = pc_stacks(self.model).map(workspace).max()?;
        Some(self.at("backward of the PC layers", self.gradients, 0, most))
    }
}
