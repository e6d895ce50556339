use polytape::gpu::{KernelTier, Tuning};
use polytape::{Factor, Gemm, Gpu, GpuOptions, Matrix, Precision, Result, Tensor};

use crate::check::upload;
use crate::device;
use crate::reference::Array;
use crate::reference::differences::random_arrays;
use crate::reference::layout::{concat, slice};
use crate::reference::matmul::matmul;
use crate::tolerance::{assert_close, reduction};

/// Runs `compute` on every device and compares its result with `want`.
#[track_caller]
fn check(name: &str, inner: usize, want: &Array, compute: impl Fn(&Gpu) -> Result<Tensor>) {
    for gpu in device::all() {
        let context = format!("{name} with {} kernels", gpu.kernels());
        let result = compute(gpu).unwrap_or_else(|error| panic!("{context}: {error}"));
        assert_eq!(result.shape(), want.shape, "{context}");
        assert_close(&context, &result.to_vec().expect("read-back"), want, reduction(inner));
    }
}

#[test]
fn the_epilogue_scales_adds_and_accumulates() {
    for [rows, inner, columns] in [[1, 1, 1], [37, 13, 7], [68, 36, 132]] {
        let [a, b, c, old, factors] =
            random_arrays(1601, [&[rows, inner], &[inner, columns], &[rows, columns], &[rows, columns], &[5]]);
        let diagonal = Array::from_fn(&c.shape, |at| if at / columns == at % columns { -0.75 } else { 0.0 });
        let product = a.matmul(&b).times(0.5 * factors.data[3]);
        let want = product.plus(&c.times(2.0)).plus(&diagonal).plus(&old.times(-1.5));
        check("α·f·A·B + β·out + σ·C + δ·I", inner, &want, |gpu| {
            let [a, b, c, out, factors] = [&a, &b, &c, &old, &factors].map(|array| upload(gpu, array));
            let (a, b, c, out, factors) = (a?, b?, c?, out?, factors?);
            let gemm = Gemm {
                alpha: 0.5,
                factor: Some(Factor { tensor: &factors, index: 3, batch_stride: 0 }),
                addend: Some((Matrix::new(&c)?, 2.0)),
                delta: -0.75,
                beta: -1.5,
                ..Gemm::new(Matrix::new(&a)?, Matrix::new(&b)?)
            };
            gemm.compute_into(Matrix::new(&out)?)?;
            Ok(out)
        });
    }
}

#[test]
fn a_symmetric_product_computes_one_triangle() {
    for [size, inner] in [[1, 1], [37, 13], [65, 33], [132, 68], [200, 100], [1300, 20], [70, 1030]] {
        let [a, c] = random_arrays(1602, [&[2, size, inner], &[2, size, size]]);
        let c = c.plus(&c.transpose());
        let square = |batch| {
            let a = slice(&a, 0, batch..batch + 1).reshape(&[size, inner]);
            a.matmul(&a.transpose()).reshape(&[1, size, size])
        };
        let want = concat(&[&square(0), &square(1)], 0).times(0.25).plus(&c.times(3.0));
        check("α·A·Aᵀ + σ·C of a batch", inner, &want, |gpu| {
            let (a, c) = (upload(gpu, &a)?, upload(gpu, &c)?);
            let a = Matrix::new(&a)?;
            let gemm = Gemm { alpha: 0.25, addend: Some((Matrix::new(&c)?, 3.0)), symmetric: true, ..Gemm::new(a, a.t()) };
            gemm.compute()
        });
    }
}

fn view(matrix: Matrix<'_>, transposed: bool) -> Matrix<'_> {
    if transposed { matrix.t() } else { matrix }
}

#[test]
fn the_tile_changes_no_bit() {
    // Large tiles, and in windows of 100 rows small ones; with partial tiles, with and without vec4.
    for [rows, inner, columns] in [[1156, 36, 1284], [1155, 37, 1283]] {
        let [a, b] = random_arrays(1606, [&[rows, inner], &[inner, columns]]);
        let want = a.matmul(&b);
        for [transpose_a, transpose_b] in [[false, false], [false, true], [true, false], [true, true]] {
            let stored = |x: &Array, transposed| if transposed { x.transpose() } else { x.clone() };
            let (a, b) = (stored(&a, transpose_a), stored(&b, transpose_b));
            let name = format!("[{rows}, {inner}] × [{inner}, {columns}], transposed: {transpose_a} {transpose_b}");
            check(&name, inner, &want, |gpu| {
                let (a, b) = (upload(gpu, &a)?, upload(gpu, &b)?);
                let (a, b) = (Matrix::new(&a)?, view(Matrix::new(&b)?, transpose_b));
                let whole = Gemm::new(view(a, transpose_a), b).compute()?;
                let parts = Tensor::zeros(gpu, &[rows, columns])?;
                for first in (0..rows).step_by(100) {
                    let count = 100.min(rows - first);
                    let part = if transpose_a { a.column_window(first, count)?.t() } else { a.row_window(first, count)? };
                    Gemm::new(part, b).compute_into(Matrix::new(&parts)?.row_window(first, count)?)?;
                }
                assert!(whole.to_vec()? == parts.to_vec()?, "{name} with {} kernels", gpu.kernels());
                Ok(whole)
            });
        }
    }
}

#[test]
fn the_tile_changes_no_bit_of_an_f16_product() -> Result<()> {
    let [rows, inner, columns] = [1156, 36, 1284];
    let [a, b] = random_arrays(1607, [&[rows, inner], &[columns, inner]]);
    for gpu in device::all() {
        let (a, b, parts) = (upload(gpu, &a)?, upload(gpu, &b)?, Tensor::zeros(gpu, &[rows, columns])?);
        let whole = Gemm { precision: Precision::F16, ..Gemm::new(Matrix::new(&a)?, Matrix::new(&b)?.t()) };
        for first in (0..rows).step_by(100) {
            let count = 100.min(rows - first);
            let part = Gemm { a: Matrix::new(&a)?.row_window(first, count)?, ..whole };
            part.compute_into(Matrix::new(&parts)?.row_window(first, count)?)?;
        }
        assert!(whole.compute()?.to_vec()? == parts.to_vec()?, "{} kernels", gpu.kernels());
    }
    Ok(())
}

#[test]
fn windows_of_rows_and_columns_are_multiplied_in_place() {
    // First rows and columns that are and are not multiples of four and of the binding alignment.
    for [row, column] in [[0, 4], [64, 32], [5, 7], [131, 64], [64, 3]] {
        let [a, b, old] = random_arrays(1603, [&[200, 100], &[168, 104], &[170, 120]]);
        // Products of windows of 37 × 36 and of 28 × 36, into a window of 37 × 28.
        let part = |x: &Array, rows, columns| slice(&slice(x, 0, row..row + rows), 1, column..column + columns);
        let product = part(&a, 37, 36).matmul(&part(&b, 28, 36).transpose());
        let mut want = old.clone();
        for i in 0..37 {
            want.row_mut(row + i)[column..column + 28].copy_from_slice(product.row(i));
        }
        let name = format!("windows from row {row} and column {column}");
        check(&name, 36, &want, |gpu| {
            let (a, b, out) = (upload(gpu, &a)?, upload(gpu, &b)?, upload(gpu, &old)?);
            let window = |tensor, rows, columns| -> Result<Matrix<'_>> {
                Matrix::new(tensor)?.row_window(row, rows)?.column_window(column, columns)
            };
            Gemm::new(window(&a, 37, 36)?, window(&b, 28, 36)?.t()).compute_into(window(&out, 37, 28)?)?;
            Ok(out)
        });
    }
}

#[test]
fn column_blocks_of_a_batch_are_the_heads_of_its_rows() {
    let [a, b] = random_arrays(1604, [&[3, 13, 40], &[3, 13, 40]]);
    let head = |x: &Array, batch| slice(&slice(x, 0, batch..batch + 1), 2, 8..24).reshape(&[13, 16]);
    let product = |batch| head(&a, batch).transpose().matmul(&head(&b, batch)).reshape(&[1, 16, 16]);
    let want = concat(&[&product(0), &product(1), &product(2)], 0);
    check("heads of a batch", 13, &want, |gpu| {
        let (a, b) = (upload(gpu, &a)?, upload(gpu, &b)?);
        let head = |tensor| -> Result<Matrix<'_>> { Matrix::new(tensor)?.column_window(8, 16) };
        Gemm::new(head(&a)?.t(), head(&b)?).compute()
    });
}

#[test]
fn an_inner_size_may_be_longer_than_the_loop_of_one_dispatch() {
    let inner = 300_001;
    let [a, b, old] = random_arrays(1605, [&[3, inner], &[inner, 5], &[3, 5]]);
    let want = a.matmul(&b).times(0.5).plus(&old.times(2.0));
    check("a deep product", inner, &want, |gpu| {
        let (a, b, out) = (upload(gpu, &a)?, upload(gpu, &b)?, upload(gpu, &old)?);
        let gemm = Gemm { alpha: 0.5, beta: 2.0, ..Gemm::new(Matrix::new(&a)?, Matrix::new(&b)?) };
        gemm.compute_into(Matrix::new(&out)?)?;
        Ok(out)
    });
}

#[test]
fn few_outputs_of_a_long_inner_dimension_use_split_k() {
    for [rows, inner, columns] in [[1, 512, 1], [5, 1031, 7], [64, 3000, 64], [33, 2047, 130]] {
        let [a, b, c, old, factors] =
            random_arrays(1608, [&[2, rows, inner], &[2, inner, columns], &[rows, columns], &[2, rows, columns], &[2]]);
        let product = |batch| {
            let part = |x: &Array, shape| slice(x, 0, batch..batch + 1).reshape(shape);
            part(&a, &[rows, inner]).matmul(&part(&b, &[inner, columns])).times(0.5 * factors.data[batch])
        };
        let diagonal = Array::from_fn(&c.shape, |at| if at / columns == at % columns { -0.75 } else { 0.0 });
        let end = |batch| product(batch).plus(&c.times(2.0)).plus(&diagonal).reshape(&[1, rows, columns]);
        let want = concat(&[&end(0), &end(1)], 0).plus(&old.times(-1.5));
        for [transpose_a, transpose_b] in [[false, false], [false, true], [true, false], [true, true]] {
            let stored = |x: &Array, transposed| {
                let [first, second] = [0, 1].map(|batch| {
                    let part = slice(x, 0, batch..batch + 1).reshape(&x.shape[1..]);
                    let part = if transposed { part.transpose() } else { part };
                    part.reshape(&[1, part.shape[0], part.shape[1]])
                });
                concat(&[&first, &second], 0)
            };
            let (a, b) = (stored(&a, transpose_a), stored(&b, transpose_b));
            let name = format!("[{rows}, {inner}] × [{inner}, {columns}], transposed: {transpose_a} {transpose_b}");
            check(&name, inner, &want, |gpu| {
                let [a, b, c, out, factors] = [&a, &b, &c, &old, &factors].map(|array| upload(gpu, array));
                let (a, b, c, out, factors) = (a?, b?, c?, out?, factors?);
                let gemm = Gemm {
                    alpha: 0.5,
                    factor: Some(Factor { tensor: &factors, index: 0, batch_stride: 1 }),
                    addend: Some((Matrix::new(&c)?, 2.0)),
                    delta: -0.75,
                    beta: -1.5,
                    ..Gemm::new(view(Matrix::new(&a)?, transpose_a), view(Matrix::new(&b)?, transpose_b))
                };
                gemm.compute_into(Matrix::new(&out)?)?;
                Ok(out)
            });
        }
    }
}

#[test]
fn a_product_that_is_cut_keeps_its_split_k() -> Result<()> {
    let [a, b] = random_arrays(1609, [&[48, 600], &[600, 256]]);
    for (gpu, narrow) in device::all().iter().zip(device::all_narrow()) {
        // The output has 48 KiB, two slices of it more than the 64 KiB of a binding; a and b are larger, too.
        let product = |gpu| -> Result<Vec<f32>> {
            let (left, right) = (upload(gpu, &a)?, upload(gpu, &b.transpose())?);
            Gemm::new(Matrix::new(&left)?, Matrix::new(&right)?.t()).compute()?.to_vec()
        };
        let cut = product(narrow)?;
        assert_close("narrow", &cut, &a.matmul(&b), reduction(600));
        assert!(cut == product(gpu)?, "{} kernels: other bits", gpu.kernels());
    }
    Ok(())
}

#[test]
fn windows_beyond_a_matrix_are_refused() -> Result<()> {
    let tensor = Tensor::zeros(device::default(), &[4, 8])?;
    let matrix = Matrix::new(&tensor)?;
    let refusal = |result: Result<Matrix<'_>>| result.err().expect("an error expected").to_string();
    let rows = "matmul: 3 rows from 2 of a matrix of 4 rows: a window within it expected";
    assert_eq!(refusal(matrix.row_window(2, 3)), rows);
    let none = "matmul: 0 columns from 3 of a matrix of 8 columns: a window within it expected";
    assert_eq!(refusal(matrix.column_window(3, 0)), none);
    assert!(matrix.column_window(1, usize::MAX).is_err() && matrix.row_window(usize::MAX, 1).is_err());
    Ok(())
}

#[test]
fn what_exceeds_the_binding_limit_and_is_not_cut_is_refused() -> Result<()> {
    let zeros = |shape: &[usize]| Tensor::zeros(device::narrow(), shape);
    let refusal = |gemm: Gemm<'_>| gemm.compute().expect_err("an error expected").to_string();
    let x = zeros(&[200, 100])?;
    let gram = Gemm { symmetric: true, ..Gemm::new(Matrix::new(&x)?, Matrix::new(&x)?.t()) };
    let text = "matmul: [200, 100] × [100, 200]: a binding of 160000 bytes, the limit is 65536; a symmetric product or one with a \
                diagonal is not cut";
    assert_eq!(refusal(gram), text);
    let (a, b) = (zeros(&[2, 1])?, zeros(&[1, 20_000])?);
    let text = "matmul: [1, 1] × [1, 20000]: a binding of 80000 bytes, the limit is 65536; one row is not cut";
    assert_eq!(refusal(Gemm::new(Matrix::new(&a)?, Matrix::new(&b)?)), text);
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused() {
    let zeros = |shape: &[usize]| Tensor::zeros(device::default(), shape).expect("zeros");
    let refusal = |result: Result<()>| result.expect_err("an error expected").to_string();
    let matrix = |tensor| Matrix::new(tensor).expect("a matrix");
    let (a, b, square, batch) = (zeros(&[4, 8]), zeros(&[8, 5]), zeros(&[4, 4]), zeros(&[3, 4, 5]));
    let product = Gemm::new(matrix(&a), matrix(&b));
    let into_square = refusal(product.compute_into(matrix(&square)));
    assert_eq!(into_square, "matmul: [4, 8] × [8, 5] does not give [4, 4]");
    let sum = Gemm { addend: Some((matrix(&square), 1.0)), ..product };
    assert_eq!(refusal(sum.compute().map(drop)), "matmul: [4, 5] + [4, 4]: the shapes differ");
    let symmetric = Gemm { symmetric: true, ..product };
    assert_eq!(refusal(symmetric.compute().map(drop)), "matmul: [4, 8] × [8, 5]: a symmetric result must be square");
    assert_eq!(refusal(product.compute_into(matrix(&batch))), "matmul: a batch of 1 does not give [3, 4, 5]");
    let sum = Gemm { addend: Some((matrix(&batch), 1.0)), ..product };
    assert_eq!(refusal(sum.compute().map(drop)), "matmul: a batch of 1 + [3, 4, 5]: the batches differ");
    let (factors, many) = (zeros(&[5]), zeros(&[3, 4, 8]));
    for (index, batch_stride, allowed) in [(4, 0, true), (0, 2, true), (5, 0, false), (1, 2, false), (1, usize::MAX, false)] {
        let factor = Some(Factor { tensor: &factors, index, batch_stride });
        let found = Gemm { factor, ..Gemm::new(matrix(&many), matrix(&b)) }.compute().map(drop);
        if !allowed {
            let text = format!("factors from {index} of [5], {batch_stride} apart: out of bounds");
            assert_eq!(refusal(found), format!("matmul: a batch of 3 with {text}"));
        } else {
            found.expect("factors within the tensor");
        }
    }
    let (a, b) = (zeros(&[4, 4]), zeros(&[4, 4]));
    let onto_itself = refusal(Gemm::new(matrix(&a), matrix(&b)).compute_into(matrix(&a)));
    assert_eq!(onto_itself, "kernel matmul: bindings 0 and 4 are the same buffer, and one of them is written");
}

/// Bits of β·out + A·B.
fn accumulated(gpu: &Gpu, [rows, inner, columns]: [usize; 3], beta: f32) -> Result<Vec<u32>> {
    let a = Tensor::normal(gpu, &[rows, inner], 1.0, 1)?;
    let b = Tensor::normal(gpu, &[inner, columns], 1.0, 2)?;
    let out = Tensor::normal(gpu, &[rows, columns], 1.0, 3)?;
    let gemm = Gemm { beta, ..Gemm::new(Matrix::new(&a)?, Matrix::new(&b)?) };
    gemm.compute_into(Matrix::new(&out)?)?;
    Ok(out.to_vec()?.into_iter().map(f32::to_bits).collect())
}

/// The host tier packs 2²² floats of B at a time: here 64 columns of 65 or 66, and two matrices of three.
#[test]
fn b_may_be_larger_than_what_is_packed_at_a_time() {
    let [a, b] = random_arrays(1610, [&[9, 70_000], &[70_000, 65]]);
    check("columns in parts", 70_000, &a.matmul(&b), |gpu| {
        let (a, b) = (upload(gpu, &a)?, upload(gpu, &b)?);
        Gemm::new(Matrix::new(&a)?, Matrix::new(&b)?).compute()
    });
    let [a] = random_arrays(1611, [&[66, 70_000]]);
    check("symmetric, in parts", 70_000, &a.matmul(&a.transpose()), |gpu| {
        let a = upload(gpu, &a)?;
        let a = Matrix::new(&a)?;
        Gemm { symmetric: true, ..Gemm::new(a, a.t()) }.compute()
    });
    let [a, b] = random_arrays(1612, [&[3, 9, 700], &[3, 700, 2100]]);
    check("matrices in parts", 700, &matmul(&a, &b, false, false), |gpu| {
        let (a, b) = (upload(gpu, &a)?, upload(gpu, &b)?);
        Gemm::new(Matrix::new(&a)?, Matrix::new(&b)?).compute()
    });
}

#[test]
fn tuning_changes_no_bit() -> Result<()> {
    for plain in device::all() {
        let options = GpuOptions { kernels: Some(plain.kernels()), tuning: Tuning::Process, ..Default::default() };
        let tuned = device::open(&options)?;
        // With and without vec4; with β ≠ 0 a tuning trial must not accumulate into the output.
        for (size, beta) in [([391, 1000, 262], 1.0), ([392, 1000, 264], 1.0), ([392, 1000, 264], 0.0)] {
            let same = accumulated(plain, size, beta)? == accumulated(&tuned, size, beta)?;
            assert!(same, "{size:?} with {} kernels, β = {beta}", plain.kernels());
        }
        // Some ran in trials, too: on GPUs' kernels, whose tiles have several sizes.
        let has_trials = !matches!(plain.kernels(), KernelTier::Host | KernelTier::Fallback);
        assert!(!has_trials || tuned.counters().dispatches > 12, "{} kernels", plain.kernels());
    }
    Ok(())
}

#[test]
fn without_memory_for_tuning_the_heuristic_decides() -> Result<()> {
    // Tiles enough for every device without split-K, whose partial products would need memory, too.
    let size @ [rows, inner, columns] = [1024, 36, 1040];
    // Enough memory for operands and output, but not for a second output.
    let needed = 4 * (rows * inner + inner * columns + rows * columns) as u64;
    for plain in device::all() {
        let options = GpuOptions {
            kernels: Some(plain.kernels()),
            tuning: Tuning::Process,
            memory_budget: Some(needed + 4096),
            ..Default::default()
        };
        let tuned = accumulated(&device::open(&options)?, size, 1.0)?;
        assert!(tuned == accumulated(plain, size, 1.0)?, "{} kernels", plain.kernels());
    }
    Ok(())
}

#[test]
fn a_batch_above_the_binding_limit_is_split() -> Result<()> {
    let run = |gpu: &Gpu| -> Result<Vec<f32>> {
        let a = Tensor::normal(gpu, &[5, 100, 64], 1.0, 1)?;
        let b = Tensor::normal(gpu, &[5, 80, 64], 1.0, 2)?;
        let c = Tensor::normal(gpu, &[100, 80], 1.0, 3)?;
        let scales = Tensor::from_slice(gpu, &[1.0, 9.0, 2.0, 9.0, 3.0, 9.0, 4.0, 9.0, 5.0, 9.0], &[10])?;
        let factor = Some(Factor { tensor: &scales, index: 0, batch_stride: 2 });
        let addend = Some((Matrix::new(&c)?, 0.5));
        Gemm { factor, addend, ..Gemm::new(Matrix::new(&a)?, Matrix::new(&b)?.t()) }.compute()?.to_vec()
    };
    for (gpu, narrow) in device::all().iter().zip(device::all_narrow()) {
        assert!(run(narrow)? == run(gpu)?, "{} kernels: other bits", gpu.kernels());
    }
    Ok(())
}
