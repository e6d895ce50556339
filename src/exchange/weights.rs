//! Effective weights on their way from their owners to everybody, bucket by bucket, in both directions at once.

use std::sync::Arc;
use std::sync::mpsc::channel;

use super::connection::{Bucket, Connection, Part};
use super::wire::Wire;
use super::{Message, check_size};
use crate::error::Result;
use crate::params::Params;
use crate::tensor::Tensor;

impl Connection {
    /// `weights` with what all ranks send, this one out of `seen`; the bytes sent and received.
    pub(super) fn swap_weights(&self, seen: &Params, mut weights: Params) -> Result<(Params, u64, u64)> {
        let (to_self, from_self) = channel();
        std::thread::scope(|scope| {
            let mine = || self.buckets.iter().filter(|bucket| bucket.owner == self.rank());
            let sender = scope.spawn(move || -> Result<u64> {
                let mut sent = 0;
                for bucket in mine() {
                    let message = self.weights_of(bucket, seen)?;
                    self.others().try_for_each(|to| self.exchange.send(to, message.clone()))?;
                    sent += message.len() as u64 * (self.ranks() - 1) as u64;
                    // A closed channel: the receiving side has failed, and says why.
                    let _ = to_self.send(message);
                }
                Ok(sent)
            });
            let mut receive = || -> Result<u64> {
                let mut received = 0;
                for bucket in self.buckets.iter().filter(|bucket| bucket.owner != self.rank()) {
                    let message = self.exchange.receive(bucket.owner)?;
                    received += message.len() as u64;
                    self.take_over(bucket, &message, &mut weights)?;
                }
                for (bucket, message) in mine().zip(&from_self) {
                    match self.wire {
                        Wire::F32 => self.share(bucket, seen, &mut weights)?,
                        Wire::Bf16 => self.take_over(bucket, &message, &mut weights)?,
                    }
                }
                Ok(received)
            };
            let received = receive();
            // Why this rank cannot send comes first: it hears nothing more, either.
            let sent = sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            Ok((weights, sent, received?))
        })
    }

    fn weights_of(&self, bucket: &Bucket, seen: &Params) -> Result<Message> {
        let mut slices = Vec::with_capacity(bucket.parts.len());
        for part in &bucket.parts {
            let tensor = &seen.get(self.own_id(part.item))?.tensor;
            slices.push(tensor.range(self.first_of(part), part.rows.len() * self.item(part).columns()));
        }
        let mut message = Vec::with_capacity(self.wire.size() * bucket.values);
        self.gpu.read(&slices)?.iter().for_each(|bytes| self.wire.encode(bytes, &mut message));
        Ok(Arc::new(message))
    }

    /// Puts the weights of a message where the model sees them.
    fn take_over(&self, bucket: &Bucket, message: &Message, weights: &mut Params) -> Result<()> {
        check_size(bucket.owner, message.len(), self.wire.size() * bucket.values)?;
        let mut at = 0;
        for part in &bucket.parts {
            let weight = self.wire.decode(&self.gpu, message, &mut at, &self.shape_of(part))?;
            self.show(part, weight, weights)?;
        }
        Ok(())
    }

    /// Puts this rank's own weights there, which are on the device.
    fn share(&self, bucket: &Bucket, seen: &Params, weights: &mut Params) -> Result<()> {
        for part in &bucket.parts {
            let tensor = &seen.get(self.own_id(part.item))?.tensor;
            let shape = self.shape_of(part);
            let weight = if tensor.shape() == shape { tensor.clone() } else { tensor.copy_of(self.first_of(part), &shape)? };
            self.show(part, weight, weights)?;
        }
        Ok(())
    }

    fn show(&self, part: &Part, weight: Tensor, weights: &mut Params) -> Result<()> {
        let item = self.item(part);
        if part.rows == (0..item.shape[0]) {
            return weights.set(item.param, weight);
        }
        weight.copy_to(weights.make_mut(item.param)?, part.rows.start * item.columns())
    }
}
