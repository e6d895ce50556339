//! How attention is cut where a binding holds only a part of q or k: by whole sequences, or by the queries of one.

use std::ops::Range;

use super::{AttentionShape, Sizes};
use crate::error::{Error, Result};
use crate::gpu::Slice;
use crate::tensor::{ALIGNMENT, Tensor};

/// How much of its tensors attention binds at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionWindows {
    /// Whole sequences at a time.
    pub sequences: usize,
    /// Queries of each at a time: all of them, unless those of a single sequence exceed the limit.
    pub queries: usize,
    /// The most bytes of one binding.
    pub bytes: u64,
}

/// What one dispatch sees.
#[derive(Clone)]
pub(super) struct Window {
    pub(super) sequences: Range<usize>,
    pub(super) queries: Range<usize>,
}

/// What the rows of a tensor belong to.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Side {
    /// [batch·queries, heads·head_dim]
    Query,
    /// [batch·key_stride, kv_heads·head_dim]
    Key,
    /// [batch·queries, heads]
    Statistic,
}

impl AttentionShape {
    /// How sequences of `queries` queries and `keys` keys are bound where a binding has at most `limit` bytes; an error where the
    /// keys of one sequence, or one query, exceed it.
    pub fn windows(&self, queries: usize, keys: usize, limit: u64) -> Result<AttentionWindows> {
        let [query_row, key_row] = [self.heads, self.kv_heads].map(|heads| heads * self.head_dim);
        let [one_query_side, one_key_side] = [queries * query_row, keys * key_row];
        let bytes = |sequences: usize, rows: usize| {
            let [query_side, key_side] = [sequences * rows * query_row, sequences * one_key_side];
            let is_all = sequences == self.batch && rows == queries;
            let padding = if is_all { [0; 2] } else { [slack(query_row), slack(one_key_side)] };
            4 * (query_side + padding[0]).max(key_side + padding[1]) as u64
        };
        if bytes(self.batch, queries) <= limit {
            return Ok(AttentionWindows { sequences: self.batch, queries, bytes: bytes(self.batch, queries) });
        }
        let most = |width: usize, slack: usize| ((limit / 4) as usize).saturating_sub(slack) / width;
        let most_by_keys = most(one_key_side, slack(one_key_side));
        if most_by_keys == 0 {
            let problem = format!(
                "k and v [{keys}, {key_row}] of one sequence are bound whole: {} bytes each, the limit of a binding is {limit}",
                4 * one_key_side
            );
            return Err(Error::shape("attention", &[&[keys, key_row]], problem));
        }
        let sequences = most(one_query_side, slack(query_row)).min(most_by_keys);
        if sequences > 0 {
            return Ok(AttentionWindows { sequences, queries, bytes: bytes(sequences, queries) });
        }
        match most(query_row, slack(query_row)) {
            0 => {
                let bytes = 4 * query_row;
                let problem = format!("one query of [{query_row}]: {bytes} bytes, the limit of a binding is {limit}");
                Err(Error::shape("attention", &[&[query_row]], problem))
            }
            // Whole workgroups, where there are several.
            most => {
                let queries = if most > 64 { most / 64 * 64 } else { most };
                Ok(AttentionWindows { sequences: 1, queries, bytes: bytes(1, queries) })
            }
        }
    }
}

/// Elements before a window's first that alignment may add to its binding, where windows start at multiples of `width`.
fn slack(width: usize) -> usize {
    if width.is_multiple_of(ALIGNMENT) { 0 } else { ALIGNMENT - 1 }
}

impl Sizes {
    /// In order: sequence by sequence, query by query.
    pub(super) fn windows(&self, limit: u64) -> Result<Vec<Window>> {
        let AttentionWindows { sequences, queries, .. } = self.shape.windows(self.queries, self.key_stride, limit)?;
        let parts = |count: usize, step: usize| (0..count).step_by(step).map(move |first| first..count.min(first + step));
        let of_sequences = |sequences: Range<usize>| {
            parts(self.queries, queries).map(move |queries| Window { sequences: sequences.clone(), queries })
        };
        Ok(parts(self.shape.batch, sequences).flat_map(of_sequences).collect())
    }

    /// The binding of a window's rows of a tensor, and the place of their first element in it.
    pub(super) fn bind<'a>(&self, window: &Window, tensor: &'a Tensor, side: Side) -> (Slice<'a>, usize) {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        let (per_sequence, rows, width) = match side {
            Side::Query => (self.queries, &window.queries, heads * head_dim),
            Side::Statistic => (self.queries, &window.queries, heads),
            Side::Key => (self.key_stride, &(0..self.key_stride), kv_heads * head_dim),
        };
        // Either all rows of several sequences, or some rows of one.
        let first = window.sequences.start * per_sequence + rows.start;
        tensor.window_around(first * width, window.sequences.len() * rows.len() * width)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn sequences_are_kept_whole_while_one_fits() {
        let published = AttentionShape { batch: 4, heads: 16, kv_heads: 16, head_dim: 128 };
        let windows = |shape: AttentionShape, tokens, limit| shape.windows(tokens, tokens, limit).expect("windows");
        let of = |sequences, queries, bytes| AttentionWindows { sequences, queries, bytes };
        assert_eq!(windows(published, 8192, 256 * MIB), of(4, 8192, 256 * MIB));
        assert_eq!(windows(published, 8192, 128 * MIB), of(2, 8192, 128 * MIB));
        assert_eq!(windows(published, 8192, 127 * MIB), of(1, 8192, 64 * MIB));
        // Grouped keys fit where the queries of a sequence do not.
        let grouped = AttentionShape { batch: 2, kv_heads: 4, ..published };
        assert_eq!(windows(grouped, 32_768, 128 * MIB), of(1, 16_384, 128 * MIB));
    }

    #[test]
    fn a_window_that_starts_anywhere_has_room_to_be_aligned() {
        let shape = AttentionShape { batch: 9, heads: 3, kv_heads: 3, head_dim: 5 };
        let windows = shape.windows(37, 37, 8192).expect("windows");
        // Three sequences of 2,220 bytes and up to 252 before them.
        assert_eq!(windows, AttentionWindows { sequences: 3, queries: 37, bytes: 3 * 2220 + 252 });
    }

    #[test]
    fn what_cannot_be_cut_is_refused_with_its_bytes_and_the_limit() {
        let shape = AttentionShape { batch: 1, heads: 16, kv_heads: 16, head_dim: 128 };
        let refusal = |tokens, limit| shape.windows(tokens, tokens, limit).expect_err("a refusal").to_string();
        let keys = "attention: k and v [32768, 2048] of one sequence are bound whole: 268435456 bytes each, the limit of a binding is \
                    134217728";
        assert_eq!(refusal(32_768, 128 * MIB), keys);
        let one_key = AttentionShape { kv_heads: 1, ..shape };
        let query = one_key.windows(8, 8, 4096).expect_err("a refusal").to_string();
        assert_eq!(query, "attention: one query of [2048]: 8192 bytes, the limit of a binding is 4096");
    }
}
