//! [`Ranks`]: what a trainer that is one of several ranks knows of the others, and when in a step it talks to them.
//!
//! Gradients travel to their owners, partial sums of the norm to everybody, and effective weights to everybody. Values travel in
//! buckets, in one order on all ranks: a thread reads and sends bucket after bucket while another receives, uploads and adds, so that
//! neither the device nor the network waits for the whole.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::connection::{Connection, Traffic, buckets};
use super::gradients::Sending;
use super::layout::{Item, Layout, bucket_size};
use super::tree::{Leaf, root};
use super::wire::Wire;
use super::{Exchange, check_size};
use crate::error::Result;
use crate::params::{Gradients, ParamId, Params, Role};
use crate::spectral::{Effective, Preconditioner};
use crate::tensor::Tensor;

/// How values travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExchangeOptions {
    /// Their format.
    pub wire: Wire,
    /// Values per bucket, which is what is read from the device, sent and uploaded at a time; `None` for a sixteenth of what a rank owns,
    /// within 64 Ki and 4 Mi. At most 128 Mi. Changes no result.
    pub bucket: Option<usize>,
    /// Send gradients during the last backward of a step, as they become final. Changes no result. Needs a loss that uses each parameter
    /// equally often in every micro-batch; [`StepHook::adjust`](crate::StepHook::adjust) then does not see what has been sent.
    pub overlap: bool,
}

impl Default for ExchangeOptions {
    fn default() -> Self {
        Self { wire: Wire::F32, bucket: None, overlap: true }
    }
}

pub(crate) struct Ranks {
    pub(super) connection: Arc<Connection>,
    /// What the model sees, with the ids of the complete set; a single zero in place of u, v and γ.
    pub(crate) weights: Params,
    /// The scalars of the PC layers behind this rank's part of it.
    pub(crate) scalars: Option<Effective>,
    /// How often something is added to each gradient in a micro-batch, once that is known.
    additions: Mutex<Option<Vec<u32>>>,
}

impl Ranks {
    /// Divides the complete parameters and PC layers between the ranks: returns this rank's own, too.
    pub(crate) fn divide(
        params: &Params,
        preconditioner: Option<&Preconditioner>,
        layout: Layout,
        exchange: Arc<dyn Exchange>,
        options: ExchangeOptions,
    ) -> Result<(Self, Params, Option<Preconditioner>)> {
        layout.check(exchange.ranks())?;
        let travels = layout.items.iter().filter(|item| item.visible && item.is_trainable());
        let bucket = bucket_size(travels.map(Item::numel).sum(), exchange.ranks(), options.bucket);
        let (mut owned, mut own) = (Params::new(params.gpu()), Vec::with_capacity(layout.items.len()));
        for item in &layout.items {
            let is_own = layout.owner(item, exchange.ranks()) == exchange.rank();
            own.push(if is_own { Some(add_own(&mut owned, item, params)?) } else { None });
        }
        let own_id = |id: ParamId| layout.items.iter().zip(&own).find(|(item, _)| item.param == id).and_then(|(_, own)| *own);
        let preconditioner = preconditioner.map(|preconditioner| preconditioner.restricted(own_id));
        let weights = visible(params, &layout)?;
        let connection = Connection {
            gpu: params.gpu().clone(),
            buckets: buckets(&layout, exchange.ranks(), bucket),
            wire: options.wire,
            overlap: options.overlap,
            own,
            layout,
            exchange,
            traffic: Mutex::default(),
        };
        let ranks = Self { connection: Arc::new(connection), weights, scalars: None, additions: Mutex::default() };
        Ok((ranks, owned, preconditioner))
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(crate) fn exchange(&self) -> &dyn Exchange {
        self.connection.exchange.as_ref()
    }

    fn known_additions(&self) -> MutexGuard<'_, Option<Vec<u32>>> {
        self.additions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often something is added to each gradient in that many micro-batches: after that it is final, and can be sent. `None` where
    /// that is not known yet, or not wanted.
    pub(crate) fn final_additions(&self, micro_batches: usize) -> Option<Vec<u32>> {
        let known = self.known_additions();
        let additions = known.as_ref().filter(|_| self.connection.overlap)?;
        Some(additions.iter().map(|count| count * micro_batches as u32).collect())
    }

    /// A thread that sends gradients as they come, added to those of `earlier` leaves, the nearest last.
    pub(crate) fn begin_sending(&self, earlier: Vec<Gradients>) -> Result<Sending> {
        Ok(Sending::start(&self.connection, earlier)?.while_computing(&self.connection))
    }

    /// Learns from a leaf's gradients how often something is added to each.
    pub(crate) fn learn(&self, gradients: &Gradients, micro_batches: usize) {
        if micro_batches > 0 {
            let additions = gradients.additions().iter().map(|count| count / micro_batches as u32).collect();
            *self.known_additions() = Some(additions);
        }
    }

    /// Replaces the sums of this rank's micro-batches by those of all: the loss on every rank, each gradient at its owner, under the
    /// id that it has there. `sending` has begun to send them, if it is there.
    pub(crate) fn sum(&self, leaf: Leaf, sending: Option<Sending>) -> Result<Leaf> {
        let started = Instant::now();
        let sending = sending.map_or_else(|| Sending::start(&self.connection, Vec::new()), Ok)?;
        let (gradients, sent, received) = sending.finish(&self.connection, leaf.gradients)?;
        let loss = self.sum_losses(&leaf.loss)?;
        let losses = 4 * (self.connection.ranks() as u64 - 1);
        self.connection.count(sent + losses, received + losses, started);
        Ok(Leaf { loss, gradients })
    }

    fn sum_losses(&self, own: &Tensor) -> Result<Tensor> {
        let losses = self.exchange().all_gather(bytemuck::cast_slice(&own.to_vec()?).to_vec())?;
        let mut tensors = Vec::with_capacity(losses.len());
        for (rank, message) in losses.iter().enumerate() {
            check_size(rank, message.len(), 4)?;
            tensors.push(Tensor::from_bytes(&self.connection.gpu, message, &[1])?);
        }
        Ok(root(tensors, Tensor::accumulate)?.expect("bug: there is a rank"))
    }

    /// Sends this rank's effective weights to all, and takes over theirs.
    pub(crate) fn publish(&mut self, params: &Params, preconditioner: Option<&Preconditioner>) -> Result<()> {
        let started = Instant::now();
        let effective = preconditioner.map(|preconditioner| preconditioner.effective(params)).transpose()?;
        let seen = effective.as_ref().map_or(params, |effective| &effective.params);
        let weights = std::mem::replace(&mut self.weights, Params::new(params.gpu()));
        let (weights, sent, received) = self.connection.swap_weights(seen, weights)?;
        self.weights = weights;
        // The scalars alone: a second handle on a weight would have the optimizer copy it.
        self.scalars = effective.map(|mut effective| {
            effective.params = Params::new(params.gpu());
            effective
        });
        self.connection.count(sent, received, started);
        Ok(())
    }

    pub(crate) fn traffic(&self) -> Traffic {
        *self.connection.traffic()
    }

    /// Number of trainable values in the complete set.
    pub(crate) fn numel(&self) -> usize {
        self.connection.layout.items.iter().filter(|item| item.is_trainable()).map(Item::numel).sum()
    }

    /// The name of a parameter of the complete set.
    pub(crate) fn name(&self, id: ParamId) -> Option<String> {
        self.connection.layout.items.iter().find(|item| item.param == id).map(|item| item.name.clone())
    }

    /// The parameter that a parameter of this name at its owner is, and which of its rows unless it is all of them.
    pub(crate) fn origin(&self, own_name: &str) -> Option<(&str, Option<Range<usize>>)> {
        let item = self.connection.layout.items.iter().find(|item| item.own_name() == own_name)?;
        Some((item.name.as_str(), (!item.is_whole()).then(|| item.rows.clone())))
    }
}

/// Adds an item to its owner's parameters.
fn add_own(owned: &mut Params, item: &Item, params: &Params) -> Result<ParamId> {
    let whole = &params.get(item.param)?.tensor;
    let tensor =
        if item.is_whole() { whole.clone() } else { whole.copy_of(item.rows.start * item.columns(), &item.own_shape())? };
    owned.add(item.own_name(), item.role, tensor)
}

/// The parameters that the model sees, under their ids.
fn visible(params: &Params, layout: &Layout) -> Result<Params> {
    let mut weights = Params::new(params.gpu());
    for (id, param) in params.iter() {
        let visible = layout.items.iter().any(|item| item.param == id && item.visible);
        let (role, tensor) = match visible {
            true => (param.role, param.tensor.clone()),
            false => (Role::State, Tensor::zeros(params.gpu(), &[1])?),
        };
        weights.add(param.name.clone(), role, tensor)?;
    }
    Ok(weights)
}
