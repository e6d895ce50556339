use polytape::gpu::KernelTier;
use polytape::{AttentionShape, Precision};

use crate::check::{assert_refused, check, check_at, upload};
use crate::device;
use crate::reference::Array;
use crate::reference::attention::{self, attention, attention_vjp};
use crate::reference::differences::random_arrays;
use crate::reference::layout::{concat, slice};
use crate::tolerance::{self, Tolerance};

fn shape([batch, heads, kv_heads, head_dim]: [usize; 4]) -> AttentionShape {
    AttentionShape { batch, heads, kv_heads, head_dim }
}

/// The reference's shape, with as many queries as keys.
fn square([batch, heads, kv_heads, head_dim]: [usize; 4], seq: usize) -> attention::AttentionShape {
    attention::AttentionShape { batch, seq, heads, kv_heads, head_dim }
}

/// Attention of [batch, heads, kv_heads, head_dim] at a length.
fn matches(sizes: [usize; 4], seq: usize) {
    matches_at(Precision::F32, sizes, seq, tolerance::attention(seq, sizes[3]));
}

fn matches_at(precision: Precision, sizes: [usize; 4], seq: usize, tolerance: Tolerance) {
    let [batch, heads, kv_heads, head_dim] = sizes;
    let (q, kv) = ([batch * seq, heads * head_dim], [batch * seq, kv_heads * head_dim]);
    check_at(
        precision,
        &format!("attention of {:?}", shape(sizes)),
        random_arrays(1701, [&q, &kv, &kv]),
        move |x| x[0].attention(&x[1], &x[2], shape(sizes)),
        |x| attention(&x[0], &x[1], &x[2], square(sizes, seq)),
        |x, dy| attention_vjp(&x[0], &x[1], &x[2], square(sizes, seq), dy),
        &[tolerance],
    );
}

/// The precisions for which a device has kernels of its own: f16 on matrix units.
pub fn precisions() -> &'static [Precision] {
    let has_matrices = device::all().iter().any(|gpu| gpu.kernels() == KernelTier::Matrix);
    if has_matrices { &[Precision::F32, Precision::F16] } else { &[Precision::F32] }
}

// Lengths: fewer than a block of keys, primes, several workgroups of queries (of 16 to 64). Each head_dim is three shaders to compile:
// few widths, and a test for each, because a compiler may keep gigabytes of them.

#[test]
fn narrow_heads_match() {
    matches([2, 2, 1, 1], 7);
    matches([1, 3, 3, 4], 3);
    matches([1, 3, 3, 4], 101);
    matches([2, 4, 1, 7], 13);
    matches([2, 4, 1, 7], 67);
}

#[test]
fn heads_of_32_match() {
    matches([2, 4, 2, 32], 130);
}

#[test]
fn heads_of_64_match() {
    matches([1, 4, 1, 64], 67);
}

#[test]
fn heads_of_80_match() {
    matches([1, 2, 1, 80], 37);
}

#[test]
fn heads_of_128_match() {
    matches([1, 2, 2, 128], 68);
}

#[test]
fn heads_of_132_match() {
    matches([1, 2, 1, 132], 37);
}

/// On matrix units the operands are rounded to f16, elsewhere they are not: the reference's are not, and the tolerance is for both.
#[test]
fn at_f16_it_is_as_close_as_its_operands() {
    for (sizes, seq) in [([2, 2, 1, 1], 7), ([2, 4, 1, 7], 67), ([1, 4, 1, 64], 131), ([1, 2, 2, 128], 68)] {
        matches_at(Precision::F16, sizes, seq, tolerance::ATTENTION_F16);
    }
}

#[test]
fn one_position_sees_only_itself() {
    for sizes in [[1, 1, 1, 1], [2, 4, 1, 7], [3, 4, 2, 32]] {
        let [batch, heads, kv_heads, head_dim] = sizes;
        let kv = [batch, kv_heads * head_dim];
        let [q, k, v] = random_arrays(1704, [&[batch, heads * head_dim], &kv, &kv]);
        // q and k are constants: with one key the probability is 1, so their gradients are 0 and the device's are rounding errors.
        let (on_device_q, on_device_k) = (q.clone(), k.clone());
        check(
            &format!("attention of one position as {:?}", shape(sizes)),
            [v],
            move |v| {
                let (tape, gpu) = (v[0].tape(), v[0].value().gpu());
                let q = tape.constant(upload(gpu, &on_device_q)?);
                q.attention(&tape.constant(upload(gpu, &on_device_k)?), &v[0], shape(sizes))
            },
            |v| attention(&q, &k, &v[0], square(sizes, 1)),
            |v, dy| {
                let [_, _, dv] = attention_vjp(&q, &k, &v[0], square(sizes, 1), dy);
                [dv]
            },
            &[tolerance::attention(1, head_dim)],
        );
    }
}

#[test]
fn queries_may_be_the_last_of_more_keys() {
    for (sizes, queries, keys) in [([1, 3, 3, 4], 1, 37), ([2, 4, 2, 32], 13, 101)] {
        let [batch, heads, kv_heads, head_dim] = sizes;
        let columns = heads * head_dim;
        // The reference has a query per key: zeros for the missing ones.
        let widen = |x: &Array| {
            let zeros = Array::zeros(&[batch, keys - queries, columns]);
            let x = x.reshape(&[batch, queries, columns]);
            concat(&[&zeros, &x], 1).reshape(&[batch * keys, columns])
        };
        let narrow = |x: &Array| {
            let last = slice(&x.reshape(&[batch, keys, columns]), 1, keys - queries..keys);
            last.reshape(&[batch * queries, columns])
        };
        let kv = [batch * keys, kv_heads * head_dim];
        check(
            &format!("attention of {queries} queries and {keys} keys"),
            random_arrays(1702, [&[batch * queries, columns], &kv, &kv]),
            move |x| x[0].attention(&x[1], &x[2], shape(sizes)),
            |x| narrow(&attention(&widen(&x[0]), &x[1], &x[2], square(sizes, keys))),
            |x, dy| {
                let [dq, dk, dv] = attention_vjp(&widen(&x[0]), &x[1], &x[2], square(sizes, keys), &widen(dy));
                [narrow(&dq), dk, dv]
            },
            &[tolerance::attention(keys, head_dim)],
        );
    }
}

#[test]
fn scores_far_apart_neither_overflow_nor_lose_the_sum() {
    let sizes = [1, 3, 3, 4];
    let [q, k, v] = random_arrays(1703, [&[37, 12], &[37, 12], &[37, 12]]);
    // Scores of up to a few hundred: their absolute errors grow with them and propagate to the probabilities.
    let q = q.times(64.0);
    check(
        "attention with large scores",
        [q, k, v],
        move |x| x[0].attention(&x[1], &x[2], shape(sizes)),
        |x| attention(&x[0], &x[1], &x[2], square(sizes, 37)),
        |x, dy| attention_vjp(&x[0], &x[1], &x[2], square(sizes, 37), dy),
        &[tolerance::attention(37, 4).times(64.0)],
    );
}

#[test]
fn shapes_that_are_no_heads_are_refused() {
    let refused = |shapes: [&[usize]; 3], sizes: [usize; 4], what: &str| {
        let [q, k, v] = shapes;
        let text = format!("attention: q {q:?}, k {k:?}, v {v:?} as {:?}: {what}", shape(sizes));
        assert_refused(&shapes, move |x| x[0].attention(&x[1], &x[2], shape(sizes)), &text);
    };
    let widths = "q [.., 16] and k and v [.., 8] expected";
    refused([&[6, 16], &[6, 8], &[6, 4]], [2, 4, 2, 4], widths);
    refused([&[6, 12], &[6, 8], &[6, 8]], [2, 4, 2, 4], widths);
    refused([&[6, 16], &[6, 16], &[6, 16]], [2, 4, 2, 4], widths);
    refused([&[6, 12], &[6, 8], &[6, 8]], [1, 3, 2, 4], "3 heads are no multiple of 2 kv_heads");
    refused([&[6, 12], &[6, 8], &[6, 8]], [0, 3, 1, 4], "sizes above 0 and a head_dim up to 256 expected");
    refused([&[6, 257], &[6, 257], &[6, 257]], [1, 1, 1, 257], "sizes above 0 and a head_dim up to 256 expected");
    let sequences = "2 whole sequences with at least as many keys as queries expected";
    refused([&[7, 16], &[7, 8], &[7, 8]], [2, 4, 2, 4], sequences);
    refused([&[8, 16], &[6, 8], &[6, 8]], [2, 4, 2, 4], sequences);
    let rank = "attention: shape [2, 3, 16]: 2 dimensions expected";
    assert_refused(&[&[2, 3, 16], &[6, 8], &[6, 8]], |x| x[0].attention(&x[1], &x[2], shape([2, 4, 2, 4])), rank);
}
