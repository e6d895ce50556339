//! Clipping to a global norm.

use polytape::optim::Clip;
use polytape::{Gradients, Role};

use super::{Parameter, gradients_of, params_of};
use crate::device;
use crate::reference::Array;
use crate::reference::array::seeded;
use crate::tolerance::{ELEMENTWISE, assert_close_scalar, reduction};

/// [norm, factor] of gradients on every device.
fn clips(gradients: &[Array], max: f32) -> Vec<[f32; 2]> {
    clips_of_scaled(gradients, max, 1.0)
}

/// [norm, factor] of gradients scaled by `scale`, on every device.
fn clips_of_scaled(gradients: &[Array], max: f32, scale: f32) -> Vec<[f32; 2]> {
    let gradients: Vec<Array> = gradients.iter().map(|gradient| gradient.times(f64::from(scale))).collect();
    let of_device = |gpu| {
        let parameters: Vec<Parameter> =
            gradients.iter().zip(NAMES).map(|(g, name)| Parameter::new(name, Role::Matrix, g.clone())).collect();
        let params = params_of(gpu, &parameters)?;
        let values = Clip::with_loss_scale(gpu, &gradients_of(&params, &gradients)?, max, scale)?.values().to_vec()?;
        Ok([values[0], values[1]])
    };
    device::all().iter().map(|gpu| of_device(gpu).unwrap_or_else(|error: polytape::Error| panic!("clip: {error}"))).collect()
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// One element, a prime, just over a chunk of 16,384, several chunks.
fn gradients() -> Vec<Array> {
    let mut rng = seeded(3101);
    [&[1][..], &[101], &[127, 131], &[200, 260]].map(|shape| Array::random(shape, &mut rng)).to_vec()
}

#[test]
fn the_norm_goes_over_all_gradients_and_the_factor_bounds_it() {
    let gradients = gradients();
    let numel: usize = gradients.iter().map(Array::len).sum();
    let norm = gradients.iter().map(|g| g.dot(g)).sum::<f64>().sqrt();
    for max in [0.5, 1.0, 0.999 * norm as f32, 1.001 * norm as f32, 1e6, f32::INFINITY] {
        let want = (f64::from(max) / (norm + 1e-6)).min(1.0);
        for [found, factor] in clips(&gradients, max) {
            assert_close_scalar("norm", found, norm, 0.0, reduction(numel));
            assert_close_scalar("factor", factor, want, 0.0, reduction(numel));
            assert!(want < 1.0 || factor == 1.0, "gradients within the limit are not touched");
        }
    }
}

#[test]
fn a_loss_scale_is_not_seen_in_the_norm_and_divided_away_by_the_factor() {
    let gradients = gradients();
    for max in [0.5, 1e6, f32::INFINITY] {
        let plain = clips(&gradients, max);
        for scale in [0.125, 65_536.0, 16_777_216.0] {
            for ([norm, factor], [wanted_norm, wanted_factor]) in clips_of_scaled(&gradients, max, scale).into_iter().zip(&plain)
            {
                assert_close_scalar("norm", norm, f64::from(*wanted_norm), 0.0, ELEMENTWISE);
                assert_close_scalar("factor", scale * factor, f64::from(*wanted_factor), 0.0, ELEMENTWISE);
            }
        }
    }
}

#[test]
fn zero_gradients_and_none_at_all_have_the_norm_zero() {
    for found in clips(&[Array::zeros(&[5, 7]), Array::zeros(&[3])], 1.0).into_iter().chain(clips(&[], 1.0)) {
        assert_eq!(found, [0.0, 1.0]);
    }
    let none = Clip::new(device::default(), &Gradients::new(), 0.0).expect("a clip");
    assert_eq!(none.values().to_vec().expect("read-back"), [0.0, 0.0], "a limit of 0 lets nothing through");
}

#[test]
fn a_gradient_that_is_not_finite_shows_in_the_norm_and_in_the_factor() {
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let mut gradients = gradients();
        gradients[2].data[16_400] = bad;
        for [norm, factor] in clips(&gradients, 1.0) {
            assert!(!norm.is_finite(), "{bad} gives the norm {norm}");
            assert!(!factor.is_finite(), "{bad} gives the factor {factor}");
        }
    }
}

#[test]
fn the_largest_gradients_that_float32_can_square_are_clipped() {
    for [norm, factor] in clips(&[Array::full(&[4], 5e18)], 1.0) {
        assert_close_scalar("norm", norm, 1e19, 0.0, reduction(4));
        assert_close_scalar("factor", factor, 1e-19, 0.0, reduction(4));
    }
}
