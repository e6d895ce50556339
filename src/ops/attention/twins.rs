//! The twins of attention's kernels: blocks of queries against blocks of keys, with products from [`native`](crate::gemm::native).

use std::cell::RefCell;
use std::ops::Range;

use crate::gemm::native::{Operand, Panels, multiply};
use crate::gpu::host::simd::{dispatch, dot, exp, maximum, sum};
use crate::gpu::host::{Host, Shared};

/// Queries and keys of a block.
const QUERIES: usize = 64;
const KEYS: usize = 128;

/// What a task needs, kept by each thread.
#[derive(Default)]
struct Scratch {
    panels: Panels,
    /// [QUERIES, KEYS]: the scores, then the probabilities, of a block; and their gradient.
    scores: Vec<f32>,
    dscores: Vec<f32>,
    /// [QUERIES, dim] or [KEYS, dim]
    sums: [Vec<f32>; 2],
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// The kernels' arguments.
#[derive(Clone, Copy)]
struct Sizes {
    queries: usize,
    keys: usize,
    offset: usize,
    heads: usize,
    group: usize,
    scale: f32,
    query_start: usize,
    key_start: usize,
    statistic_start: usize,
    group_range: [usize; 2],
    key_stride: usize,
    dim: usize,
    batch: usize,
}

impl Sizes {
    fn of(host: &Host<'_>) -> Self {
        Self {
            queries: host.size(0),
            keys: host.size(1),
            offset: host.size(2),
            heads: host.size(3),
            group: host.size(4),
            scale: host.number(5),
            query_start: host.size(7),
            key_start: host.size(8),
            statistic_start: host.size(9),
            group_range: [host.size(10), host.size(11)],
            key_stride: host.size(12),
            dim: host.constant("DIM") as usize,
            batch: host.workgroups()[2] as usize,
        }
    }

    fn kv_heads(&self) -> usize {
        self.heads / self.group
    }

    /// The place of a query's row of a head in q, o, dy and dq.
    fn query(&self, sequence: usize, head: usize, query: usize) -> usize {
        self.query_start + ((sequence * self.queries + query) * self.heads + head) * self.dim
    }

    /// The place of a key's row in k, v, dk and dv.
    fn key(&self, sequence: usize, kv_head: usize, key: usize) -> usize {
        self.key_start + ((sequence * self.key_stride + key) * self.kv_heads() + kv_head) * self.dim
    }

    fn statistic(&self, sequence: usize, head: usize, query: usize) -> usize {
        self.statistic_start + (sequence * self.queries + query) * self.heads + head
    }

    /// Rows from `at` on with a row's elements as the inner index, of a tensor with `heads` heads.
    fn rows<'a>(&self, values: &'a [f32], at: usize, heads: usize) -> Operand<'a> {
        Operand { values, offset: at, stride: heads * self.dim, inner_stride: 1 }
    }

    /// The same with the rows as the inner index.
    fn columns<'a>(&self, values: &'a [f32], at: usize, heads: usize) -> Operand<'a> {
        Operand { values, offset: at, stride: 1, inner_stride: heads * self.dim }
    }

    /// Of the keys from `first` on, how many a query sees, at most `count`.
    fn visible(&self, query: usize, first: usize, count: usize) -> usize {
        (query + self.offset + 1).saturating_sub(first).min(count)
    }

    /// Ranges of queries, and of keys.
    fn blocks(count: usize, step: usize) -> impl Iterator<Item = Range<usize>> {
        (0..count).step_by(step).map(move |first| first..count.min(first + step))
    }
}

/// The scores of a block as an operand: queries as rows, keys as the inner index; or keys as rows, queries as the inner index.
fn by_query(scores: &[f32]) -> Operand<'_> {
    Operand { values: scores, offset: 0, stride: KEYS, inner_stride: 1 }
}

fn by_key(scores: &[f32]) -> Operand<'_> {
    Operand { values: scores, offset: 0, stride: 1, inner_stride: KEYS }
}

/// scores[query, key] ← left·rightᵀ.
#[inline(always)]
fn score(panels: &mut Panels, left: Operand<'_>, right: Operand<'_>, sizes: [usize; 3], scores: &mut Vec<f32>) {
    scores.resize(QUERIES * KEYS, 0.0);
    multiply(
        panels,
        left,
        right,
        sizes,
        #[inline(always)]
        |row, column, sums| {
            scores[row * KEYS + column..][..sums.len()].copy_from_slice(sums);
        },
    );
}

/// sums[row, ·] += left·right.
#[inline(always)]
fn accumulate(panels: &mut Panels, left: Operand<'_>, right: Operand<'_>, sizes: [usize; 3], sums: &mut [f32]) {
    let dim = sizes[1];
    multiply(
        panels,
        left,
        right,
        sizes,
        #[inline(always)]
        |row, column, new| {
            for (sum, new) in sums[row * dim + column..].iter_mut().zip(new) {
                *sum += *new;
            }
        },
    );
}

/// Writes rows of `sums` to rows of a head in `out`.
///
/// # Safety
/// The rows are within `out`, and this thread's alone.
unsafe fn write_rows(out: Shared, at: usize, stride: usize, dim: usize, sums: &[f32]) {
    for (row, sums) in sums.chunks_exact(dim).enumerate() {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(out.at(at + row * stride), dim) }.copy_from_slice(sums);
    }
}

/// Runs a task for each (sequence, head, block) with the thread's scratch, block by block: the first should be the longest.
fn for_each_block(host: &Host<'_>, heads: usize, blocks: usize, task: impl Fn(usize, usize, usize, &mut Scratch) + Sync) {
    let batch = host.workgroups()[2] as usize;
    host.threads().run(batch * heads * blocks, &|at| {
        let (block, at) = (at / (batch * heads), at % (batch * heads));
        SCRATCH.with_borrow_mut(|scratch| {
            dispatch(
                #[inline(always)]
                || task(at / heads, at % heads, block, scratch),
            )
        });
    });
}

pub(super) fn forward(host: &Host<'_>) {
    let sizes = Sizes::of(host);
    let ([q, k, v], [o, lse]) = ([0, 1, 2].map(|binding| host.input(binding)), host.outputs());
    sizes.check(o.len(), usize::MAX);
    assert!(sizes.statistic(sizes.batch - 1, sizes.heads - 1, sizes.queries - 1) < lse.len(), "bug: lse beyond its binding");
    let (o, lse) = (Shared(o.as_mut_ptr()), Shared(lse.as_mut_ptr()));
    let blocks = sizes.queries.div_ceil(QUERIES);
    for_each_block(
        host,
        sizes.heads,
        blocks,
        #[inline(always)]
        |sequence, head, block, scratch| {
            let block = blocks - 1 - block; // the last queries see the most keys
            let queries = block * QUERIES..sizes.queries.min((block + 1) * QUERIES);
            let statistics = sizes.forward([q, k, v], sequence, head, queries.clone(), scratch);
            // SAFETY: within the outputs, as asserted above; the queries and the head are this task's alone.
            unsafe {
                write_rows(o, sizes.query(sequence, head, queries.start), sizes.heads * sizes.dim, sizes.dim, &scratch.sums[0]);
                for (query, value) in queries.zip(statistics) {
                    *lse.at(sizes.statistic(sequence, head, query)) = value;
                }
            }
        },
    );
}

impl Sizes {
    /// What is written through pointers is within its bindings.
    fn check(&self, query_side: usize, key_side: usize) {
        let end = |at: usize| at + self.dim;
        assert!(
            end(self.query(self.batch - 1, self.heads - 1, self.queries - 1)) <= query_side,
            "bug: a query beyond its binding"
        );
        assert!(end(self.key(self.batch - 1, self.kv_heads() - 1, self.keys - 1)) <= key_side, "bug: a key beyond its binding");
    }

    /// Leaves the rows of o in `scratch.sums[0]` and returns the log-sum-exps: an online softmax over blocks of keys.
    #[inline(always)]
    fn forward(
        &self,
        [q, k, v]: [&[f32]; 3],
        sequence: usize,
        head: usize,
        queries: Range<usize>,
        scratch: &mut Scratch,
    ) -> [f32; QUERIES] {
        let Scratch { panels, scores, sums: [sums, _], .. } = scratch;
        let (dim, kv_head, count) = (self.dim, head / self.group, queries.len());
        sums.clear();
        sums.resize(count * dim, 0.0);
        let (mut top, mut mass) = ([f32::NEG_INFINITY; QUERIES], [0.0; QUERIES]);
        let q = self.rows(q, self.query(sequence, head, queries.start), self.heads);
        for keys in Self::blocks(self.visible(queries.end - 1, 0, self.keys), KEYS) {
            let at = self.key(sequence, kv_head, keys.start);
            score(panels, q, self.rows(k, at, self.kv_heads()), [count, keys.len(), dim], scores);
            for (row, query) in queries.clone().enumerate() {
                let scores = &mut scores[row * KEYS..][..keys.len()];
                let (seen, masked) = scores.split_at_mut(self.visible(query, keys.start, keys.len()));
                masked.fill(0.0);
                seen.iter_mut().for_each(|score| *score *= self.scale);
                let highest = top[row].max(maximum(seen));
                let shrink = exp(top[row] - highest);
                seen.iter_mut().for_each(|score| *score = exp(*score - highest));
                top[row] = highest;
                mass[row] = mass[row] * shrink + sum(seen.len(), |i| seen[i]);
                sums[row * dim..][..dim].iter_mut().for_each(|sum| *sum *= shrink);
            }
            let v = self.columns(v, at, self.kv_heads());
            accumulate(panels, by_query(scores), v, [count, dim, keys.len()], sums);
        }
        for (sums, mass) in sums.chunks_exact_mut(dim).zip(mass) {
            sums.iter_mut().for_each(|sum| *sum /= mass);
        }
        std::array::from_fn(|row| top[row] + mass[row].ln())
    }

    /// The probabilities of a block and the gradient of its scores, in `scratch`: p = exp(scale·q·kᵀ − lse),
    /// ds = p·(dy·vᵀ − delta)·scale.
    #[inline(always)]
    fn scores(
        &self,
        inputs: &Inputs<'_>,
        sequence: usize,
        head: usize,
        [queries, keys]: [Range<usize>; 2],
        scratch: &mut Scratch,
    ) {
        let Scratch { panels, scores, dscores, .. } = scratch;
        let (at, key_at) = (self.query(sequence, head, queries.start), self.key(sequence, head / self.group, keys.start));
        let sizes = [queries.len(), keys.len(), self.dim];
        let (heads, kv_heads) = (self.heads, self.kv_heads());
        score(panels, self.rows(inputs.q, at, heads), self.rows(inputs.k, key_at, kv_heads), sizes, scores);
        score(panels, self.rows(inputs.dy, at, heads), self.rows(inputs.v, key_at, kv_heads), sizes, dscores);
        for (row, query) in queries.enumerate() {
            let statistic = self.statistic(sequence, head, query);
            let (lse, delta) = (inputs.lse[statistic], inputs.delta[statistic]);
            let seen = self.visible(query, keys.start, keys.len());
            let of_row = row * KEYS..row * KEYS + keys.len();
            let (scores, dscores) = (&mut scores[of_row.clone()], &mut dscores[of_row]);
            for (p, ds) in scores[..seen].iter_mut().zip(&mut dscores[..seen]) {
                *p = exp(self.scale.mul_add(*p, -lse));
                *ds = *p * (*ds - delta) * self.scale;
            }
            scores[seen..].fill(0.0);
            dscores[seen..].fill(0.0);
        }
    }
}

/// What the backward kernels read.
struct Inputs<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    dy: &'a [f32],
    lse: &'a [f32],
    delta: &'a [f32],
}

impl<'a> Inputs<'a> {
    fn of(host: &Host<'a>) -> Self {
        let [q, k, v, dy, lse, delta] = [0, 1, 2, 3, 4, 5].map(|binding| host.input(binding));
        Self { q, k, v, dy, lse, delta }
    }
}

pub(super) fn query_backward(host: &Host<'_>) {
    let (sizes, inputs, [dq]) = (Sizes::of(host), Inputs::of(host), host.outputs());
    sizes.check(dq.len(), usize::MAX);
    let dq = Shared(dq.as_mut_ptr());
    let (dim, blocks) = (sizes.dim, sizes.queries.div_ceil(QUERIES));
    for_each_block(
        host,
        sizes.heads,
        blocks,
        #[inline(always)]
        |sequence, head, block, scratch| {
            let block = blocks - 1 - block; // the last queries see the most keys
            let queries = block * QUERIES..sizes.queries.min((block + 1) * QUERIES);
            scratch.sums[0].clear();
            scratch.sums[0].resize(queries.len() * dim, 0.0);
            for keys in Sizes::blocks(sizes.visible(queries.end - 1, 0, sizes.keys), KEYS) {
                sizes.scores(&inputs, sequence, head, [queries.clone(), keys.clone()], scratch);
                let k = sizes.columns(inputs.k, sizes.key(sequence, head / sizes.group, keys.start), sizes.kv_heads());
                let Scratch { panels, dscores, sums: [sums, _], .. } = scratch;
                accumulate(panels, by_query(dscores), k, [queries.len(), dim, keys.len()], sums);
            }
            // SAFETY: within dq, as asserted above; the queries and the head are this task's alone.
            unsafe { write_rows(dq, sizes.query(sequence, head, queries.start), sizes.heads * dim, dim, &scratch.sums[0]) };
        },
    );
}

pub(super) fn key_backward(host: &Host<'_>) {
    assert!(!host.flag("CONTINUED"), "bug: the host tier cuts no queries");
    let (sizes, inputs, [dk, dv]) = (Sizes::of(host), Inputs::of(host), host.outputs());
    sizes.check(usize::MAX, dk.len().min(dv.len()));
    let outputs = [Shared(dk.as_mut_ptr()), Shared(dv.as_mut_ptr())];
    let (dim, heads, kv_heads) = (sizes.dim, sizes.heads, sizes.kv_heads());
    for_each_block(
        host,
        kv_heads,
        sizes.keys.div_ceil(KEYS),
        #[inline(always)]
        |sequence, kv_head, block, scratch| {
            let keys = block * KEYS..sizes.keys.min((block + 1) * KEYS);
            for sums in &mut scratch.sums {
                sums.clear();
                sums.resize(keys.len() * dim, 0.0);
            }
            let [first_head, end_head] = sizes.group_range.map(|head| kv_head * sizes.group + head);
            for head in first_head..end_head {
                // The first query that sees a key of the block.
                let first = keys.start.saturating_sub(sizes.offset);
                for queries in Sizes::blocks(sizes.queries, QUERIES).skip(first / QUERIES) {
                    sizes.scores(&inputs, sequence, head, [queries.clone(), keys.clone()], scratch);
                    let at = sizes.query(sequence, head, queries.start);
                    let Scratch { panels, scores, dscores, sums: [dk, dv], .. } = scratch;
                    let block = [keys.len(), dim, queries.len()];
                    accumulate(panels, by_key(dscores), sizes.columns(inputs.q, at, heads), block, dk);
                    accumulate(panels, by_key(scores), sizes.columns(inputs.dy, at, heads), block, dv);
                }
            }
            for (out, sums) in outputs.into_iter().zip(&scratch.sums) {
                // SAFETY: within dk and dv, as asserted above; the keys and the head are this task's alone.
                unsafe { write_rows(out, sizes.key(sequence, kv_head, keys.start), kv_heads * dim, dim, sums) };
            }
        },
    );
}

pub(super) fn delta(host: &Host<'_>) {
    let (count, dim) = (host.size(0), host.size(2));
    let (o, dy, [delta]) = (host.input(0), host.input(1), host.outputs());
    host.rows(
        count,
        2 * dim,
        [(delta, 1)],
        #[inline(always)]
        |range, [delta]| {
            for (row, delta) in range.zip(delta) {
                *delta = dot(&o[row * dim..][..dim], &dy[row * dim..][..dim]);
            }
        },
    );
}

pub(super) fn step(host: &Host<'_>) {
    let [keys, key_stride, heads, group] = [0, 1, 2, 3].map(|at| host.size(at));
    let (scale, dim) = (host.number(4), host.constant("DIM") as usize);
    let ([q, k, v], [o]) = ([0, 1, 2].map(|binding| host.input(binding)), host.outputs());
    let (batch, kv_heads) = (host.workgroups()[1] as usize, heads / group);
    host.rows(
        batch * heads,
        4 * keys * dim,
        [(o, dim)],
        #[inline(always)]
        |range, [o]| {
            for (row, o) in range.zip(o.chunks_exact_mut(dim)) {
                let (sequence, head) = (row / heads, row % heads);
                let key = |key: usize| ((sequence * key_stride + key) * kv_heads + head / group) * dim;
                let q = &q[row * dim..][..dim];
                let mut weights: Vec<f32> = (0..keys).map(|at| scale * dot(q, &k[key(at)..][..dim])).collect();
                let highest = maximum(&weights);
                weights.iter_mut().for_each(|weight| *weight = exp(*weight - highest));
                let mass = sum(keys, |at| weights[at]);
                o.fill(0.0);
                for (at, weight) in weights.iter().enumerate() {
                    for (o, v) in o.iter_mut().zip(&v[key(at)..][..dim]) {
                        *o = weight.mul_add(*v, *o);
                    }
                }
                o.iter_mut().for_each(|o| *o /= mass);
            }
        },
    );
}
