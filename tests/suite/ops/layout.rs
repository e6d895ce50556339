use polytape::Var;

use crate::check::{assert_refused, check};
use crate::reference::differences::random_arrays;
use crate::reference::layout::{concat, concat_vjp, reshape, reshape_vjp, slice, slice_vjp, transpose, transpose_vjp};
use crate::tolerance::EXACT;

#[test]
fn reshape_keeps_the_order() {
    for (from, to) in [(&[1][..], &[1, 1, 1][..]), (&[6, 35], &[5, 7, 2, 3]), (&[2, 3, 5, 7], &[210])] {
        let inputs = random_arrays(1301, [from]);
        let vjp = |x: &[_], dy: &_| reshape_vjp(&x[0], dy);
        check("reshape", inputs, |x| x[0].reshape(to), |x| reshape(&x[0], to), vjp, &[EXACT]);
    }
}

#[test]
fn transpose_exchanges_the_last_two_dimensions() {
    for shape in [&[1, 1][..], &[7, 13], &[101, 37], &[3, 2, 5], &[2, 3, 5, 7], &[130, 260]] {
        let inputs = random_arrays(1302, [shape]);
        check("transpose", inputs, |x| x[0].transpose(), |x| transpose(&x[0]), |_, dy| transpose_vjp(dy), &[EXACT]);
    }
}

#[test]
fn slice_takes_a_part_of_any_dimension() {
    let cases = [
        (&[1][..], 0, 0..1),
        (&[37], 0, 5..36),
        (&[7, 13], 1, 12..13),
        (&[2, 3, 5, 7], 0, 1..2),
        (&[2, 3, 5, 7], 1, 0..2),
        (&[2, 3, 5, 7], 2, 2..5),
        (&[2, 3, 5, 7], 3, 1..7),
        (&[130, 260], 1, 64..196),
    ];
    for (shape, dim, range) in cases {
        let inputs = random_arrays(1303, [shape]);
        let [recorded, again] = [range.clone(), range.clone()];
        check(
            "slice",
            inputs,
            move |x| x[0].slice(dim, recorded.clone()),
            |x| slice(&x[0], dim, range.clone()),
            |x, dy| slice_vjp(&x[0], dim, again.clone(), dy),
            &[EXACT],
        );
    }
}

#[test]
fn concat_joins_along_any_dimension() {
    let cases = [
        ([&[1][..], &[1], &[1]], 0),
        ([&[3, 5], &[1, 5], &[37, 5]], 0),
        ([&[7, 13], &[7, 1], &[7, 101]], 1),
        ([&[2, 3, 5, 7], &[2, 1, 5, 7], &[2, 4, 5, 7]], 1),
        ([&[130, 64], &[130, 68], &[130, 128]], 1),
    ];
    for (shapes, dim) in cases {
        check(
            "concat",
            random_arrays(1304, shapes),
            move |x| Var::concat(&[&x[0], &x[1], &x[2]], dim),
            |x| concat(&[&x[0], &x[1], &x[2]], dim),
            |x, dy| concat_vjp(&[&x[0], &x[1], &x[2]], dim, dy).try_into().expect("three gradients"),
            &[EXACT],
        );
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let reshape = "reshape: [4, 8] → [5, 6]: the numels differ";
    assert_refused(&[&[4, 8]], |x| x[0].reshape(&[5, 6]), reshape);
    assert_refused(&[&[4]], |x| x[0].transpose(), "transpose: shape [4]: 2 or more dimensions expected");
    assert_refused(
        &[&[4, 8]],
        |x| x[0].slice(1, 6..9),
        "slice: 6..9 of dimension 1 of [4, 8]: a non-empty range within it expected",
    );
    assert_refused(
        &[&[4, 8]],
        |x| x[0].slice(2, 0..1),
        "slice: 0..1 of dimension 2 of [4, 8]: a non-empty range within it expected",
    );
    assert_refused(
        &[&[4, 8]],
        |x| x[0].slice(1, 3..3),
        "slice: 3..3 of dimension 1 of [4, 8]: a non-empty range within it expected",
    );
    let concat = "concat: [[4, 8], [5, 8]] along dimension 1: the other dimensions differ";
    assert_refused(&[&[4, 8], &[5, 8]], |x| Var::concat(&[&x[0], &x[1]], 1), concat);
    assert_refused(&[&[4, 8]], |_| Var::concat(&[], 0), "concat: no tensors given");
}
