//! Random layers against the reference: shapes at and beside the edges of tiles, every norm, polynomials up to degree 7.

use super::Layer;
use crate::device;
use crate::reference::Array;
use crate::reference::pc::{Norm, Pc};
use crate::tolerance::{Tolerance, assert_close, assert_close_scalar, pc, power_iteration, reduction};

/// One element, one row, one column; primes; just over a tile; square; several workgroups.
const SHAPES: [[usize; 2]; 11] =
    [[1, 1], [1, 7], [7, 1], [1, 260], [13, 7], [33, 65], [65, 33], [64, 64], [37, 37], [200, 120], [128, 256]];

const NORMS: [Norm; 3] = [Norm::Spectral, Norm::Frobenius, Norm::None];

/// Polynomials beyond the levels: longer, with alternating signs that cancel like those of the levels; a leading coefficient too small
/// to divide by; trailing zeros; only zeros after a₀.
const OTHERS: [&[f64]; 7] = [
    &[1.0, 0.5, -0.25, 0.75, 0.0009765625],
    &[2.0, -1.0, 0.5, 0.0, 0.0],
    &[1.5, -0.5, 0.0],
    &[0.0, 0.0],
    &[2.5, -4.0, 5.5, -5.0, 3.0, -1.0],
    &[2.75, -5.5, 9.0, -10.0, 7.5, -3.5, 0.75],
    &[3.0, -7.0, 13.0, -16.0, 13.5, -8.0, 3.0, -0.5],
];

fn of_coefficients(coefficients: &[f64]) -> Pc {
    Pc { coefficients: coefficients.to_vec(), ..Pc::of_level(0) }
}

/// Without a norm the polynomial sees the raw singular values: kept below 1, its intended range.
fn tamed(layer: Layer) -> Layer {
    if layer.pc.norm != Norm::None {
        return layer;
    }
    let s = crate::reference::pc::divisor(&layer.w, &layer.vectors[0], &Pc::of_level(0));
    let w = layer.w.times(0.9 / s);
    layer.with_weight(w)
}

fn check(layer: &Layer) {
    let (heads, dy) = (layer.vectors.len(), layer.cotangent());
    let (rows, columns) = (layer.w.shape[0] / heads, layer.w.shape[1]);
    let tolerance = pc(&layer.pc.coefficients, rows.min(columns), rows.max(columns));
    let (want, [dw, dgamma]) = (layer.forward(), layer.vjp(&dy));
    for gpu in device::all() {
        let name = |what: &str| {
            let Layer { w, gamma, pc, .. } = layer;
            format!("{what} of {:?} with {} kernels, γ {gamma:?}, {pc:?}", w.shape, gpu.kernels())
        };
        let got = layer.on(gpu).and_then(|device| device.run(&dy)).unwrap_or_else(|error| panic!("{}: {error}", name("layer")));
        assert_close(&name("W_eff"), &got.effective, &want, tolerance);
        assert_close(&name("dW"), &got.dw, &dw, of_gradient(layer, &dw, &dy, tolerance));
        assert_eq!(got.dgamma.is_some(), layer.learnable_gamma);
        for (head, got) in got.dgamma.iter().flatten().enumerate() {
            let block = |x: &Array| crate::reference::layout::slice(x, 0, head * rows..(head + 1) * rows);
            // W_eff at γ = 1: dγ is the inner product with it.
            let unit = Layer { gamma: vec![1.0; heads], ..layer.clone() }.forward();
            let scale = block(&dy).norm() * block(&unit).norm() / ((rows * columns) as f64).sqrt();
            assert_close_scalar(&name("dγ"), *got, dgamma.data[head], scale, tolerance);
        }
    }
}

/// dW = M − ⟨M, N⟩·u·vᵀ vanishes for one row or column: the error is relative to M.
fn of_gradient(layer: &Layer, dw: &Array, dy: &Array, tolerance: Tolerance) -> Tolerance {
    let gain = layer.gamma[0].abs() * layer.pc.coefficients[0];
    let cancelled = gain * dy.norm() / dw.norm().max(f64::MIN_POSITIVE);
    if layer.w.shape.contains(&1) && layer.gamma[0] != 0.0 { tolerance.times(cancelled.max(1.0)) } else { tolerance }
}

#[test]
fn every_level_matches_on_every_shape() {
    for (seed, shape) in (2001..).zip(SHAPES) {
        for level in 0..=4 {
            check(&Layer::random(seed, shape, 1, Pc::of_level(level)));
        }
    }
}

#[test]
fn matrices_that_are_not_small_match() {
    check(&Layer::random(2016, [1030, 256], 1, Pc::of_level(4)));
    check(&Layer::random(2017, [256, 1030], 1, Pc { norm: Norm::Frobenius, ..Pc::of_level(2) }));
}

#[test]
fn every_norm_matches_with_and_without_recovery() {
    for (seed, shape) in (2021..).zip([[7, 1], [33, 65], [65, 33], [36, 60]]) {
        for norm in NORMS {
            for recover_norm in [true, false] {
                for level in [0, 2, 4] {
                    check(&tamed(Layer::random(seed, shape, 1, Pc { norm, recover_norm, ..Pc::of_level(level) })));
                }
            }
        }
    }
}

#[test]
fn polynomials_that_are_no_level_match() {
    for (seed, shape) in (2041..).zip([[13, 7], [33, 65], [60, 36], [128, 256]]) {
        for coefficients in OTHERS {
            check(&Layer::random(seed, shape, 1, of_coefficients(coefficients)));
        }
    }
}

#[test]
fn gamma_may_be_zero_negative_or_untrained() {
    for shape in [[33, 65], [65, 33]] {
        for level in [0, 4] {
            let layer = Layer::random(2061, shape, 1, Pc::of_level(level));
            for gamma in [0.0, -0.5, 1.0] {
                check(&Layer { gamma: vec![gamma], ..layer.clone() });
            }
            check(&Layer { learnable_gamma: false, gamma: vec![0.75], ..layer });
        }
    }
}

#[test]
fn every_head_is_a_matrix_of_its_own() {
    for (shape, heads) in [([12, 5], 3), ([64, 24], 2), ([99, 65], 3), ([256, 128], 4)] {
        for level in [0, 2, 4] {
            for norm in NORMS {
                check(&tamed_heads(Layer::random(2071, shape, heads, Pc { norm, ..Pc::of_level(level) })));
            }
        }
    }
}

fn tamed_heads(layer: Layer) -> Layer {
    let w = if layer.pc.norm == Norm::None { layer.w.times(1.0 / 32.0) } else { layer.w.clone() };
    layer.with_weight(w)
}

#[test]
fn a_head_gives_the_bits_of_the_same_block_alone() {
    for gpu in device::all() {
        for (shape, heads) in [([24, 16], 1), ([96, 40], 2), ([39, 30], 3)] {
            let layer = Layer::random(2081, shape, heads, Pc::of_level(4));
            let (dy, rows) = (layer.cotangent(), shape[0] / heads);
            let together = layer.on(gpu).and_then(|device| device.run(&dy)).expect("all heads");
            for head in 0..heads {
                let block = |x: &Array| crate::reference::layout::slice(x, 0, head * rows..(head + 1) * rows);
                let (vectors, gamma) = (vec![layer.vectors[head].clone()], vec![layer.gamma[head]]);
                let alone = Layer { w: block(&layer.w), vectors, gamma, ..layer.clone() };
                let alone = alone.on(gpu).and_then(|device| device.run(&block(&dy))).expect("one head");
                let part = head * rows * shape[1]..(head + 1) * rows * shape[1];
                assert_eq!(together.effective[part.clone()], alone.effective, "W_eff of head {head} of {heads}");
                assert_eq!(together.dw[part], alone.dw, "dW of head {head} of {heads}");
                assert_eq!(together.dgamma.as_ref().map(|all| all[head]), alone.dgamma.map(|one| one[0]), "dγ of head {head}");
            }
        }
    }
}

#[test]
fn a_refresh_follows_the_reference() {
    // Several chunks of rows, the last with fewer rows than a workgroup takes at a time. Then the longest rows kept in registers: 24
    // Elements per invocation of 8; 4 per invocation of a team of 32, 64 and 128, and 8 of 256.
    let shapes = [
        ([1, 1], 1),
        ([1, 7], 1),
        ([7, 1], 1),
        ([33, 65], 1),
        ([200, 120], 1),
        ([96, 40], 3),
        ([131, 36], 1),
        ([210, 33], 2),
        ([40, 191], 1),
        ([40, 193], 1),
        ([37, 768], 1),
        ([37, 772], 1),
        ([70, 512], 1),
        ([70, 516], 1),
        ([35, 1024], 1),
        ([35, 1028], 1),
        ([33, 2048], 1),
        ([33, 2052], 1),
        ([5, 8192], 1),
        ([5, 8196], 1),
        // Not small: with a dispatch for each pass.
        ([2100, 128], 1),
        ([1000, 267], 1),
        ([600, 512], 1),
        ([300, 1024], 1),
        ([140, 2048], 1),
    ];
    let cases = shapes.into_iter().flat_map(|case| [(case, 1), (case, 2)]);
    for (seed, ((shape, heads), iterations)) in (2091..).zip(cases) {
        let mut layer = Layer::random(seed, shape, heads, Pc::of_level(2));
        // One or two iterations from random vectors: convergence cannot hide an error.
        layer.vectors = Layer::random(seed + 50, shape, heads, Pc { power_iterations: 0, ..Pc::of_level(2) }).vectors;
        layer.pc.power_iterations = iterations;
        let mut want = layer.clone();
        want.refresh();
        let tolerance = reduction(shape[0]).and(reduction(shape[1])).and(power_iteration(1, 1)).times(iterations as f64);
        for gpu in device::all() {
            let [u, v] = layer.on(gpu).and_then(|mut device| device.refresh()).expect("a refresh");
            let stacked = |part: fn(&crate::reference::pc::PowerVectors) -> &Array| {
                let values: Vec<f64> = want.vectors.iter().flat_map(|vectors| part(vectors).data.clone()).collect();
                Array::new(&[values.len()], values)
            };
            assert_close(&format!("u of {shape:?}"), &u, &stacked(|vectors| &vectors.u), tolerance);
            assert_close(&format!("v of {shape:?}"), &v, &stacked(|vectors| &vectors.v), tolerance);
        }
    }
}
