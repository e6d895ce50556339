//! The PC layer against golden numbers, finite differences and its own identities.

use super::*;
use crate::array::seeded;
use crate::differences::{assert_near, numerical_gradient, relative_error};
use crate::golden;
use crate::svd::svd;

const SHAPES: [(usize, usize); 3] = [(7, 4), (4, 7), (5, 5)];
const GAMMA: f64 = 1.3;

/// A random W with refreshed vectors, and a random dy.
fn layer(rows: usize, cols: usize, pc: &Pc) -> (Array, PowerVectors, Array) {
    let mut rng = seeded(101);
    let w = Array::random(&[rows, cols], &mut rng);
    let mut vectors = PowerVectors::random(rows, cols, &mut rng);
    refresh(&w, &mut vectors, pc);
    (w, vectors, Array::random(&[rows, cols], &mut rng))
}

#[test]
fn golden_cases_are_reproduced() {
    for case in golden::pc() {
        let (shape, pc) = ([case.rows, case.cols], Pc { eps: case.eps, ..Pc::of_level(case.level) });
        let name = |what| format!("{what} of level {} {shape:?}", case.level);
        let w = golden::f32_array(&shape, &case.w);
        let dy = golden::f32_array(&shape, &case.dy);
        let mut vectors =
            PowerVectors { u: golden::f32_array(&[case.rows], &case.u0), v: golden::f32_array(&[case.cols], &case.v0) };
        refresh(&w, &mut vectors, &pc);
        // The golden u and v were rounded to f32, and everything after them was computed from the rounded vectors.
        let (u, v) = (golden::f32_array(&[case.rows], &case.u), golden::f32_array(&[case.cols], &case.v));
        let half_ulp = 2f64.powi(-24);
        assert_near(&name("u"), &vectors.u, &u, half_ulp);
        assert_near(&name("v"), &vectors.v, &v, half_ulp);
        let vectors = PowerVectors { u, v };
        let sigma = Array::scalar(divisor(&w, &vectors, &pc));
        assert_near(&name("sigma"), &sigma, &Array::scalar(case.sigma), 1e-14);
        // 12 printed digits
        let y = forward(&w, case.gamma, &vectors, &pc);
        assert_near(&name("y"), &y, &Array::new(&shape, case.y), 1e-11);
        let [dw, dgamma] = vjp(&w, case.gamma, &vectors, &pc, &dy);
        assert_near(&name("dw"), &dw, &Array::new(&shape, case.dw), 1e-11);
        assert_near(&name("dgamma"), &dgamma, &Array::scalar(case.dgamma), 1e-11);
    }
}

#[test]
fn vjp_matches_finite_differences_for_every_norm_and_level() {
    for norm in [Norm::Spectral, Norm::Frobenius, Norm::None] {
        for recover_norm in [true, false] {
            for level in 0..=4 {
                for (rows, cols) in SHAPES {
                    check_differences(rows, cols, &Pc { norm, recover_norm, ..Pc::of_level(level) });
                }
            }
        }
    }
}

fn check_differences(rows: usize, cols: usize, pc: &Pc) {
    let (w, vectors, dy) = layer(rows, cols, pc);
    let w = w.times(0.2); // without a norm, level 4 of a random matrix leaves the range where differences are exact
    let [dw, dgamma] = vjp(&w, GAMMA, &vectors, pc, &dy);
    let stopped = divisor(&w, &vectors, pc);
    let effective = |x: &[Array]| forward_recovering(&x[0], x[1].item(), stopped, &vectors, pc);
    let inputs = [w.clone(), Array::scalar(GAMMA)];
    let name = format!("{rows}×{cols} {pc:?}");
    assert_near(&format!("dw {name}"), &dw, &numerical_gradient(&inputs, 0, &dy, effective), 1e-6);
    assert_near(&format!("dgamma {name}"), &dgamma, &numerical_gradient(&inputs, 1, &dy, effective), 1e-6);
}

#[test]
fn the_gradient_is_orthogonal_to_the_weight() {
    for norm in [Norm::Spectral, Norm::Frobenius] {
        for level in 0..=4 {
            for (rows, cols) in SHAPES {
                // Scaling W changes nothing but stop(s); what is left is the share of eps in s.
                let pc = Pc { norm, eps: 0.0, ..Pc::of_level(level) };
                let (w, vectors, dy) = layer(rows, cols, &pc);
                let [dw, _] = vjp(&w, GAMMA, &vectors, &pc, &dy);
                assert!(dw.dot(&w).abs() < 1e-12 * dw.norm() * w.norm(), "{norm:?} level {level}");
            }
        }
    }
}

#[test]
fn gamma_times_its_gradient_is_the_product_with_the_effective_weight() {
    for level in 0..=4 {
        for (rows, cols) in SHAPES {
            let pc = Pc::of_level(level);
            let (w, vectors, dy) = layer(rows, cols, &pc);
            let [_, dgamma] = vjp(&w, GAMMA, &vectors, &pc, &dy);
            let want = dy.dot(&forward(&w, GAMMA, &vectors, &pc));
            assert!((GAMMA * dgamma.item() - want).abs() < 1e-12 * want.abs().max(1.0));
        }
    }
}

#[test]
fn the_singular_values_go_through_the_polynomial() {
    for level in 0..=4 {
        for (rows, cols) in SHAPES {
            let pc = Pc::of_level(level);
            let (w, vectors, _) = layer(rows, cols, &pc);
            let s = divisor(&w, &vectors, &pc);
            let polynomial = |x: f64| pc.coefficients.iter().rev().fold(0.0, |sum, a| a + x * x * sum) * x;
            let want = svd(&w).with_values(|sigma| GAMMA * s * polynomial(sigma / s));
            assert_near("W_eff", &forward(&w, GAMMA, &vectors, &pc), &want, 1e-12);
        }
    }
}

#[test]
fn level_zero_with_recovery_keeps_the_weight_but_not_the_gradient() {
    let pc = Pc::of_level(0);
    let (w, vectors, dy) = layer(6, 4, &pc);
    assert!(relative_error(&forward(&w, 1.0, &vectors, &pc), &w) < 1e-14);
    let [dw, _] = vjp(&w, 1.0, &vectors, &pc, &dy);
    let lost = dy.dot(&w) / divisor(&w, &vectors, &pc);
    let outer = vectors.u.reshape(&[6, 1]).matmul(&vectors.v.reshape(&[1, 4]));
    assert_near("dw", &dw, &dy.minus(&outer.times(lost)), 1e-13);
}

#[test]
fn power_iteration_approaches_the_norm_from_below() {
    let pc = Pc::of_level(2);
    let (w, mut vectors, _) = layer(9, 6, &pc);
    let (largest, estimate) = (svd(&w).sigma[0], |v: &PowerVectors| v.u.dot(&apply(&w, &v.v)));
    assert!(estimate(&vectors) <= largest);
    (0..40).for_each(|_| refresh(&w, &mut vectors, &pc));
    assert!((estimate(&vectors) / largest - 1.0).abs() < 1e-6);
}

#[test]
fn heads_are_preconditioned_apart() {
    let (pc, gamma, mut rng) = (Pc::of_level(2), [1.3, 0.8], seeded(102));
    let w = Array::random(&[6, 5], &mut rng);
    let dy = Array::random(&[6, 5], &mut rng);
    let mut vectors = [(); 2].map(|()| PowerVectors::random(3, 5, &mut rng));
    refresh_per_head(&w, &mut vectors, &pc);
    let y = forward_per_head(&w, &gamma, &vectors, &pc);
    let [dw, dgamma] = vjp_per_head(&w, &gamma, &vectors, &pc, &dy);
    for head in 0..2 {
        let block = |x: &Array| slice(x, 0, 3 * head..3 * head + 3);
        assert_eq!(block(&y), forward(&block(&w), gamma[head], &vectors[head], &pc));
        let [of_w, of_gamma] = vjp(&block(&w), gamma[head], &vectors[head], &pc, &block(&dy));
        assert_eq!((block(&dw), dgamma.data[head]), (of_w, of_gamma.item()));
    }
}
