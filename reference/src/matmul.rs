//! y = op(a)·op(b), op transposing or not. Both matrices; or a batch `[batch, m, k]` on the left with a batch or one shared
//! matrix on the right.

use super::array::Array;

pub fn matmul(a: &Array, b: &Array, transpose_a: bool, transpose_b: bool) -> Array {
    let (a, b) = (transpose_if(transpose_a, a), transpose_if(transpose_b, b));
    let products: Vec<Array> = (0..batch_of(&a)).map(|i| matrix(&a, i).matmul(&matrix(&b, i))).collect();
    stack(&products, a.shape.len())
}

/// With A = op(a), B = op(b): dA = dy·Bᵀ, dB = Aᵀ·dy, each transposed back as its operand was.
pub fn matmul_vjp(a: &Array, b: &Array, transpose_a: bool, transpose_b: bool, dy: &Array) -> [Array; 2] {
    let (op_a, op_b) = (transpose_if(transpose_a, a), transpose_if(transpose_b, b));
    let batch = 0..batch_of(&op_a);
    let da: Vec<Array> = batch.clone().map(|i| matrix(dy, i).matmul(&matrix(&op_b, i).transpose())).collect();
    let db: Vec<Array> = batch.map(|i| matrix(&op_a, i).transpose().matmul(&matrix(dy, i))).collect();
    let db = if b.shape.len() == 2 {
        db.into_iter().reduce(|sum, db| sum.plus(&db)).expect("a batch of at least one")
    } else {
        stack(&db, b.shape.len())
    };
    [transpose_if(transpose_a, &stack(&da, a.shape.len())), transpose_if(transpose_b, &db)]
}

fn transpose_if(transpose: bool, x: &Array) -> Array {
    if transpose { x.transpose() } else { x.clone() }
}

fn batch_of(x: &Array) -> usize {
    if x.shape.len() == 2 { 1 } else { x.shape[0] }
}

/// Matrix `index` of a batch; a single matrix is shared by the whole batch.
fn matrix(x: &Array, index: usize) -> Array {
    let shape = &x.shape[x.shape.len() - 2..];
    let size = shape[0] * shape[1];
    let start = if x.shape.len() == 2 { 0 } else { index * size };
    Array::new(shape, x.data[start..][..size].to_vec())
}

fn stack(matrices: &[Array], rank: usize) -> Array {
    let mut shape = matrices[0].shape.clone();
    if rank == 3 {
        shape.insert(0, matrices.len());
    }
    Array::new(&shape, matrices.iter().flat_map(|m| m.data.iter().copied()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::differences::{check_vjp, random_arrays};

    fn check(transpose_a: bool, transpose_b: bool, batch_a: Option<usize>, batch_b: Option<usize>) {
        let shape = |batch: Option<usize>, transpose: bool, rows: usize, cols: usize| {
            let matrix = if transpose { [cols, rows] } else { [rows, cols] };
            batch.into_iter().chain(matrix).collect::<Vec<usize>>()
        };
        let (a, b) = (shape(batch_a, transpose_a, 3, 4), shape(batch_b, transpose_b, 4, 5));
        check_vjp(
            &format!("matmul {a:?} × {b:?}"),
            random_arrays(11, [&a, &b]),
            |x| matmul(&x[0], &x[1], transpose_a, transpose_b),
            |x, dy| matmul_vjp(&x[0], &x[1], transpose_a, transpose_b, dy),
        );
    }

    #[test]
    fn vjp_matches_finite_differences_for_every_transpose_and_batch() {
        for transpose_a in [false, true] {
            for transpose_b in [false, true] {
                check(transpose_a, transpose_b, None, None);
                check(transpose_a, transpose_b, Some(2), Some(2));
                check(transpose_a, transpose_b, Some(2), None);
            }
        }
    }

    #[test]
    fn transposes_agree_with_the_plain_product() {
        let [a, b] = random_arrays(12, [&[2, 3, 4], &[2, 4, 5]]);
        let plain = matmul(&a, &b, false, false);
        assert_eq!(plain, matmul(&a.transpose(), &b, true, false));
        assert_eq!(plain, matmul(&a, &b.transpose(), false, true));
        let entry: f64 = (0..4).map(|k| a.data[12 + 2 * 4 + k] * b.data[20 + k * 5 + 3]).sum();
        assert!((plain.data[15 + 2 * 5 + 3] - entry).abs() < 1e-14);
    }
}
