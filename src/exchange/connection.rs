//! [`Connection`]: the other ranks, who owns what, and how messages are grouped. Immutable, so threads share it.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Exchange;
use super::layout::{Item, Layout, rows_of_part};
use super::wire::Wire;
use crate::gpu::{Gpu, Slice};
use crate::params::ParamId;
use crate::tensor::Tensor;

/// What a rank has exchanged so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Traffic {
    /// Bytes sent to all others together.
    pub sent: u64,
    /// Bytes received.
    pub received: u64,
    /// Time in which the rank did nothing but exchange.
    pub time: Duration,
}

/// Rows of an item.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) item: usize,
    /// Of the whole parameter.
    pub(super) rows: Range<usize>,
}

/// Parts of one owner that travel together.
#[derive(Debug)]
pub(super) struct Bucket {
    pub(super) owner: usize,
    pub(super) values: usize,
    pub(super) parts: Vec<Part>,
}

/// What connects a rank with the others.
pub(crate) struct Connection {
    pub(super) exchange: Arc<dyn Exchange>,
    pub(super) gpu: Gpu,
    pub(super) wire: Wire,
    pub(super) overlap: bool,
    pub(super) layout: Layout,
    /// In the order of the parameters, on all ranks the same.
    pub(super) buckets: Vec<Bucket>,
    /// The id of each item at this rank, where it is the owner.
    pub(super) own: Vec<Option<ParamId>>,
    pub(super) traffic: Mutex<Traffic>,
}

impl Connection {
    pub(super) fn rank(&self) -> usize {
        self.exchange.rank()
    }

    pub(super) fn ranks(&self) -> usize {
        self.exchange.ranks()
    }

    pub(super) fn others(&self) -> impl Iterator<Item = usize> + use<> {
        self.exchange.others()
    }

    pub(super) fn owner(&self, item: &Item) -> usize {
        self.layout.owner(item, self.ranks())
    }

    pub(super) fn item(&self, part: &Part) -> &Item {
        &self.layout.items[part.item]
    }

    /// The id of an item that this rank owns.
    pub(super) fn own_id(&self, item: usize) -> ParamId {
        self.own[item].expect("bug: another rank owns it")
    }

    /// A part within the whole parameter.
    pub(super) fn slice_of<'t>(&self, part: &Part, whole: &'t Tensor) -> Slice<'t> {
        let columns = self.item(part).columns();
        whole.range(part.rows.start * columns, part.rows.len() * columns)
    }

    pub(super) fn shape_of(&self, part: &Part) -> Vec<usize> {
        [&[part.rows.len()], &self.item(part).shape[1..]].concat()
    }

    /// Values of the item before a part of it.
    pub(super) fn first_of(&self, part: &Part) -> usize {
        let item = self.item(part);
        (part.rows.start - item.rows.start) * item.columns()
    }

    pub(crate) fn traffic(&self) -> MutexGuard<'_, Traffic> {
        self.traffic.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn count(&self, sent: u64, received: u64, started: Instant) {
        let mut traffic = self.traffic();
        traffic.sent += sent;
        traffic.received += received;
        traffic.time += started.elapsed();
    }
}

/// Everything that travels, in one order for all ranks: that of the parameters, in which the owners take turns.
pub(super) fn buckets(layout: &Layout, ranks: usize, most: usize) -> Vec<Bucket> {
    let mut open: Vec<Option<Bucket>> = (0..ranks).map(|_| None).collect();
    let mut done = Vec::new();
    for (at, item) in layout.items.iter().enumerate().filter(|(_, item)| item.visible && item.is_trainable()) {
        let owner = layout.owner(item, ranks);
        let rows = rows_of_part(most, item.columns());
        for first in item.rows.clone().step_by(rows) {
            let part = Part { item: at, rows: first..item.rows.end.min(first + rows) };
            let values = part.rows.len() * item.columns();
            if let Some(full) = open[owner].take_if(|bucket| bucket.values + values > most) {
                done.push(full);
            }
            let bucket = open[owner].get_or_insert_with(|| Bucket { owner, values: 0, parts: Vec::new() });
            bucket.values += values;
            bucket.parts.push(part);
        }
    }
    done.extend(open.into_iter().flatten());
    done.sort_by_key(|bucket| (bucket.parts[0].item, bucket.parts[0].rows.start));
    done
}
