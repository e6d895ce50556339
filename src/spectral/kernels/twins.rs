//! The twins of the matrix-vector passes.

use super::{OUTPUT, SCALARS};
use crate::gpu::host::Host;
use crate::gpu::host::simd::{dispatch, dot, sum};
use crate::spectral::Norm;

const SPECTRAL: u32 = Norm::Spectral as u32;
const FROBENIUS: u32 = Norm::Frobenius as u32;
// Those of a matrix's scalars that only the twins name.
const S: usize = 0;
const GAMMA_SCALE: usize = 4;
const PULL: usize = 5;
const NORM: usize = 6;

pub(super) fn multiply(host: &Host<'_>) {
    let (rows, columns) = (host.size(0), host.size(1));
    row_sums(host, |row| row / rows * columns);
}

pub(super) fn row_products(host: &Host<'_>) {
    let columns = host.size(1);
    row_sums(host, |row| row * columns);
}

/// The product of each row of the first input with the elements of the second from `place(row)` on.
fn row_sums(host: &Host<'_>, place: impl Fn(usize) -> usize + Sync) {
    let (w, x, [y]) = (host.input(0), host.input(1), host.outputs());
    let columns = host.size(1);
    host.rows(
        y.len(),
        columns,
        [(y, 1)],
        #[inline(always)]
        |range, [y]| {
            for (row, y) in range.zip(y) {
                *y = dot(&w[row * columns..][..columns], &x[place(row)..][..columns]);
            }
        },
    );
}

/// A row of w is still in cache when it is added.
pub(super) fn apply(host: &Host<'_>) {
    let (w, x, inverses, [squares, parts]) = (host.input(0), host.input(1), host.input(2), host.outputs());
    let [rows, columns, chunks] = [0, 1, 2].map(|at| host.size(at));
    let (chunk, product) = (host.constant("CHUNK") as usize, host.flag("PRODUCT"));
    host.rows(
        squares.len(),
        2 * chunk.min(rows) * columns,
        [(squares, 1), (parts, columns)],
        #[inline(always)]
        |range, [squares, parts]| {
            for ((at, square), part) in range.zip(squares).zip(parts.chunks_exact_mut(columns)) {
                let (matrix, first) = (at / chunks, at % chunks * chunk);
                let (from, to) = (matrix * rows + first, matrix * rows + rows.min(first + chunk));
                part.fill(0.0);
                *square = 0.0;
                for (r, row) in (from..to).zip(w[from * columns..to * columns].chunks_exact(columns)) {
                    let y = if product { inverses[matrix] * dot(row, &x[matrix * columns..][..columns]) } else { x[r] };
                    *square += y * y;
                    for (sum, w) in part.iter_mut().zip(row) {
                        *sum = w.mul_add(y, *sum);
                    }
                }
            }
        },
    );
}

pub(super) fn normalize(host: &Host<'_>) {
    let (partials, squares, previous, [inverses, vectors]) = (host.input(0), host.input(1), host.input(2), host.outputs());
    let (columns, chunks, eps, product) = (host.size(1), host.size(2), host.number(3), host.flag("PRODUCT"));
    host.rows(
        inverses.len(),
        chunks * columns,
        [(inverses, 1), (vectors, columns)],
        #[inline(always)]
        |range, [inverses, vectors]| {
            for ((matrix, inverse), vector) in range.zip(inverses).zip(vectors.chunks_exact_mut(columns)) {
                vector.fill(0.0);
                for part in partials[matrix * chunks * columns..].chunks_exact(columns).take(chunks) {
                    for (sum, part) in vector.iter_mut().zip(part) {
                        *sum += part;
                    }
                }
                let norm = dot(vector, vector).sqrt();
                if norm == 0.0 {
                    vector.copy_from_slice(&previous[matrix * columns..][..columns]);
                    *inverse = 1.0;
                    continue;
                }
                let mut scale = 1.0;
                if product {
                    let y = squares[matrix * chunks..][..chunks].iter().sum::<f32>();
                    scale = 1.0 / (y.sqrt() + *inverse * eps);
                }
                *inverse = 1.0 / (scale * norm + eps);
                scale *= *inverse;
                vector.iter_mut().for_each(|x| *x *= scale);
            }
        },
    );
}

pub(super) fn divide(host: &Host<'_>) {
    let (numbers, others, gamma, [scalars]) = (host.input(0), host.input(1), host.input(2), host.outputs());
    let (rows, eps, norm, recover) = (host.size(0), host.number(3), host.argument(4), host.argument(5) == 1);
    let (heads, stride) = (host.size(6), host.size(7));
    dispatch(
        #[inline(always)]
        || {
            for (matrix, scalars) in scalars.chunks_exact_mut(SCALARS).enumerate() {
                let (numbers, others) = (&numbers[matrix * rows..][..rows], &others[matrix * rows..][..rows]);
                let sum = if norm == SPECTRAL { dot(numbers, others) } else { sum_of(numbers) };
                let s = match norm {
                    SPECTRAL => sum + eps,
                    FROBENIUS => sum.sqrt() + eps,
                    _ => 1.0,
                };
                let (output, gamma_scale) = if recover { (1.0, s) } else { (1.0 / s, 1.0) };
                let norm = sum.max(0.0).sqrt();
                let gamma = gamma[matrix / heads * stride + matrix % heads];
                scalars[..7].copy_from_slice(&[s, 1.0 / s, 1.0 / (s * s), gamma * output, gamma_scale, 0.0, norm]);
            }
        },
    );
}

pub(super) fn gamma_gradient(host: &Host<'_>) {
    let (numbers, scalars, [dgamma]) = (host.input(0), host.input(1), host.outputs());
    let (rows, heads, stride) = (host.size(0), host.size(6), host.size(7));
    for (matrix, (numbers, scalars)) in numbers.chunks_exact(rows).zip(scalars.chunks_exact(SCALARS)).enumerate() {
        dgamma[matrix / heads * stride + matrix % heads] = scalars[GAMMA_SCALE] * sum_of(numbers);
    }
}

pub(super) fn pull(host: &Host<'_>) {
    let (numbers, old, [new]) = (host.input(0), host.input(1), host.outputs());
    let (rows, norm) = (host.size(0), host.argument(4));
    let matrices = numbers.chunks_exact(rows).zip(old.chunks_exact(SCALARS));
    for ((numbers, old), new) in matrices.zip(new.chunks_exact_mut(SCALARS)) {
        new[PULL] = sum_of(numbers) / old[S];
        if norm == FROBENIUS {
            // The subgradient 0 of ‖w‖ at 0.
            new[PULL] = if old[NORM] > 0.0 { new[PULL] / old[NORM] } else { 0.0 };
        }
        new[OUTPUT] = old[OUTPUT];
    }
}

pub(super) fn finish(host: &Host<'_>) {
    let (m, factors, u, right, [dw]) = (host.input(0), host.input(1), host.input(2), host.input(3), host.outputs());
    let (rows, columns, batch, norm) = (host.size(0), host.size(1), host.size(2), host.argument(4));
    host.rows(
        batch * rows,
        2 * columns,
        [(dw, columns)],
        #[inline(always)]
        |range, [dw]| {
            for (row, dw) in range.zip(dw.chunks_exact_mut(columns)) {
                let matrix = row / rows;
                let factors = &factors[matrix * SCALARS..][..SCALARS];
                let (pull, place) = match norm {
                    SPECTRAL => (factors[PULL] * u[row], matrix),
                    FROBENIUS => (factors[PULL], row),
                    _ => (0.0, matrix),
                };
                let (m, right) = (&m[row * columns..][..columns], &right[place * columns..][..columns]);
                for ((dw, m), right) in dw.iter_mut().zip(m).zip(right) {
                    *dw = factors[OUTPUT] * right.mul_add(-pull, *m);
                }
            }
        },
    );
}

#[inline(always)]
fn sum_of(numbers: &[f32]) -> f32 {
    sum(numbers.len(), |i| numbers[i])
}
