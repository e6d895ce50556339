use crate::check::{assert_refused, check};
use crate::reference::Array;
use crate::reference::differences::random_arrays;
use crate::reference::normalize::{rms_norm, rms_norm_vjp, softmax, softmax_vjp};
use crate::tolerance::{normalize, reduction};

/// The last dimension is normalized: one, primes, more than a workgroup of 256, several strides in vec4.
/// The last has more rows than one dimension of workgroups.
const SHAPES: [&[usize]; 7] = [&[1, 1], &[7, 13], &[3, 5, 2, 11], &[5, 257], &[65, 33], &[30, 2052], &[33_001, 5]];

fn columns(shape: &[usize]) -> usize {
    shape[shape.len() - 1]
}

#[test]
fn softmax_matches() {
    for shape in SHAPES {
        let inputs = random_arrays(1401, [shape]);
        let tolerances = [normalize(columns(shape))];
        check("softmax", inputs, |x| x[0].softmax(), |x| softmax(&x[0]), |x, dy| softmax_vjp(&x[0], dy), &tolerances);
    }
}

#[test]
fn softmax_of_large_logits_neither_overflows_nor_loses_its_rows() {
    // ±80: the exponentials would overflow f32 without subtracting the maximum.
    let [x] = random_arrays(1402, [&[13, 101]]);
    let x = Array::from_fn(&x.shape, |index| if index % 3 == 0 { 80.0 * x.data[index].signum() } else { x.data[index] });
    check("softmax", [x], |x| x[0].softmax(), |x| softmax(&x[0]), |x, dy| softmax_vjp(&x[0], dy), &[normalize(101)]);
}

#[test]
fn rms_norm_matches() {
    for shape in SHAPES {
        let rows = shape.iter().product::<usize>() / columns(shape);
        let inputs = random_arrays(1403, [shape, &shape[shape.len() - 1..]]);
        let tolerance = normalize(columns(shape));
        // In a row of one element the gradient cancels up to eps: a small eps would leave only rounding errors.
        let eps = if columns(shape) == 1 { 0.5 } else { 1e-5 };
        check(
            "rms_norm",
            inputs,
            move |x| x[0].rms_norm(&x[1], eps),
            |x| rms_norm(&x[0], &x[1], f64::from(eps)),
            |x, dy| rms_norm_vjp(&x[0], &x[1], f64::from(eps), dy),
            &[tolerance, tolerance, tolerance.and(reduction(rows))],
        );
    }
}

#[test]
fn rms_norm_of_small_rows_is_held_up_by_eps() {
    let [x, w] = random_arrays(1404, [&[7, 37], &[37]]);
    let x = x.map(|x| f64::from((1e-3 * x) as f32));
    check(
        "rms_norm",
        [x, w],
        |x| x[0].rms_norm(&x[1], 1e-5),
        |x| rms_norm(&x[0], &x[1], f64::from(1e-5f32)),
        |x, dy| rms_norm_vjp(&x[0], &x[1], f64::from(1e-5f32), dy),
        &[normalize(37)],
    );
}

#[test]
fn rms_norm_refuses_a_weight_of_another_width() {
    let text = "rms_norm: [4, 8] with weight [6]: a weight of 8 expected";
    assert_refused(&[&[4, 8], &[6]], |x| x[0].rms_norm(&x[1], 1e-5), text);
}
