//! Keys and values of the tokens so far: per block two tensors [batch, capacity, kv_heads·head_dim], allocated once and written in
//! place, so that generating takes the same memory, and the same buffers, for every token.

use crate::error::{Error, Result};
use crate::gpu::{Gpu, Slice};
use crate::ops::AttentionShape;
use crate::tensor::Tensor;

/// Keys and values of the tokens so far, for generating one token after another in a batch of sequences of one length.
#[derive(Debug)]
pub struct KvCache {
    /// Per block: keys and values [batch, capacity, columns].
    layers: Vec<(Tensor, Tensor)>,
    /// batch, capacity, columns
    shape: [usize; 3],
    tokens: usize,
}

/// One block's part of the cache, of which the first `tokens` of every sequence are written.
#[derive(Clone, Copy)]
pub(super) struct CachedLayer<'a> {
    keys: &'a Tensor,
    values: &'a Tensor,
    pub(super) tokens: usize,
}

impl CachedLayer<'_> {
    /// Writes the keys and values of the next tokens [batch·count, columns], and lets their queries attend to all so far.
    pub(super) fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor, shape: AttentionShape) -> Result<Tensor> {
        let [batch, capacity, columns] = self.keys.dims("kv cache")?;
        let count = k.len() / (batch * columns);
        let end = self.tokens + count;
        let flat = |cached: &Tensor, new: &Tensor| {
            new.reshape(&[batch, count, columns])?.write_to(cached, 1, &(self.tokens..end))?;
            cached.reshape(&[batch * capacity, columns])
        };
        q.attention_within(&flat(self.keys, k)?, &flat(self.values, v)?, end, shape)
    }
}

impl KvCache {
    pub(super) fn new(gpu: &Gpu, layers: usize, shape: [usize; 3]) -> Result<Self> {
        let tensor = || Tensor::uninitialized(gpu, &shape);
        let layers = (0..layers).map(|_| Ok((tensor()?, tensor()?))).collect::<Result<_>>()?;
        Ok(Self { layers, shape, tokens: 0 })
    }

    /// Number of sequences.
    pub fn batch(&self) -> usize {
        self.shape[0]
    }

    /// Number of tokens of a sequence that it has room for.
    pub fn capacity(&self) -> usize {
        self.shape[1]
    }

    /// Number of tokens of each sequence in it.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// One cache, with room for `capacity` tokens, of the sequences of `caches`, in order. They are of one model and length; one
    /// that is named several times begins several continuations.
    pub fn stack(caches: &[&Self], capacity: usize) -> Result<Self> {
        let shapes: Vec<&[usize]> = caches.iter().map(|cache| &cache.shape[..]).collect();
        let fail = |problem: String| Err(Error::shape("kv cache", &shapes, problem));
        let Some(first) = caches.first() else {
            return fail("no caches to stack".into());
        };
        let ([_, _, columns], depth, tokens) = (first.shape, first.layers.len(), first.tokens);
        for other in caches {
            let found = (other.layers.len(), other.shape[2], other.tokens);
            if found != (depth, columns, tokens) {
                let (found_depth, found_columns, found_tokens) = found;
                return fail(format!(
                    "{depth} blocks of {columns} columns with {tokens} tokens and {found_depth} of {found_columns} with \
                     {found_tokens} do not stack"
                ));
            }
        }
        if tokens == 0 || tokens > capacity {
            return fail(format!("{tokens} tokens to stack: 1 to the capacity of {capacity} expected"));
        }
        let batch = caches.iter().map(|cache| cache.batch()).sum();
        let stacked = Self::new(first.layers[0].0.gpu(), depth, [batch, capacity, columns])?;
        let mut row = 0;
        for cache in caches {
            for (from, to) in cache.layers.iter().zip(&stacked.layers) {
                cache.copy_sequences(&from.0, &to.0, row)?;
                cache.copy_sequences(&from.1, &to.1, row)?;
            }
            row += cache.batch();
        }
        Ok(Self { tokens, ..stacked })
    }

    /// Copies the tokens of every sequence of a block's `from` to `to`, there from sequence `row`.
    fn copy_sequences(&self, from: &Tensor, to: &Tensor, row: usize) -> Result<()> {
        let [batch, capacity, columns] = self.shape;
        let size = 4 * (self.tokens * columns) as u64;
        for sequence in 0..batch {
            let offset = 4 * (sequence * capacity * columns) as u64;
            let to_offset = to.bytes() / to.shape()[0] as u64 * (row + sequence) as u64;
            from.gpu().copy(Slice { offset, size, ..from.slice() }, to.slice().buffer, to_offset)?;
        }
        Ok(())
    }

    /// A block's part.
    pub(super) fn layer(&self, layer: usize) -> CachedLayer<'_> {
        let (keys, values) = &self.layers[layer];
        CachedLayer { keys, values, tokens: self.tokens }
    }

    /// Number of tokens per sequence among `fed` new ones. An error where the cache is of another model shape or has no room.
    pub(super) fn check(&self, layers: usize, columns: usize, fed: usize) -> Result<usize> {
        let [batch, capacity, found] = self.shape;
        let problem = if (self.layers.len(), found) != (layers, columns) {
            format!("made for {} blocks of {found} columns, the model has {layers} of {columns}", self.layers.len())
        } else if !fed.is_multiple_of(batch) {
            format!("{fed} tokens for {batch} sequences: the same number for each expected")
        } else if self.tokens + fed / batch > capacity {
            format!("{} tokens after {} exceed its capacity of {capacity}", fed / batch, self.tokens)
        } else {
            return Ok(fed / batch);
        };
        Err(Error::shape("kv cache", &[&self.shape], problem))
    }

    pub(super) fn advance(&mut self, count: usize) {
        self.tokens += count;
    }
}
