use polytape::{Result, Var};
use rand::RngExt;

use crate::check::{assert_refused, check};
use crate::reference::array::seeded;
use crate::reference::differences::random_arrays;
use crate::reference::matmul::{matmul, matmul_vjp};
use crate::tolerance::{EXACT, reduction};

const TRANSPOSES: [[bool; 2]; 4] = [[false, false], [false, true], [true, false], [true, true]];

fn multiply<'t>(a: &Var<'t>, b: &Var<'t>, transposes: [bool; 2]) -> Result<Var<'t>> {
    match transposes {
        [false, false] => a.matmul(b),
        [false, true] => a.matmul_nt(b),
        [true, false] => a.matmul_tn(b),
        [true, true] => a.matmul_tt(b),
    }
}

/// op(a) [rows, inner] · op(b) [inner, columns], each behind its batch sizes: none, or one.
fn product(seed: u64, [rows, inner, columns]: [usize; 3], transposes: [bool; 2], batches: [&[usize]; 2]) {
    let turned = |[first, second]: [usize; 2], turn: bool| if turn { [second, first] } else { [first, second] };
    let a = [batches[0], &turned([rows, inner], transposes[0])].concat();
    let b = [batches[1], &turned([inner, columns], transposes[1])].concat();
    // A factor without a batch collects its gradient over the batch of the other.
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
fn a_residual_is_added_in_the_same_pass() {
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
