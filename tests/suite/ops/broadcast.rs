use crate::check::{assert_refused, check, upload};
use crate::device;
use crate::reference::differences::random_arrays;
use crate::reference::elementwise::{add_row, add_row_vjp, column_sums, mean, mean_vjp, mul_row, mul_row_vjp, sum, sum_vjp};
use crate::tolerance::{ELEMENTWISE, assert_close, reduction};

/// x and its number of rows: one element, primes, one row more than a column-sum chunk, several passes.
const SHAPES: [(&[usize], usize); 6] =
    [(&[1, 1], 1), (&[7, 13], 7), (&[3, 5, 2, 11], 30), (&[65, 33], 65), (&[130, 260], 130), (&[64 * 64 + 1, 4], 64 * 64 + 1)];

#[test]
fn add_row_matches() {
    for (shape, rows) in SHAPES {
        let inputs = random_arrays(1201, [shape, &shape[shape.len() - 1..]]);
        let tolerances = [ELEMENTWISE, ELEMENTWISE, reduction(rows)];
        check("add_row", inputs, |x| x[0].add_row(&x[1]), |x| add_row(&x[0], &x[1]), |_, dy| add_row_vjp(dy), &tolerances);
    }
}

#[test]
fn mul_row_matches() {
    for (shape, rows) in SHAPES {
        let inputs = random_arrays(1202, [shape, &shape[shape.len() - 1..]]);
        let tolerances = [ELEMENTWISE, ELEMENTWISE, reduction(rows)];
        let vjp = |x: &[_], dy: &_| mul_row_vjp(&x[0], &x[1], dy);
        check("mul_row", inputs, |x| x[0].mul_row(&x[1]), |x| mul_row(&x[0], &x[1]), vjp, &tolerances);
    }
}

#[test]
fn column_sums_may_be_wide_or_tall() {
    // More columns than one dimension of workgroups has, 32,768 of 64; many chunks of rows.
    for shape in [&[2, 2_100_003][..], &[4_200_001, 1]] {
        let [x] = random_arrays(1203, [shape]);
        for gpu in device::all() {
            let sums = upload(gpu, &x).and_then(|x| x.column_sum()).and_then(|sums| sums.to_vec()).expect("column sums");
            assert_close("column_sum", &sums, &column_sums(&x), reduction(shape[0]));
        }
    }
}

#[test]
fn sum_and_mean_match_over_several_chunks() {
    // A chunk is 16,384 elements.
    for shape in [&[1][..], &[7, 13], &[16_384], &[127, 129], &[16_385], &[5, 16_384]] {
        let elements: usize = shape.iter().product();
        let tolerances = [reduction(elements), ELEMENTWISE];
        let inputs = random_arrays(1204, [shape]);
        check("sum", inputs.clone(), |x| x[0].sum(), |x| sum(&x[0]), |x, dy| sum_vjp(&x[0], dy), &tolerances);
        check("mean", inputs, |x| x[0].mean(), |x| mean(&x[0]), |x, dy| mean_vjp(&x[0], dy), &tolerances);
    }
}

#[test]
fn a_row_of_another_width_is_refused() {
    let add = "add_row: [4, 8] and [6]: a row of 8 expected";
    assert_refused(&[&[4, 8], &[6]], |x| x[0].add_row(&x[1]), add);
    let mul = "mul_row: [2, 4, 8] and [1, 8]: a row of 8 expected";
    assert_refused(&[&[2, 4, 8], &[1, 8]], |x| x[0].mul_row(&x[1]), mul);
}
