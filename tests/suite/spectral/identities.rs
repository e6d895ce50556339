//! Identities that every PC layer must satisfy.

use super::Layer;
use crate::check::upload;
use crate::device;
use crate::reference::Array;
use crate::reference::pc::{Norm, Pc, divisor};
use crate::reference::svd::svd;
use crate::tolerance::{assert_close, assert_close_scalar, pc};

const SHAPES: [[usize; 2]; 3] = [[40, 24], [24, 40], [33, 33]];

#[test]
fn a_recovered_norm_makes_the_gradient_orthogonal_to_the_weight() {
    for gpu in device::all() {
        for shape in SHAPES {
            for norm in [Norm::Spectral, Norm::Frobenius] {
                for level in 0..=4 {
                    let layer = Layer::random(2101, shape, 1, Pc { norm, ..Pc::of_level(level) });
                    let got = layer.on(gpu).and_then(|device| device.run(&layer.cotangent())).expect("a layer");
                    let dw = Array::from_f32(&shape, &got.dw);
                    // The rounding of ⟨M, N⟩, against ‖dW‖·‖W‖ for all terms of one sign.
                    let limit = pc(&layer.pc.coefficients, 24, 40).relative;
                    let cosine = dw.dot(&layer.w) / dw.norm() / layer.w.norm();
                    assert!(
                        cosine.abs() < limit,
                        "{shape:?} {norm:?} level {level}: ⟨dW, W⟩ / ‖dW‖‖W‖ = {cosine:e}, limit {limit:e}"
                    );
                }
            }
        }
    }
}

#[test]
fn gamma_times_its_gradient_is_the_product_with_the_effective_weight() {
    for gpu in device::all() {
        for shape in SHAPES {
            for level in 0..=4 {
                for recover_norm in [true, false] {
                    let layer = Layer::random(2111, shape, 1, Pc { recover_norm, ..Pc::of_level(level) });
                    let dy = layer.cotangent();
                    let got = layer.on(gpu).and_then(|device| device.run(&dy)).expect("a layer");
                    let effective = Array::from_f32(&shape, &got.effective);
                    let scale = dy.norm() * effective.norm() / (dy.len() as f64).sqrt();
                    let product = layer.gamma[0] as f32 * got.dgamma.expect("γ is trained")[0];
                    let tolerance = pc(&layer.pc.coefficients, 24, 40);
                    assert_close_scalar("γ·dγ", product, dy.dot(&effective), scale, tolerance);
                }
            }
        }
    }
}

#[test]
fn the_singular_values_go_through_the_polynomial() {
    for gpu in device::all() {
        for shape in SHAPES {
            for level in 0..=4 {
                let layer = Layer::random(2121, shape, 1, Pc::of_level(level));
                let s = divisor(&layer.w, &layer.vectors[0], &layer.pc);
                let polynomial = |x: f64| layer.pc.coefficients.iter().rev().fold(0.0, |sum, a| a + x * x * sum) * x;
                let want = svd(&layer.w).with_values(|sigma| layer.gamma[0] * s * polynomial(sigma / s));
                let got = layer.on(gpu).and_then(|device| device.run(&layer.cotangent())).expect("a layer");
                assert_close("W_eff", &got.effective, &want, pc(&layer.pc.coefficients, 24, 40));
            }
        }
    }
}

#[test]
fn level_zero_keeps_the_weight_but_not_its_gradient() {
    let layer = Layer { gamma: vec![1.0], ..Layer::random(2131, [24, 40], 1, Pc::of_level(0)) };
    for gpu in device::all() {
        let dy = layer.cotangent();
        let got = layer.on(gpu).and_then(|device| device.run(&dy)).expect("a layer");
        assert_eq!(got.effective, layer.w.to_f32(), "level 0 with γ = 1 is the weight itself");
        let difference = Array::from_f32(&dy.shape, &got.dw).minus(&dy);
        let lost = dy.dot(&layer.w) / divisor(&layer.w, &layer.vectors[0], &layer.pc);
        assert!((difference.norm() / lost.abs() - 1.0).abs() < 1e-5, "⟨E, N⟩·u·vᵀ is lost: {}, want {lost}", difference.norm());
    }
}

#[test]
fn the_same_layer_gives_the_same_bits() {
    for gpu in device::all() {
        let layer = Layer::random(2141, [65, 33], 1, Pc::of_level(4));
        let run = || layer.on(gpu).and_then(|device| device.run(&layer.cotangent())).expect("a layer");
        let (first, second) = (run(), run());
        assert_eq!((first.effective, first.dw, first.dgamma), (second.effective, second.dw, second.dgamma));
    }
}

#[test]
fn the_backward_is_the_derivative_of_the_forward_on_the_device() {
    // Along one direction, for the one layer whose derivative needs no stop(s): norm "none".
    let pc = Pc { norm: Norm::None, ..Pc::of_level(2) };
    let layer = Layer::random(2151, [24, 16], 1, pc);
    let layer = layer.clone().with_weight(layer.w.times(0.05));
    let dy = layer.cotangent();
    let direction = crate::reference::differences::random_arrays(2152, [&[24, 16]])[0].times(0.05);
    for gpu in device::all() {
        let mut device = layer.on(gpu).expect("a layer");
        let dw = Array::from_f32(&[24, 16], &device.run(&dy).expect("gradients").dw);
        let step = 1e-2; // truncation h² and rounding 1e-7/h are both near 1e-4
        let mut moved = |by: f64| {
            let w = upload(gpu, &layer.w.plus(&direction.times(by))).expect("an upload");
            device.params.set(device.weight, w).expect("the same shape");
            Array::from_f32(&[24, 16], &device.run(&dy).expect("a layer").effective).dot(&dy)
        };
        let slope = (moved(step) - moved(-step)) / (2.0 * step);
        let want = dw.dot(&direction);
        assert!((slope - want).abs() < 1e-3 * dw.norm() * direction.norm(), "slope {slope}, gradient {want}");
    }
}
