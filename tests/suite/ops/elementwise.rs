use polytape::gpu::Kernel;
use polytape::{Error, Tensor, map};

use super::SHAPES;
use crate::check::{assert_refused, check, upload};
use crate::device;
use crate::reference::differences::random_arrays;
use crate::reference::elementwise::{add, add_vjp, mul, mul_vjp, scale, scale_vjp, sub, sub_vjp};
use crate::tolerance::{ELEMENTWISE, assert_close};

#[test]
fn add_matches() {
    for shape in SHAPES {
        let inputs = random_arrays(1001, [shape, shape]);
        check("add", inputs, |x| x[0].add(&x[1]), |x| add(&x[0], &x[1]), |_, dy| add_vjp(dy), &[ELEMENTWISE]);
    }
}

#[test]
fn sub_matches() {
    for shape in SHAPES {
        let inputs = random_arrays(1002, [shape, shape]);
        check("sub", inputs, |x| x[0].sub(&x[1]), |x| sub(&x[0], &x[1]), |_, dy| sub_vjp(dy), &[ELEMENTWISE]);
    }
}

#[test]
fn mul_matches() {
    for shape in SHAPES {
        let inputs = random_arrays(1003, [shape, shape]);
        let vjp = |x: &[_], dy: &_| mul_vjp(&x[0], &x[1], dy);
        check("mul", inputs, |x| x[0].mul(&x[1]), |x| mul(&x[0], &x[1]), vjp, &[ELEMENTWISE]);
    }
}

#[test]
fn scale_matches() {
    for shape in SHAPES {
        let inputs = random_arrays(1004, [shape]);
        check("scale", inputs, |x| x[0].scale(-1.75), |x| scale(&x[0], -1.75), |_, dy| scale_vjp(-1.75, dy), &[ELEMENTWISE]);
    }
}

#[test]
fn tensors_without_a_tape_compute_the_same() {
    let [x, y, factor] = random_arrays(1005, [&[7, 13], &[7, 13], &[3]]);
    for gpu in device::all() {
        let results = || -> polytape::Result<[Vec<f32>; 4]> {
            let (a, b, c) = (upload(gpu, &x)?, upload(gpu, &y)?, upload(gpu, &factor)?);
            let results = [a.weighted_sum(2.0, &b, -0.5)?, a.hadamard(&b)?, a.scaled(3.0)?, a.scaled_by(&c, -2.0)?];
            polytape::read_all(results.each_ref())
        };
        let [sum, product, scaled, scaled_by] = results().expect("elementwise operations");
        assert_close("weighted_sum", &sum, &x.times(2.0).plus(&y.times(-0.5)), ELEMENTWISE);
        assert_close("hadamard", &product, &mul(&x, &y), ELEMENTWISE);
        assert_close("scaled", &scaled, &x.times(3.0), ELEMENTWISE);
        assert_close("scaled_by", &scaled_by, &x.times(-2.0 * factor.data[0]), ELEMENTWISE);
    }
}

#[test]
fn shapes_that_differ_are_refused() {
    let shapes: [&[usize]; 2] = [&[2, 3], &[3, 2]];
    assert_refused(&shapes, |x| x[0].add(&x[1]), "add: [2, 3] and [3, 2]: the shapes differ");
    assert_refused(&shapes, |x| x[0].sub(&x[1]), "sub: [2, 3] and [3, 2]: the shapes differ");
    assert_refused(&shapes, |x| x[0].mul(&x[1]), "mul: [2, 3] and [3, 2]: the shapes differ");
    let [a, b] = shapes.map(|shape| Tensor::zeros(device::default(), shape).expect("a tensor"));
    match a.hadamard(&b) {
        Err(Error::Shape { op: "mul", shapes: found, .. }) => assert_eq!(found, shapes.map(|shape| shape.to_vec())),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_elementwise_kernel_over_other_numels_is_refused() {
    static NONE: Kernel = Kernel::new("none", "", "main", &[]);
    let [a, b] = [2, 3].map(|size| Tensor::zeros(device::default(), &[size]).expect("a tensor"));
    let text = |tensors: &[&Tensor], whole| map(&NONE, &[], tensors, whole, &[]).expect_err("a refusal").to_string();
    assert_eq!(text(&[], None), "map: no tensors given");
    assert_eq!(text(&[&a, &b], None), "map: [[2], [3]]: the numels differ");
    assert_eq!(text(&[&a, &b], Some(0)), "kernel none: 2 buffers given, 0 bindings declared");
}

#[test]
fn tensors_of_no_or_too_many_dimensions_are_refused() {
    for shape in [&[][..], &[2, 0], &[1, 1, 1, 1, 1], &[1 << 20, 1 << 20]] {
        let error = Tensor::zeros(device::default(), shape).expect_err("no such tensor");
        assert!(error.to_string().starts_with(&format!("tensor: shape {shape:?}: ")), "{error}");
    }
    let error = Tensor::from_slice(device::default(), &[1.0; 5], &[2, 3]).expect_err("one value is missing");
    assert_eq!(error.to_string(), "from_slice: 5 values for shape [2, 3], which has 6 elements");
}

#[test]
fn tensors_may_be_larger_than_one_dimension_of_workgroups() -> polytape::Result<()> {
    const LEN: usize = 32_768 * 256 + 1_027;
    let value = |i: usize| (i % 65_521) as f32;
    for gpu in device::all() {
        let x = Tensor::from_slice(gpu, &(0..LEN).map(value).collect::<Vec<_>>(), &[LEN])?;
        let wrong = x.scaled(2.0)?.to_vec()?.iter().enumerate().position(|(i, y)| *y != 2.0 * value(i));
        assert_eq!(wrong, None, "{} kernels", gpu.kernels());
    }
    Ok(())
}
