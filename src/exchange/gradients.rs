//! Gradients on their way to their owners, bucket by bucket: a thread sends those of others, during the backward if they are watched, while
//! another receives, uploads and adds what this rank owns. No order of arrival changes a sum.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use super::connection::{Bucket, Connection, Part};
use super::tree::root;
use super::{Message, check_size};
use crate::error::{Error, Result};
use crate::gpu::Slice;
use crate::params::{Gradients, ParamId};
use crate::tensor::Tensor;

/// A bucket's parameters at one rank: `None` where no gradient flowed.
type Filled = (usize, Vec<Option<Tensor>>);

/// While it lives, the exchange knows that this rank computes.
struct Computing(Arc<Connection>);

impl Computing {
    fn new(connection: &Arc<Connection>) -> Self {
        connection.exchange.set_computing(true);
        Self(connection.clone())
    }
}

impl Drop for Computing {
    fn drop(&mut self) {
        self.0.exchange.set_computing(false);
    }
}

impl fmt::Debug for Computing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Computing")
    }
}

/// A thread that sends gradients as they become final.
#[derive(Debug)]
pub(crate) struct Sending {
    computing: Option<Computing>,
    sender: Sender<(ParamId, Tensor)>,
    /// What is left for this rank to add up, as it becomes final.
    own: Receiver<Filled>,
    /// Returns the bytes sent.
    thread: JoinHandle<Result<u64>>,
}

impl Sending {
    /// Of gradients that are added to those of `earlier` leaves, the nearest last.
    pub(crate) fn start(connection: &Arc<Connection>, earlier: Vec<Gradients>) -> Result<Self> {
        let (sender, gradients) = channel();
        let (to_own, own) = channel();
        let connection = connection.clone();
        let run = move || Assembly::new(&connection, earlier, to_own).run(&gradients);
        let thread = std::thread::Builder::new().name("gradients".into()).spawn(run);
        let thread = thread.map_err(|error| Error::Value(format!("cannot start a thread for gradients: {error}")))?;
        Ok(Self { computing: None, sender, own, thread })
    }

    /// The same while this rank computes on, until [`Sending::finish`].
    pub(super) fn while_computing(self, connection: &Arc<Connection>) -> Self {
        Self { computing: Some(Computing::new(connection)), ..self }
    }

    /// Where final gradients go.
    pub(crate) fn sender(&self) -> Sender<(ParamId, Tensor)> {
        self.sender.clone()
    }

    /// The sums of all ranks over what this one owns, once `rest` is on its way, too; the bytes sent and received.
    pub(super) fn finish(self, connection: &Connection, rest: Gradients) -> Result<(Gradients, u64, u64)> {
        drop(self.computing);
        for gradient in rest.into_present() {
            // A closed channel: the thread has failed, and says why below.
            let _ = self.sender.send(gradient);
        }
        drop(self.sender);
        let received = connection.receive_gradients(self.own);
        let received = match received {
            Err(error) if !self.thread.is_finished() => return Err(error),
            received => received,
        };
        // A rank that cannot send hears nothing more, either: why it cannot comes first.
        let sent = self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let (gradients, received) = received?;
        Ok((gradients, sent, received))
    }
}

/// Buckets that fill up as gradients come.
struct Assembly<'a> {
    connection: &'a Connection,
    earlier: Vec<Gradients>,
    /// By parameter.
    present: BTreeMap<ParamId, Tensor>,
    /// Parameters of each bucket that have not come yet.
    missing: Vec<usize>,
    /// Buckets that have been dealt with; from the last to the first, as backward goes.
    done: usize,
    own: Sender<Filled>,
    /// Bytes.
    sent: u64,
}

impl<'a> Assembly<'a> {
    fn new(connection: &'a Connection, earlier: Vec<Gradients>, own: Sender<Filled>) -> Self {
        let missing = connection.buckets.iter().map(|bucket| bucket.parts.len()).collect();
        Self { connection, earlier, present: BTreeMap::new(), missing, done: 0, own, sent: 0 }
    }

    fn run(mut self, gradients: &Receiver<(ParamId, Tensor)>) -> Result<u64> {
        for (id, gradient) in gradients {
            let sum = self.joined(id, Some(gradient))?;
            self.insert(id, sum)?;
        }
        // Where nothing flowed in the last leaf, or in none.
        let ids: Vec<ParamId> = self.connection.layout.items.iter().map(|item| item.param).collect();
        for id in ids.into_iter().filter(|id| !self.present.contains_key(id)).collect::<Vec<_>>() {
            let sum = self.joined(id, None)?;
            if sum.is_some() {
                self.insert(id, sum)?;
            }
        }
        while self.done < self.missing.len() {
            self.next()?;
        }
        Ok(self.sent)
    }

    /// The sum of all leaves of this rank.
    fn joined(&mut self, id: ParamId, last: Option<Tensor>) -> Result<Option<Tensor>> {
        let lefts = self.earlier.iter_mut().rev().map(|gradients| gradients.take(id));
        lefts.collect::<Vec<_>>().into_iter().try_fold(last, |sum, left| add(left, sum))
    }

    fn insert(&mut self, id: ParamId, sum: Option<Tensor>) -> Result<()> {
        let Some(sum) = sum else { return Ok(()) };
        for (bucket, missing) in self.connection.buckets.iter().zip(&mut self.missing) {
            *missing -= bucket.parts.iter().filter(|part| self.connection.item(part).param == id).count();
        }
        self.present.insert(id, sum);
        while self.done < self.missing.len() && self.missing[self.missing.len() - 1 - self.done] == 0 {
            self.next()?;
        }
        Ok(())
    }

    /// Sends the next bucket, or keeps it as this rank's own.
    fn next(&mut self) -> Result<()> {
        let at = self.missing.len() - 1 - self.done;
        let bucket = &self.connection.buckets[at];
        self.done += 1;
        let tensors: Vec<Option<Tensor>> =
            bucket.parts.iter().map(|part| self.present.get(&self.connection.item(part).param).cloned()).collect();
        // A gradient is needed until the last of its parts is gone.
        for part in &bucket.parts {
            let id = self.connection.item(part).param;
            let rest = &self.connection.buckets[..at];
            if !rest.iter().any(|bucket| bucket.parts.iter().any(|part| self.connection.item(part).param == id)) {
                self.present.remove(&id);
            }
        }
        if bucket.owner == self.connection.rank() {
            // A closed channel: the receiving side has failed, and says why.
            let _ = self.own.send((at, tensors));
        } else {
            self.sent += self.connection.send_gradients(bucket, tensors)?;
        }
        Ok(())
    }
}

impl Connection {
    /// A word per part that says whether it is there, then those that are.
    fn send_gradients(&self, bucket: &Bucket, tensors: Vec<Option<Tensor>>) -> Result<u64> {
        let mut message = Vec::with_capacity(4 * tensors.len() + self.wire.size() * bucket.values);
        tensors.iter().for_each(|tensor| message.extend_from_slice(&u32::from(tensor.is_some()).to_ne_bytes()));
        let present = bucket.parts.iter().zip(&tensors).filter_map(|(part, tensor)| Some((part, tensor.as_ref()?)));
        let slices: Vec<Slice<'_>> = present.map(|(part, tensor)| self.slice_of(part, tensor)).collect();
        for bytes in self.gpu.read(&slices)? {
            self.wire.encode(&bytes, &mut message);
        }
        drop(tensors);
        let bytes = message.len() as u64;
        self.exchange.send(bucket.owner, Arc::new(message))?;
        Ok(bytes)
    }

    /// The sums over all ranks of what this one owns, and the bytes received for it.
    fn receive_gradients(&self, own: Receiver<Filled>) -> Result<(Gradients, u64)> {
        let (mut gradients, mut cut, mut received) = (Gradients::new(), BTreeMap::new(), 0);
        for (bucket, tensors) in own {
            let bucket = &self.buckets[bucket];
            let mut messages = Vec::with_capacity(self.ranks() - 1);
            for rank in self.others() {
                let message = self.exchange.receive(rank)?;
                received += message.len() as u64;
                messages.push(Incoming::new(rank, message, bucket, self)?);
            }
            for (at, (part, own)) in bucket.parts.iter().zip(tensors).enumerate() {
                let shape = self.shape_of(part);
                let first = part.rows.start * self.item(part).columns();
                let own = match own {
                    Some(whole) if whole.shape() != shape => Some(whole.copy_of(first, &shape)?),
                    own => own,
                };
                let mut contributions = Vec::with_capacity(self.ranks());
                for message in &mut messages {
                    contributions.push(message.part(at, self, &shape)?);
                }
                contributions.insert(self.rank(), own);
                if let Some(sum) = root(contributions, add)?.flatten() {
                    self.place(part, sum, &mut gradients, &mut cut)?;
                }
            }
        }
        for (item, gradient) in cut {
            gradients.add(self.own_id(item), gradient)?;
        }
        Ok((gradients, received))
    }

    /// Adds a part's sum to the gradients, where it is a whole item, or else to the item that it is cut from.
    fn place(&self, part: &Part, sum: Tensor, gradients: &mut Gradients, cut: &mut BTreeMap<usize, Tensor>) -> Result<()> {
        let item = self.item(part);
        if part.rows == item.rows {
            return gradients.add(self.own_id(part.item), sum);
        }
        let whole = match cut.entry(part.item) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place.insert(Tensor::uninitialized(&self.gpu, &item.own_shape())?),
        };
        sum.copy_to(whole, self.first_of(part))
    }
}

/// A message of gradients, of which parts are taken in order.
struct Incoming {
    message: Message,
    /// Where the next part that is there begins.
    at: usize,
}

impl Incoming {
    fn new(rank: usize, message: Message, bucket: &Bucket, connection: &Connection) -> Result<Self> {
        let flags = 4 * bucket.parts.len();
        let numel = |part: &Part| part.rows.len() * connection.item(part).columns();
        let present = |at: usize| message.len() >= flags && word(&message, 4 * at) != 0;
        let values: usize = bucket.parts.iter().enumerate().filter(|(at, _)| present(*at)).map(|(_, part)| numel(part)).sum();
        check_size(rank, message.len(), flags + connection.wire.size() * values)?;
        Ok(Self { message, at: flags })
    }

    fn part(&mut self, at: usize, connection: &Connection, shape: &[usize]) -> Result<Option<Tensor>> {
        let present = word(&self.message, 4 * at) != 0;
        present.then(|| connection.wire.decode(&connection.gpu, &self.message, &mut self.at, shape)).transpose()
    }
}

pub(super) fn word(message: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([message[at], message[at + 1], message[at + 2], message[at + 3]])
}

fn add(left: Option<Tensor>, right: Option<Tensor>) -> Result<Option<Tensor>> {
    match (left, right) {
        (Some(left), Some(right)) => Ok(Some(left.accumulate(right)?)),
        (left, right) => Ok(left.or(right)),
    }
}
