//! Causal attention with grouped heads. q `[batch·seq, heads·head_dim]`, k and v `[batch·seq, kv_heads·head_dim]` →
//! `[batch·seq, heads·head_dim]`. Query head h reads key head h / (heads / kv_heads); the scale is 1/√head_dim.

use super::array::{Array, add_scaled, dot};
use super::normalize::{softmax_row, softmax_row_vjp};

#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    pub batch: usize,
    pub seq: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

/// One query: where its head starts in q and y, the row in k and v where its sequence starts, and where its key head starts.
struct Query {
    row: usize,
    position: usize,
    q_start: usize,
    kv_start: usize,
}

impl AttentionShape {
    fn queries(self) -> impl Iterator<Item = Query> {
        let Self { batch, seq, heads, kv_heads, head_dim } = self;
        (0..batch * seq).flat_map(move |row| {
            (0..heads).map(move |head| Query {
                row,
                position: row % seq,
                q_start: head * head_dim,
                kv_start: head / (heads / kv_heads) * head_dim,
            })
        })
    }

    fn scale(self) -> f64 {
        1.0 / (self.head_dim as f64).sqrt()
    }

    fn check(self, q: &Array, k: &Array, v: &Array) {
        let rows = self.batch * self.seq;
        assert_eq!(self.heads % self.kv_heads, 0);
        assert_eq!(q.shape, [rows, self.heads * self.head_dim]);
        assert_eq!(k.shape, [rows, self.kv_heads * self.head_dim]);
        assert_eq!(v.shape, k.shape);
    }
}

impl Query {
    /// The rows of k and v that this query may look at: from the start of its sequence to itself.
    fn keys(&self) -> std::ops::RangeInclusive<usize> {
        self.row - self.position..=self.row
    }

    fn probabilities(&self, q: &Array, k: &Array, shape: AttentionShape) -> Vec<f64> {
        let q = &q.row(self.row)[self.q_start..][..shape.head_dim];
        let score = |key| shape.scale() * dot(q, &k.row(key)[self.kv_start..][..shape.head_dim]);
        let mut p: Vec<f64> = self.keys().map(score).collect();
        softmax_row(&mut p);
        p
    }
}

pub fn attention(q: &Array, k: &Array, v: &Array, shape: AttentionShape) -> Array {
    shape.check(q, k, v);
    let mut y = Array::zeros(&q.shape);
    for query in shape.queries() {
        let p = query.probabilities(q, k, shape);
        let y = &mut y.row_mut(query.row)[query.q_start..][..shape.head_dim];
        for (p, key) in p.iter().zip(query.keys()) {
            add_scaled(y, *p, &v.row(key)[query.kv_start..][..shape.head_dim]);
        }
    }
    y
}

/// dv = pᵀ·dy; with dp = dy·vᵀ the scores get ds = p·(dp − ⟨dp, p⟩), and dq = scale·ds·k, dk = scale·dsᵀ·q.
pub fn attention_vjp(q: &Array, k: &Array, v: &Array, shape: AttentionShape, dy: &Array) -> [Array; 3] {
    shape.check(q, k, v);
    let head = shape.head_dim;
    let (mut dq, mut dk, mut dv) = (Array::zeros(&q.shape), Array::zeros(&k.shape), Array::zeros(&v.shape));
    for query in shape.queries() {
        let mut p = query.probabilities(q, k, shape);
        let dy = &dy.row(query.row)[query.q_start..][..head];
        for (p, key) in p.iter().zip(query.keys()) {
            add_scaled(&mut dv.row_mut(key)[query.kv_start..][..head], *p, dy);
        }
        let dp: Vec<f64> = query.keys().map(|key| dot(dy, &v.row(key)[query.kv_start..][..head])).collect();
        softmax_row_vjp(&mut p, &dp);
        let q = &q.row(query.row)[query.q_start..][..head];
        let dq = &mut dq.row_mut(query.row)[query.q_start..][..head];
        for (ds, key) in p.iter().zip(query.keys()) {
            add_scaled(dq, shape.scale() * ds, &k.row(key)[query.kv_start..][..head]);
            add_scaled(&mut dk.row_mut(key)[query.kv_start..][..head], shape.scale() * ds, q);
        }
    }
    [dq, dk, dv]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::differences::{check_vjp, random_arrays};

    #[test]
    fn vjp_matches_finite_differences() {
        for kv_heads in [1, 2, 4] {
            let shape = AttentionShape { batch: 2, seq: 3, heads: 4, kv_heads, head_dim: 2 };
            let inputs = random_arrays(61, [&[6, 8], &[6, 2 * kv_heads], &[6, 2 * kv_heads]]);
            check_vjp(
                &format!("attention with {kv_heads} key heads"),
                inputs,
                |x| attention(&x[0], &x[1], &x[2], shape),
                |x, dy| attention_vjp(&x[0], &x[1], &x[2], shape, dy),
            );
        }
    }

    #[test]
    fn a_query_sees_neither_the_future_nor_other_sequences() {
        let shape = AttentionShape { batch: 2, seq: 3, heads: 2, kv_heads: 1, head_dim: 4 };
        let [q, k, v] = random_arrays(62, [&[6, 8], &[6, 4], &[6, 4]]);
        let y = attention(&q, &k, &v, shape);
        let mut changed = v.clone();
        changed.row_mut(2).fill(9.0); // the last position of the first sequence
        let changed = attention(&q, &k, &changed, shape);
        for row in [0, 1, 3, 4, 5] {
            assert_eq!(y.row(row), changed.row(row));
        }
        assert_eq!(&y.row(3)[..4], v.row(3));
    }
}
