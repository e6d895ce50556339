use super::SHAPES;
use crate::check::{assert_refused, check};
use crate::reference::Array;
use crate::reference::array::seeded;
use crate::reference::differences::random_arrays;
use crate::reference::elementwise::{
    exp, exp_vjp, gelu, gelu_vjp, log, log_vjp, relu, relu_vjp, silu, silu_vjp, swiglu, swiglu_vjp, tanh, tanh_vjp,
};
use crate::tolerance::{ELEMENTWISE, EXACT, TRANSCENDENTAL};

/// Mixed signs, magnitudes log-uniform from 10^low to 10^high.
fn spread(seed: u64, low: f64, high: f64) -> Array {
    let [signs] = random_arrays(seed, [&[101]]);
    let size = |index: usize| 10f64.powf(low + (high - low) * index as f64 / 100.0);
    Array::from_fn(&[101], |index| f64::from((signs.data[index].signum() * size(index)) as f32))
}

#[test]
fn silu_matches() {
    let inputs = SHAPES.map(|shape| Array::random(shape, &mut seeded(1101)));
    for x in inputs.into_iter().chain([spread(1102, -6.0, 1.9)]) {
        check("silu", [x], |x| x[0].silu(), |x| silu(&x[0]), |x, dy| silu_vjp(&x[0], dy), &[TRANSCENDENTAL]);
    }
}

#[test]
fn gelu_matches() {
    let inputs = SHAPES.map(|shape| Array::random(shape, &mut seeded(1103)));
    for x in inputs.into_iter().chain([spread(1104, -6.0, 1.9)]) {
        check("gelu", [x], |x| x[0].gelu(), |x| gelu(&x[0]), |x, dy| gelu_vjp(&x[0], dy), &[TRANSCENDENTAL]);
    }
}

#[test]
fn relu_matches() {
    let inputs = SHAPES.map(|shape| Array::random(shape, &mut seeded(1105)));
    let edge = Array::new(&[5], vec![0.0, -0.0, 0.5f64.powi(99), -0.5f64.powi(99), -2f64.powi(99)]);
    for x in inputs.into_iter().chain([edge]) {
        check("relu", [x], |x| x[0].relu(), |x| relu(&x[0]), |x, dy| relu_vjp(&x[0], dy), &[EXACT]);
    }
}

#[test]
fn tanh_matches_near_zero_and_where_it_is_flat() {
    let inputs = SHAPES.map(|shape| Array::random(shape, &mut seeded(1106)));
    // Separately, so that errors are relative to each range: the linear part of tanh, the end of its series, saturation.
    let near_zero = [spread(1107, -9.0, -3.0), spread(1108, -1.0, 0.0)];
    let flat = Array::from_fn(&[37], |index| 2.0 + index as f64 / 8.0);
    let huge = Array::new(&[4], vec![20.0, -80.0, 1e4, -1e30]);
    for x in inputs.into_iter().chain(near_zero).chain([flat, huge]) {
        check("tanh", [x], |x| x[0].tanh(), |x| tanh(&x[0]), |x, dy| tanh_vjp(&x[0], dy), &[TRANSCENDENTAL]);
    }
}

#[test]
fn exp_matches() {
    let inputs = SHAPES.map(|shape| Array::random(shape, &mut seeded(1109)));
    for x in inputs.into_iter().chain([spread(1110, -6.0, 0.69)]) {
        check("exp", [x], |x| x[0].exp(), |x| exp(&x[0]), |x, dy| exp_vjp(&x[0], dy), &[TRANSCENDENTAL]);
    }
}

#[test]
fn log_matches_down_to_tiny_numbers() {
    let inputs = SHAPES.map(|shape| Array::random(shape, &mut seeded(1111)));
    let tiny = spread(1112, -37.0, -3.0);
    let huge = spread(1113, 0.5, 37.0);
    for x in inputs.into_iter().chain([tiny, huge]) {
        let x = x.map(|x| x.abs().max(1e-37));
        check("log", [x], |x| x[0].log(), |x| log(&x[0]), |x, dy| log_vjp(&x[0], dy), &[TRANSCENDENTAL]);
    }
}

#[test]
fn swiglu_matches() {
    let inputs = SHAPES.map(|shape| random_arrays(1114, [shape, shape]));
    let saturated = [spread(1115, -6.0, 1.9), spread(1116, -1.0, 0.5)];
    for inputs in inputs.into_iter().chain([saturated]) {
        let vjp = |x: &[_], dy: &_| swiglu_vjp(&x[0], &x[1], dy);
        check("swiglu", inputs, |x| x[0].swiglu(&x[1]), |x| swiglu(&x[0], &x[1]), vjp, &[TRANSCENDENTAL]);
    }
}

#[test]
fn swiglu_of_one_input_as_gate_and_up_matches() {
    for x in SHAPES.map(|shape| Array::random(shape, &mut seeded(1117))) {
        let vjp = |x: &[Array], dy: &Array| {
            let [dgate, dup] = swiglu_vjp(&x[0], &x[0], dy);
            [dgate.plus(&dup)]
        };
        let tolerance = TRANSCENDENTAL.and(ELEMENTWISE);
        check("swiglu of one input", [x], |x| x[0].swiglu(&x[0]), |x| swiglu(&x[0], &x[0]), vjp, &[tolerance]);
    }
}

#[test]
fn swiglu_refuses_shapes_that_differ() {
    assert_refused(&[&[4, 8], &[4, 6]], |x| x[0].swiglu(&x[1]), "swiglu: [4, 8] and [4, 6]: the shapes differ");
}
