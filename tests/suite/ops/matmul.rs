use polytape::{Gradients, Params, Result, Tape, Tensor, Var};
use rand::RngExt;

use crate::check::{assert_refused, check};
use crate::device;
use crate::reference::array::seeded;
use crate::reference::differences::random_arrays;
use crate::reference::layout::{concat, slice};
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
fn several_products_of_one_input_match() {
    // Alike and not; sums that are cut into slices where there are few results.
    for [rows, inner, first, others] in [[1, 1, 1, 1], [7, 13, 37, 5], [68, 36, 132, 132], [64, 48, 800, 800], [32, 1100, 64, 64]]
    {
        let weights = [[first, inner], [others, inner], [others, inner]];
        let shapes: [&[usize]; 4] = [&[rows, inner], &weights[0], &weights[1], &weights[2]];
        check(
            "matmul_nt_each",
            random_arrays(1507, shapes),
            |x| {
                let y = x[0].matmul_nt_each(&[&x[1], &x[2], &x[3]])?;
                Var::concat(&[&y[0], &y[1], &y[2]], 1)
            },
            |x| {
                let y = [1, 2, 3].map(|at| matmul(&x[0], &x[at], false, true));
                concat(&[&y[0], &y[1], &y[2]], 1)
            },
            |x, dy| {
                let columns = [first, others, others];
                let starts = [0, first, first + others];
                let of = |at: usize| {
                    let dy = slice(dy, 1, starts[at]..starts[at] + columns[at]);
                    matmul_vjp(&x[0], &x[1 + at], false, true, &dy)
                };
                let [[da, dw], [db, dv], [dc, du]] = [of(0), of(1), of(2)];
                [da.plus(&db).plus(&dc), dw, dv, du]
            },
            &[reduction(inner), reduction(first + 2 * others), reduction(rows)],
        );
    }
}

#[test]
fn products_of_one_input_that_nothing_asks_for_have_no_gradients() -> Result<()> {
    let gpu = device::default();
    let params = Params::new(gpu);
    let tape = Tape::new(&params);
    let [x, a, b] = [1, 2, 3].map(|seed| Tensor::normal(gpu, &[8, 8], 1.0, seed).map(|tensor| tape.leaf(tensor)));
    let (x, a, b) = (x?, a?, b?);
    let y = x.matmul_nt_each(&[&a, &b])?;
    let gradients = tape.backward(&y[1].sum()?, &mut Gradients::new())?;
    assert!(gradients.get(&a).is_none() && gradients.get(&b).is_some());
    let alone = Tape::new(&params);
    let [again, weight] = [&x, &b].map(|var| alone.leaf(var.value().clone()));
    let wanted = alone.backward(&again.matmul_nt(&weight)?.sum()?, &mut Gradients::new())?;
    let values = |found: Option<&Tensor>| found.expect("a gradient").to_vec();
    assert_eq!(values(gradients.get(&x))?, values(wanted.get(&again))?);
    assert_eq!(values(gradients.get(&b))?, values(wanted.get(&weight))?);
    let constant = Tape::new(&params);
    let [x, a] = [&x, &a].map(|var| constant.constant(var.value().clone()));
    assert!(!x.matmul_nt_each(&[&a])?[0].wants_gradient());
    Ok(())
}

#[test]
fn products_of_one_input_are_refused_by_their_shapes() {
    let other = "matmul: [4, 8] × [[5, 8], [5, 7]]ᵀ: weights with 8 columns each expected";
    assert_refused(&[&[4, 8], &[5, 8], &[5, 7]], |x| Ok(x[0].matmul_nt_each(&[&x[1], &x[2]])?[0].clone()), other);
    let none = "matmul: [4, 8] × []ᵀ: weights with 8 columns each expected";
    assert_refused(&[&[4, 8]], |x| Ok(x[0].matmul_nt_each(&[])?[0].clone()), none);
    let batch = "matmul: shape [2, 4, 8]: 2 dimensions expected";
    assert_refused(&[&[2, 4, 8], &[5, 8]], |x| Ok(x[0].matmul_nt_each(&[&x[1]])?[0].clone()), batch);
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
    let batch = "matmul: [2, 4, 5] and [4, 5]: the shapes differ";
    assert_refused(&[&[2, 4, 8], &[5, 8], &[4, 5]], |x| x[0].matmul_nt_add(&x[1], &x[2]), batch);
    let four = "matmul: shape [2, 3, 4, 8]: 2 or 3 dimensions expected";
    assert_refused(&[&[2, 3, 4, 8], &[8, 5]], |x| x[0].matmul(&x[1]), four);
}
