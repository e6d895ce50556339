//! The authors' numbers: every shape and level of pc.json, through the public interface.

use super::Layer;
use crate::device;
use crate::golden::{self, PcCase, f32_array};
use crate::reference::Array;
use crate::reference::pc::{Pc, PowerVectors};
use crate::tolerance::{assert_close, assert_close_scalar, pc, power_iteration};

fn layer(case: &PcCase, u: &[f64], v: &[f64]) -> Layer {
    Layer {
        w: f32_array(&[case.rows, case.cols], &case.w),
        vectors: vec![PowerVectors { u: f32_array(&[case.rows], u), v: f32_array(&[case.cols], v) }],
        gamma: vec![f64::from(case.gamma as f32)],
        pc: Pc { eps: case.eps, ..Pc::of_level(case.level) },
        learnable_gamma: true,
    }
}

fn name(case: &PcCase, what: &str) -> String {
    format!("{what} of level {} [{}, {}]", case.level, case.rows, case.cols)
}

#[test]
fn effective_weights_and_gradients_are_the_golden_ones() {
    for gpu in device::all() {
        for case in golden::pc() {
            let (shape, layer) = ([case.rows, case.cols], layer(&case, &case.u, &case.v));
            let dy = f32_array(&shape, &case.dy);
            let got = layer.on(gpu).and_then(|device| device.run(&dy)).expect("a layer");
            let tolerance = pc(&layer.pc.coefficients, case.rows.min(case.cols), case.rows.max(case.cols));
            let want = Array::new(&shape, case.y.clone());
            let scale = dy.norm() * want.norm() / case.gamma / (dy.len() as f64).sqrt();
            assert_close(&name(&case, "W_eff"), &got.effective, &want, tolerance);
            assert_close(&name(&case, "dW"), &got.dw, &Array::new(&shape, case.dw.clone()), tolerance);
            let dgamma = got.dgamma.expect("γ is trained")[0];
            assert_close_scalar(&name(&case, "dγ"), dgamma, case.dgamma, scale, tolerance);
        }
    }
}

#[test]
fn a_refresh_gives_the_golden_vectors_and_sigma() {
    for gpu in device::all() {
        for case in golden::pc() {
            let mut device = layer(&case, &case.u0, &case.v0).on(gpu).expect("a layer");
            let [u, v] = device.refresh().expect("a refresh");
            let tolerance = power_iteration(case.rows, case.cols);
            assert_close(&name(&case, "u"), &u, &f32_array(&[case.rows], &case.u), tolerance);
            assert_close(&name(&case, "v"), &v, &f32_array(&[case.cols], &case.v), tolerance);
            // σ = uᵀWv + eps is not exposed by the device: this is σ computed from its u and v.
            let w = f32_array(&[case.rows, case.cols], &case.w);
            let column = Array::from_f32(&[case.cols, 1], &v);
            let sigma = Array::from_f32(&[1, case.rows], &u).matmul(&w.matmul(&column)).item() + case.eps;
            assert_close_scalar(&name(&case, "σ"), sigma as f32, case.sigma, 0.0, tolerance);
        }
    }
}
