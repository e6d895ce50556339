//! Operations that only move elements: reshape, transpose, slice, concat.

use std::ops::Range;

use super::array::Array;

pub fn reshape(x: &Array, shape: &[usize]) -> Array {
    x.reshape(shape)
}

pub fn reshape_vjp(x: &Array, dy: &Array) -> [Array; 1] {
    [dy.reshape(&x.shape)]
}

/// The last two dimensions exchanged.
pub fn transpose(x: &Array) -> Array {
    x.transpose()
}

pub fn transpose_vjp(dy: &Array) -> [Array; 1] {
    [dy.transpose()]
}

/// Elements `range` of dimension `dim`.
pub fn slice(x: &Array, dim: usize, range: Range<usize>) -> Array {
    let (outer, inner) = outer_and_inner(&x.shape, dim);
    let mut shape = x.shape.clone();
    shape[dim] = range.len();
    let block = |outer: usize| &x.data[(outer * x.shape[dim] + range.start) * inner..][..range.len() * inner];
    Array::new(&shape, (0..outer).flat_map(|outer| block(outer).iter().copied()).collect())
}

pub fn slice_vjp(x: &Array, dim: usize, range: Range<usize>, dy: &Array) -> [Array; 1] {
    let (outer, inner) = outer_and_inner(&x.shape, dim);
    let size = range.len() * inner;
    let mut dx = Array::zeros(&x.shape);
    for outer in 0..outer {
        let start = (outer * x.shape[dim] + range.start) * inner;
        dx.data[start..][..size].copy_from_slice(&dy.data[outer * size..][..size]);
    }
    [dx]
}

/// Arrays that agree in every other dimension, one behind another along `dim`.
pub fn concat(parts: &[&Array], dim: usize) -> Array {
    let mut shape = parts[0].shape.clone();
    shape[dim] = parts.iter().map(|part| part.shape[dim]).sum();
    let (outer, inner) = outer_and_inner(&shape, dim);
    let mut data = Vec::new();
    for outer in 0..outer {
        for part in parts {
            let size = part.shape[dim] * inner;
            data.extend_from_slice(&part.data[outer * size..][..size]);
        }
    }
    Array::new(&shape, data)
}

/// One gradient per part.
pub fn concat_vjp(parts: &[&Array], dim: usize, dy: &Array) -> Vec<Array> {
    let mut start = 0;
    let mut next = |part: &&Array| {
        start += part.shape[dim];
        slice(dy, dim, start - part.shape[dim]..start)
    };
    parts.iter().map(&mut next).collect()
}

fn outer_and_inner(shape: &[usize], dim: usize) -> (usize, usize) {
    (shape[..dim].iter().product(), shape[dim + 1..].iter().product())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::differences::{check_vjp, random_arrays};

    #[test]
    fn vjps_match_finite_differences() {
        let one = || random_arrays(21, [&[2, 3, 4]]);
        check_vjp("reshape", one(), |x| reshape(&x[0], &[6, 4]), |x, dy| reshape_vjp(&x[0], dy));
        check_vjp("transpose", one(), |x| transpose(&x[0]), |_, dy| transpose_vjp(dy));
        for (dim, range) in [(0, 1..2), (1, 0..2), (2, 1..4)] {
            let forward = |x: &[Array]| slice(&x[0], dim, range.clone());
            check_vjp("slice", one(), forward, |x, dy| slice_vjp(&x[0], dim, range.clone(), dy));
        }
        let parts = random_arrays(22, [&[2, 1, 3], &[2, 4, 3]]);
        let vjp = |x: &[Array], dy: &Array| <[Array; 2]>::try_from(concat_vjp(&[&x[0], &x[1]], 1, dy)).unwrap();
        check_vjp("concat", parts, |x| concat(&[&x[0], &x[1]], 1), vjp);
    }

    #[test]
    fn concat_puts_slices_back() {
        let [x] = random_arrays(23, [&[3, 5, 2]]);
        for dim in 0..3 {
            let cut = x.shape[dim] / 2;
            let parts = [slice(&x, dim, 0..cut), slice(&x, dim, cut..x.shape[dim])];
            assert_eq!(concat(&[&parts[0], &parts[1]], dim), x);
        }
    }
}
