//! The norm of all ranks' gradients: every rank gets all partial sums, and adds them in the order of one process.

use std::sync::Arc;
use std::time::Instant;

use super::connection::Connection;
use super::gradients::word;
use super::layout::Item;
use super::{Message, check_size};
use crate::error::Result;
use crate::ops::CHUNK;
use crate::optim::Clip;
use crate::params::Gradients;
use crate::tensor::Tensor;

/// The next flag and the next value in a message.
struct Cursor {
    flag: usize,
    values: usize,
}

fn partials_of(item: &Item) -> usize {
    item.numel().div_ceil(CHUNK)
}

impl Connection {
    /// The norm of the gradients of all ranks, of which `gradients` are this one's.
    pub(crate) fn clip(&self, gradients: &Gradients, max_norm: f32, loss_scale: f32) -> Result<Clip> {
        let started = Instant::now();
        let message = self.partials(gradients)?;
        let bytes = message.len() as u64;
        let messages = self.exchange.as_ref().all_gather(message)?;
        let mut cursors = self.cursors(&messages)?;
        let (mut partials, mut owners) = (Vec::new(), Vec::new());
        for item in self.layout.items.iter().filter(|item| item.is_trainable()) {
            let owner = self.owner(item);
            let (message, Cursor { flag, values }) = (&messages[owner], &mut cursors[owner]);
            if word(message, *flag) != 0 {
                let size = 4 * partials_of(item);
                partials.extend_from_slice(&message[*values..*values + size]);
                owners.push((item.param, partials_of(item)));
                *values += size;
            }
            *flag += 4;
        }
        if partials.is_empty() {
            partials = vec![0; 4];
        }
        let partials = Tensor::from_bytes(&self.gpu, &partials, &[partials.len() / 4])?;
        let received = messages.iter().map(|message| message.len() as u64).sum::<u64>() - bytes;
        self.count((self.ranks() - 1) as u64 * bytes, received, started);
        Clip::of_partials(partials, owners, max_norm, loss_scale)
    }

    /// The first rank's loss and norm, of which `own` are this one's: sums of different adapters may differ in their last bit, and all ranks
    /// must decide alike.
    pub(crate) fn of_first(&self, own: [f32; 2]) -> Result<[f32; 2]> {
        let (started, others) = (Instant::now(), 1..self.ranks());
        if self.exchange.rank() == 0 {
            let message: Message = Arc::new(bytemuck::cast_slice(&own).to_vec());
            let bytes = (others.len() * message.len()) as u64;
            others.into_iter().try_for_each(|rank| self.exchange.send(rank, message.clone()))?;
            self.count(bytes, 0, started);
            return Ok(own);
        }
        let message = self.exchange.receive(0)?;
        check_size(0, message.len(), size_of_val(&own))?;
        self.count(0, message.len() as u64, started);
        Ok([0, 4].map(|at| f32::from_bits(word(&message, at))))
    }

    /// A word for each trainable item of this rank that says whether it has a gradient, then the partial sums of those that have.
    fn partials(&self, gradients: &Gradients) -> Result<Vec<u8>> {
        let (mut message, mut count) = (Vec::new(), 0);
        for (item, own) in self.layout.items.iter().zip(&self.own).filter(|(item, _)| item.is_trainable()) {
            let Some(id) = *own else { continue };
            let present = gradients.get(id).is_some();
            message.extend_from_slice(&u32::from(present).to_ne_bytes());
            count += usize::from(present) * partials_of(item);
        }
        let partials = Clip::partials(&self.gpu, gradients)?.read(0..count)?;
        message.extend_from_slice(bytemuck::cast_slice(&partials));
        Ok(message)
    }

    /// Where flags and partial sums begin in each rank's message, whose sizes it checks.
    fn cursors(&self, messages: &[Message]) -> Result<Vec<Cursor>> {
        let cursor = |(rank, message): (usize, &Message)| {
            let items = self.layout.items.iter().filter(|item| item.is_trainable() && self.owner(item) == rank);
            let counts: Vec<usize> = items.map(partials_of).collect();
            let flags = 4 * counts.len();
            let present = |at: usize| message.len() >= flags && word(message, 4 * at) != 0;
            let values: usize = (0..counts.len()).map(|at| usize::from(present(at)) * counts[at]).sum();
            check_size(rank, message.len(), flags + 4 * values)?;
            Ok(Cursor { flag: 0, values: flags })
        };
        messages.iter().enumerate().map(cursor).collect()
    }
}
