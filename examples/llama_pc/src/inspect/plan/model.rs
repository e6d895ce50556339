//! The input of the estimates: shapes of parameters and PC layers, and the sizes of a step.

use std::fmt;

use polytape::gpu::GRANULE;
use polytape::llama::{LlamaConfig, ParameterShape, names};
use polytape::{Precision, Role, Stacks};

use crate::config::{Config, OptimizerKind};
use crate::model::engine;
use crate::terminal::failure::Failure;

/// Bytes of a float32 buffer.
pub fn bytes(numel: usize) -> u64 {
    (4 * numel as u64).next_multiple_of(GRANULE)
}

/// A preconditioned matrix: `heads` blocks [rows, columns].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PcLayer {
    pub heads: usize,
    pub rows: usize,
    pub columns: usize,
}

impl PcLayer {
    /// The side of its Gram matrix.
    pub fn small(&self) -> usize {
        self.rows.min(self.columns)
    }

    /// Elements of the matrix.
    pub fn numel(&self) -> usize {
        self.heads * self.rows * self.columns
    }

    /// Elements of its Gram matrices.
    pub fn gram(&self) -> usize {
        self.heads * self.small() * self.small()
    }
}

/// The sizes of a configuration.
#[derive(Clone, Debug)]
pub struct Model {
    pub sizes: LlamaConfig,
    pub parameters: Vec<ParameterShape>,
    pub pc: Vec<PcLayer>,
    /// Degree of the PC polynomial in the Gram matrix.
    pub degree: usize,
    pub power_iterations: usize,
    pub learnable_gamma: bool,
    pub rule: &'static OptimizerKind,
    /// Bytes of the optimizer's state.
    pub optimizer_state: u64,
    /// Newton–Schulz steps of an optimizer that orthogonalizes.
    pub newton_schulz_steps: Option<usize>,
    /// Sequences in a micro-batch.
    pub batch: usize,
    pub seq_len: usize,
    pub micro_batches: usize,
    /// Leaves of the gradient sum, and how many of them one rank has.
    pub replicas: usize,
    pub leaves: usize,
    pub checkpoint_activations: bool,
    pub precision: Precision,
    /// How matrices are put together on the device.
    pub stacks: Stacks,
}

impl Model {
    /// Of a configuration whose vocabulary is resolved, on a device that puts matrices together like this.
    pub fn new(config: &Config, stacks: Stacks) -> Result<Self, Failure> {
        let sizes = engine::model(config);
        let parameters = sizes.parameters();
        let layer = |(stem, heads): (String, usize)| {
            let name = names::weight(&stem);
            let found = parameters.iter().find(|parameter| parameter.name == name);
            let shape = &found.expect("bug: a PC layer is a matrix of the model").shape;
            PcLayer { heads, rows: shape[0] / heads, columns: shape[1] }
        };
        let pc: Vec<PcLayer> = engine::pc_targets(config).into_iter().map(layer).collect();
        let settings = config.pc.as_ref().map(engine::pc).transpose()?;
        let (train, rule) = (&config.train, config.optimizer.rule());
        let learnable_gamma = settings.as_ref().is_some_and(|pc| pc.learnable_gamma);
        let optimizer = (rule.build)(&config.optimizer);
        let state = |role: Role, shape: &[usize]| -> u64 {
            optimizer.slots(role, shape).iter().map(|slot| bytes(slot.shape.iter().product())).sum()
        };
        let of_parameters = parameters.iter().map(|parameter| state(parameter.role, &parameter.shape));
        let of_gammas = pc.iter().filter(|_| learnable_gamma).map(|layer| state(Role::Vector, &[layer.heads]));
        let optimizer_state = of_parameters.chain(of_gammas).sum();
        Ok(Self {
            pc,
            degree: settings.as_ref().map_or(0, |pc| pc.coefficients.len() - 1),
            power_iterations: settings.as_ref().map_or(0, |pc| pc.power_iterations),
            learnable_gamma,
            rule,
            optimizer_state,
            newton_schulz_steps: rule.newton_schulz.then_some(config.optimizer.ns_steps),
            batch: train.batch_size,
            seq_len: config.data.seq_len,
            micro_batches: train.grad_accumulation,
            replicas: train.replicas,
            leaves: train.replicas,
            checkpoint_activations: train.checkpoint_activations,
            precision: train.precision,
            stacks,
            sizes,
            parameters,
        })
    }

    /// Tokens of a micro-batch.
    pub fn tokens(&self) -> usize {
        self.batch * self.seq_len
    }

    /// Whether a leaf has several micro-batches, whose gradients are added to those before.
    pub fn accumulates(&self) -> bool {
        self.micro_batches > self.replicas
    }

    /// Trainable parameters, including γ.
    pub fn trainable(&self) -> usize {
        let gammas: usize = if self.learnable_gamma { self.pc.iter().map(|layer| layer.heads).sum() } else { 0 };
        self.parameters.iter().map(ParameterShape::numel).sum::<usize>() + gammas
    }

    /// Trainable parameters without the embedding and the head.
    pub fn non_embedding(&self) -> usize {
        let tables = self.parameters.iter().filter(|parameter| matches!(parameter.role, Role::Embedding | Role::Head));
        self.trainable() - tables.map(ParameterShape::numel).sum::<usize>()
    }
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LlamaConfig { dim, layers, heads, kv_heads, intermediate_size, vocab, qk_norm, rope_scaling, .. } = self.sizes;
        write!(f, "{layers} layers of width {dim}, {heads} heads, ")?;
        if self.sizes.q_dim() != dim {
            write!(f, "each of width {}, ", self.sizes.head_dim())?;
        }
        if kv_heads != heads {
            write!(f, "{kv_heads} of keys and values, ")?;
        }
        if qk_norm {
            write!(f, "queries and keys normed, ")?;
        }
        if rope_scaling.is_some() {
            write!(f, "rotary frequencies stretched, ")?;
        }
        write!(f, "intermediate_size {intermediate_size}, vocabulary {vocab}; ")?;
        match self.pc.len() {
            0 => write!(f, "no PC layers; ")?,
            count => write!(f, "{count} PC layers of degree {}; ", 2 * self.degree + 1)?,
        }
        write!(f, "{}; ", self.rule.title)?;
        write!(f, "{} × {} sequences of {} a step", self.micro_batches, self.batch, self.seq_len)
    }
}
