//! Weights at the ends of float32's range: results are finite wherever the float64 reference's are.

use super::{Layer, round};
use crate::check::upload;
use crate::device;
use crate::reference::Array;
use crate::reference::pc::{Norm, Pc, PowerVectors};
use crate::tolerance::{assert_close, pc, power_iteration};

fn assert_finite(what: &str, values: &[f32]) {
    assert!(values.iter().all(|value| value.is_finite()), "{what} has values that are not finite: {values:?}");
}

#[test]
fn a_zero_matrix_gives_zeros_and_a_finite_gradient() {
    for gpu in device::all() {
        for norm in [Norm::Spectral, Norm::Frobenius, Norm::None] {
            for level in [0, 2, 4] {
                let shape = [20, 12];
                let mut layer = Layer::random(2201, shape, 1, Pc { norm, ..Pc::of_level(level) });
                layer.w = Array::zeros(&shape); // u and v stay those of another matrix: s is eps alone
                let dy = layer.cotangent();
                let got = layer.on(gpu).and_then(|device| device.run(&dy)).expect("a layer");
                assert_eq!(got.effective, vec![0.0; 240], "{norm:?} level {level}");
                assert_eq!(got.dgamma.expect("γ is trained"), [0.0]);
                // N is 0, so the norm's gradient vanishes and M = γ·a0·E; with norm recovery s cancels. ‖W‖_F has no gradient at
                // 0, where the reference divides 0 by 0; the device uses 0.
                let gain = layer.gamma[0] * layer.pc.coefficients[0];
                assert_close("dW", &got.dw, &dy.times(gain), pc(&layer.pc.coefficients, 12, 20));
            }
        }
    }
}

#[test]
fn a_matrix_that_starts_at_zero_finds_its_vectors_later() {
    // By the formulas alone u and v would become zero and stay zero: s = eps and N = W/eps forever.
    for gpu in device::all() {
        for (shape, heads) in [([20, 12], 1), ([24, 36], 2)] {
            let trained = Layer::random(2211, shape, heads, Pc::of_level(2));
            let zero = Layer { w: Array::zeros(&shape), ..trained.clone() };
            let mut device = zero.on(gpu).expect("a layer");
            let before = ["layer.pc_u", "layer.pc_v"].map(|name| device.values(name).expect("read-back"));
            assert_eq!(device.refresh().expect("a refresh"), before);
            let weight = upload(gpu, &trained.w).expect("a matrix");
            device.params.set(device.weight, weight).expect("the same shape");
            let [u, v] = device.refresh().expect("a refresh");
            let mut want = trained.clone();
            want.refresh();
            let stacked = |part: fn(&PowerVectors) -> &Array| {
                let values: Vec<f64> = want.vectors.iter().flat_map(|vectors| part(vectors).data.clone()).collect();
                Array::new(&[values.len()], values)
            };
            assert_close("u", &u, &stacked(|vectors| &vectors.u), power_iteration(shape[0], shape[1]));
            assert_close("v", &v, &stacked(|vectors| &vectors.v), power_iteration(shape[0], shape[1]));
        }
    }
}

#[test]
fn huge_weights_match() {
    for gpu in device::all() {
        for norm in [Norm::Spectral, Norm::Frobenius] {
            for level in [0, 2, 4] {
                let layer = Layer::random(2221, [33, 20], 1, Pc { norm, ..Pc::of_level(level) });
                let layer = layer.clone().with_weight(layer.w.times(1e15));
                let (dy, tolerance) = (layer.cotangent(), pc(&layer.pc.coefficients, 20, 33));
                let got = layer.on(gpu).and_then(|device| device.run(&dy)).expect("a layer");
                let [dw, _] = layer.vjp(&dy);
                assert_close("W_eff", &got.effective, &layer.forward(), tolerance);
                assert_close("dW", &got.dw, &dw, tolerance);
                assert_finite("dγ", &got.dgamma.expect("γ is trained"));
                let mut device = layer.on(gpu).expect("a layer");
                let [u, v] = device.refresh().expect("a refresh");
                assert_finite("u", &u);
                assert_finite("v", &v);
            }
        }
    }
}

#[test]
fn tiny_weights_match() {
    // These weights are negligible against eps = 1e-7, and N is 1e-13.
    for gpu in device::all() {
        for norm in [Norm::Spectral, Norm::Frobenius] {
            for level in [0, 2, 4] {
                let mut layer = Layer::random(2231, [33, 20], 1, Pc { norm, ..Pc::of_level(level) });
                layer.w = round(&layer.w.times(1e-20));
                let (dy, tolerance) = (layer.cotangent(), pc(&layer.pc.coefficients, 20, 33));
                let got = layer.on(gpu).and_then(|device| device.run(&dy)).expect("a layer");
                let [dw, _] = layer.vjp(&dy);
                assert_close("W_eff", &got.effective, &layer.forward(), tolerance);
                assert_close("dW", &got.dw, &dw, tolerance);
                assert_finite("dγ", &got.dgamma.expect("γ is trained"));
            }
        }
    }
}

#[test]
fn weights_of_the_size_of_eps_match() {
    // ‖W‖ is a fraction of eps, so s - eps cancels in float32.
    for gpu in device::all() {
        for norm in [Norm::Spectral, Norm::Frobenius] {
            for size in [1e-8, 1e-10, 1e-12] {
                let layer = Layer::random(2241, [33, 20], 1, Pc { norm, ..Pc::of_level(2) });
                let mut layer = layer.clone();
                layer.w = round(&layer.w.times(size));
                let (dy, tolerance) = (layer.cotangent(), pc(&layer.pc.coefficients, 20, 33));
                let got = layer.on(gpu).and_then(|device| device.run(&dy)).expect("a layer");
                let [dw, _] = layer.vjp(&dy);
                let name = format!("{norm:?}, weights of {size:e}");
                assert_close(&format!("W_eff, {name}"), &got.effective, &layer.forward(), tolerance);
                assert_close(&format!("dW, {name}"), &got.dw, &dw, tolerance);
            }
        }
    }
}
