use polytape::{Gradients, Params, Result, Tape, Tensor, Var};
use rand::RngExt;

use crate::check::{assert_refused, check};
use crate::device;
use crate::reference::array::seeded;
use crate::reference::differences::random_arrays;
use crate::reference::matmul::{matmul, matmul_vjp};
use crate::tolerance::{EXACT, reduction};

pub const TRANSPOSES: [[bool; 2]; 4] = [[false, false], [false, true], [true, false], [true, true]];

pub fn multiply<'t>(a: &Var<'t>, b: &Var<'t>, transposes: [bool; 2]) -> Result<Var<'t>> {
    match transposes {
        [false, false] => a.matmul(b),
        [false, true] => a.matmul_nt(b),
        [true, false] => a.matmul_tn(b),
        [true, true] => a.matmul_tt(b),
    }
}

/// The shapes of a and b for op(a) [rows, inner] · op(b) [inner, columns], each with zero or one batch dimension.
pub fn sizes_of([rows, inner, columns]: [usize; 3], transposes: [bool; 2], batches: [&[usize]; 2]) -> [Vec<usize>; 2] {
    let turned = |[first, second]: [usize; 2], turn: bool| if turn { [second, first] } else { [first, second] };
    let a = [batches[0], &turned([rows, inner], transposes[0])].concat();
    [a, [batches[1], &turned([inner, columns], transposes[1])].concat()]
}

fn product(seed: u64, [rows, inner, columns]: [usize; 3], transposes: [bool; 2], batches: [&[usize]; 2]) {
    let [a, b] = sizes_of([rows, inner, columns], transposes, batches);
    // The gradient of an operand without a batch dimension is summed over the batch.
    let shared = |own: &[usize], other: &[usize]| if own.is_empty() { other.iter().product() } else { 1 };
    let da = reduction(columns * shared(batches[0], batches[1]));
    let db = reduction(rows * shared(batches[1], batches[0]));
    let [ta, tb] = transposes;
    check(
        &format!("matmul transposing {transposes:?}"),
        random_arrays(seed, [&a, &b]),
        move |x| multiply(&x[0], &x[1], transposes),
        |x| matmul(&x[0], &x[1], ta, tb),
        |x, dy| matmul_vjp(&x[0], &x[1], ta, tb, dy),
        &[reduction(inner), da, db],
    );
}

#[test]
fn products_match_for_all_transposes() {
    // One element; primes; just over a tile; several tiles each way in vec4; an inner size in vec4 and columns that are not.
    for sizes in [[1, 1, 1], [7, 13, 37], [33, 17, 65], [65, 33, 129], [130, 68, 260], [37, 64, 101], [101, 37, 64]] {
        for transposes in TRANSPOSES {
            product(1501, sizes, transposes, [&[], &[]]);
        }
    }
}

#[test]
fn a_batch_is_multiplied_by_a_batch() {
    for sizes in [[1, 1, 1], [7, 13, 37], [33, 65, 17], [68, 36, 132]] {
        for transposes in TRANSPOSES {
            product(1502, sizes, transposes, [&[3], &[3]]);
        }
    }
}

#[test]
fn a_batch_is_multiplied_by_one_matrix() {
    for sizes in [[1, 1, 1], [7, 13, 37], [68, 36, 132]] {
        for transposes in TRANSPOSES {
            product(1503, sizes, transposes, [&[3], &[]]);
        }
    }
}

#[test]
fn a_residual_is_added_in_the_epilogue() {
    for [rows, inner, columns] in [[1, 1, 1], [7, 13, 37], [68, 36, 132]] {
        check(
            "matmul_nt_add",
            random_arrays(1506, [&[rows, inner], &[columns, inner], &[rows, columns]]),
            |x| x[0].matmul_nt_add(&x[1], &x[2]),
            |x| matmul(&x[0], &x[1], false, true).plus(&x[2]),
            |x, dy| {
                let [da, db] = matmul_vjp(&x[0], &x[1], false, true, dy);
                [da, db, dy.clone()]
            },
            &[reduction(inner), reduction(columns), reduction(rows), EXACT],
        );
    }
}

#[test]
fn products_of_random_sizes_match() {
    let mut rng = seeded(1504);
    for _ in 0..16 {
        let sizes = [0; 3].map(|_| rng.random_range(1..80));
        let batch: &[usize] = &[rng.random_range(1..4)];
        let transposes = TRANSPOSES[rng.random_range(0..4)];
        let batches: [[&[usize]; 2]; 3] = [[&[], &[]], [batch, &[]], [batch, batch]];
        product(1505, sizes, transposes, batches[rng.random_range(0..3)]);
    }
}

/// A head above the binding limit: its product is split along the columns, its gradient along the rows, that of x along the inner
/// dimension. Integers, so that every result is exact.
#[test]
fn a_weight_above_the_binding_limit_is_multiplied_in_parts() -> Result<()> {
    const INNER: usize = 64;
    let gpu = device::narrow();
    let columns = gpu.binding_limit() as usize / (4 * INNER) + 777;
    let x = |row: usize, k: usize| ((3 * row + k) % 5) as f32 - 2.0;
    let w = |column: usize, k: usize| ((column + k) % 11) as f32 - 5.0;
    let fill = |rows: usize, value: &dyn Fn(usize, usize) -> f32| -> Vec<f32> {
        (0..rows * INNER).map(|at| value(at / INNER, at % INNER)).collect()
    };
    let params = Params::new(gpu);
    let tape = Tape::new(&params);
    let left = tape.leaf(Tensor::from_slice(gpu, &fill(2, &x), &[2, INNER])?);
    let right = tape.leaf(Tensor::from_slice(gpu, &fill(columns, &w), &[columns, INNER])?);
    let y = left.matmul_nt(&right)?;
    let entry = |row: usize, column: usize| (0..INNER).map(|k| x(row, k) * w(column, k)).sum::<f32>();
    let wrong = y.value().to_vec()?.iter().enumerate().position(|(at, got)| *got != entry(at / columns, at % columns));
    assert_eq!(wrong, None, "element of the product");

    // The gradient of y is 1 in a few columns of its first row and 2 in those of its second, around the splits and at the ends.
    let chosen = [0, 1, columns / 2, columns / 2 + 1, columns - 778, columns - 1];
    let mut dy = vec![0.0; 2 * columns];
    for (row, column) in (0..2).flat_map(|row| chosen.map(|column| (row, column))) {
        dy[row * columns + column] = row as f32 + 1.0;
    }
    let dy = Tensor::from_slice(gpu, &dy, &[2, columns])?;
    let leaves = tape.backward_from(&[(&y, dy)], &mut Gradients::new())?;
    let [dx, dw] = [&left, &right].map(|leaf| leaves.get(leaf).expect("a gradient"));
    let dx_entry = |row: usize, k: usize| (row as f32 + 1.0) * chosen.iter().map(|&column| w(column, k)).sum::<f32>();
    assert_eq!(dx.to_vec()?, fill(2, &dx_entry));
    let dw_entry = |column: usize, k: usize| if chosen.contains(&column) { x(0, k) + 2.0 * x(1, k) } else { 0.0 };
    let wrong = dw.to_vec()?.iter().enumerate().position(|(at, got)| *got != dw_entry(at / INNER, at % INNER));
    assert_eq!(wrong, None, "element of the weight's gradient");
    Ok(())
}

#[test]
fn factors_that_do_not_fit_are_refused() {
    let inner = "matmul: [4, 8] × [9, 3]: inner dimensions 8 and 9 differ";
    assert_refused(&[&[4, 8], &[9, 3]], |x| x[0].matmul(&x[1]), inner);
    assert_refused(&[&[4, 8], &[3, 9]], |x| x[0].matmul_nt(&x[1]), inner);
    assert_refused(&[&[8, 4], &[9, 3]], |x| x[0].matmul_tn(&x[1]), inner);
    assert_refused(&[&[8, 4], &[3, 9]], |x| x[0].matmul_tt(&x[1]), inner);
    for batches in [[2, 3], [1, 3], [3, 1]] {
        let [a, b] = batches;
        let text = format!("matmul: [{a}, 4, 8] × [{b}, 8, 5]: batches {a} and {b} differ");
        assert_refused(&[&[a, 4, 8], &[b, 8, 5]], |x| x[0].matmul(&x[1]), &text);
    }
    assert_refused(&[&[8], &[8, 5]], |x| x[0].matmul(&x[1]), "matmul: shape [8]: 2 or 3 dimensions expected");
    let residual = "matmul: [4, 5] + [5, 4]: the shapes differ";
    assert_refused(&[&[4, 8], &[5, 8], &[5, 4]], |x| x[0].matmul_nt_add(&x[1], &x[2]), residual);
    let four = "matmul: shape [2, 3, 4, 8]: 2 or 3 dimensions expected";
    assert_refused(&[&[2, 3, 4, 8], &[8, 5]], |x| x[0].matmul(&x[1]), four);
}
