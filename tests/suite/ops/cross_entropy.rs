use polytape::{Indices, Result, Var};
use rand::RngExt;

use crate::check::{assert_refused, check, upload};
use crate::reference::Array;
use crate::reference::array::seeded;
use crate::reference::cross_entropy::{cross_entropy_head, cross_entropy_head_vjp};
use crate::reference::differences::random_arrays;
use crate::tolerance::{cross_entropy, reduction};

fn random_targets(rows: usize, vocabulary: usize) -> Vec<u32> {
    let mut rng = seeded(1801);
    (0..rows).map(|_| rng.random_range(0..vocabulary as u32)).collect()
}

fn loss<'t>(x: &Var<'t>, weight: &Var<'t>, targets: &[u32]) -> Result<Var<'t>> {
    x.head_cross_entropy(weight, &Indices::from_slice(x.value().gpu(), targets)?)
}

fn check_head(name: &str, inputs: [Array; 2]) {
    let ([rows, dim], [vocabulary, _]) = (sizes(&inputs[0]), sizes(&inputs[1]));
    let targets = random_targets(rows, vocabulary);
    let on_device = targets.clone();
    let tolerance = cross_entropy(rows, dim, vocabulary);
    // In dx the target's term is as large as all others together, with opposite sign: the partial sums, and so their rounding
    // errors, are about twice the result.
    let dx = tolerance.and(reduction(vocabulary).times(2.0));
    check(
        name,
        inputs,
        move |x| loss(&x[0], &x[1], &on_device),
        |x| cross_entropy_head(&x[0], &x[1], &targets),
        |x, dy| cross_entropy_head_vjp(&x[0], &x[1], &targets, dy),
        &[tolerance, dx, tolerance],
    );
}

fn sizes(x: &Array) -> [usize; 2] {
    x.shape[..].try_into().expect("a matrix")
}

#[test]
fn loss_and_gradients_match() {
    // With one class only rounding errors remain, so two is the minimum.
    for [rows, dim, vocabulary] in [[1, 1, 2], [7, 13, 37], [65, 33, 129], [68, 36, 260]] {
        check_head("cross-entropy", random_arrays(1802, [&[rows, dim], &[vocabulary, dim]]));
    }
}

#[test]
fn rows_are_walked_in_chunks() {
    // 64 rows of 65,537 logits take half of the 32 MiB workspace, 128 would exceed it: chunks of 64 and 3.
    check_head("cross-entropy in chunks", random_arrays(1803, [&[67, 3], &[65_537, 3]]));
}

#[test]
fn rows_may_be_more_than_one_dimension_of_workgroups() {
    check_head("cross-entropy of many rows", random_arrays(1804, [&[66_000, 1], &[3, 1]]));
}

#[test]
fn a_vocabulary_of_vec4_may_be_wider_than_one_lane_can_walk() {
    check_head("cross-entropy of a wide vocabulary", random_arrays(1805, [&[7, 2], &[200_000, 2]]));
}

#[test]
fn large_logits_neither_overflow_nor_vanish() {
    // Logits up to ±50 and more.
    let [x, weight] = random_arrays(1806, [&[37, 4], &[101, 4]]);
    check_head("cross-entropy of large logits", [x.times(8.0), weight.times(2.0)]);
}

#[test]
fn either_factor_may_be_a_constant() {
    let [x, weight] = random_arrays(1807, [&[13, 5], &[37, 5]]);
    let targets = random_targets(13, 37);
    let tolerance = [cross_entropy(13, 5, 37)];
    let [head, states] = [weight.clone(), x.clone()];
    let [targets_of_head, targets_of_states] = [targets.clone(), targets.clone()];
    let constant = |x: &Var<'_>, array: &Array| upload(x.value().gpu(), array);
    check(
        "cross-entropy with a constant head",
        [x.clone()],
        move |x| loss(&x[0], &x[0].tape().constant(constant(&x[0], &head)?), &targets_of_head),
        |x| cross_entropy_head(&x[0], &weight, &targets),
        |x, dy| {
            let [dx, _] = cross_entropy_head_vjp(&x[0], &weight, &targets, dy);
            [dx]
        },
        &tolerance,
    );
    check(
        "cross-entropy of constant states",
        [weight.clone()],
        move |w| loss(&w[0].tape().constant(constant(&w[0], &states)?), &w[0], &targets_of_states),
        |w| cross_entropy_head(&x, &w[0], &targets),
        |w, dy| {
            let [_, dw] = cross_entropy_head_vjp(&x, &w[0], &targets, dy);
            [dw]
        },
        &tolerance,
    );
}

#[test]
fn shapes_and_targets_that_do_not_fit_are_refused() {
    let refused = |shapes: [&[usize]; 2], targets: &'static [u32], text: &str| {
        assert_refused(&shapes, move |x| loss(&x[0], &x[1], targets), text);
    };
    let expected = "[rows, dim], [vocabulary, dim] and one target per row expected";
    refused([&[2, 8], &[5, 6]], &[0, 1], &format!("cross_entropy: [2, 8] × [5, 6]ᵀ with 2 targets: {expected}"));
    refused([&[2, 8], &[5, 8]], &[0], &format!("cross_entropy: [2, 8] × [5, 8]ᵀ with 1 targets: {expected}"));
    refused([&[2, 8], &[5, 8]], &[4, 5], "cross_entropy: index 5 at position 1: below 5 expected");
    refused([&[2, 8], &[40]], &[0, 1], "cross_entropy: shape [40]: 2 dimensions expected");
    refused([&[1, 2, 8], &[5, 8]], &[0, 1], "cross_entropy: shape [1, 2, 8]: 2 dimensions expected");
}
