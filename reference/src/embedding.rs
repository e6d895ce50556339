//! Row lookup: table `[vocab, dim]`, ids `[rows]` → `[rows, dim]`.

use super::array::{Array, add_scaled};

pub fn embedding(table: &Array, ids: &[u32]) -> Array {
    let (_, dim) = table.rows_and_cols();
    let rows = ids.iter().flat_map(|&id| table.row(id as usize).iter().copied());
    Array::new(&[ids.len(), dim], rows.collect())
}

/// A row that was looked up several times collects all of its gradients.
pub fn embedding_vjp(table: &Array, ids: &[u32], dy: &Array) -> [Array; 1] {
    let mut dtable = Array::zeros(&table.shape);
    for (row, &id) in ids.iter().enumerate() {
        add_scaled(dtable.row_mut(id as usize), 1.0, dy.row(row));
    }
    [dtable]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::differences::{check_vjp, random_arrays};

    #[test]
    fn vjp_matches_finite_differences_with_repeated_ids() {
        let ids = [2, 0, 2, 4, 2];
        let table = random_arrays(51, [&[5, 3]]);
        check_vjp("embedding", table, |x| embedding(&x[0], &ids), |x, dy| embedding_vjp(&x[0], &ids, dy));
    }
}
