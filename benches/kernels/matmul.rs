//! Products: cubes, every product of a training step of the 20M preset, split-K shapes, and f16 operands.

use std::time::Instant;

use polytape::{Gemm, Gpu, Matrix, Precision, Result, Tensor};

use crate::fastest;

/// [rows, inner, columns]; whether A and B are transposed; a description.
type Case = ([usize; 3], [bool; 2], &'static str);

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for size in [256, 512, 1024] {
        for transposes in [[false, false], [false, true], [true, false], [true, true]] {
            cases.push(([size; 3], transposes, "cube"));
        }
    }
    // Two sequences of 256 tokens, dim 256, intermediate size 768, vocabulary 32000 in chunks.
    for (inner, outer, name) in [(256, 256, "q, k, v, o"), (256, 768, "gate, up"), (768, 256, "down"), (256, 32_000, "head")] {
        let tokens = if outer == 32_000 { 128 } else { 512 };
        cases.push(([tokens, inner, outer], [false, true], name));
        cases.push(([tokens, outer, inner], [false, false], name));
        cases.push(([outer, tokens, inner], [true, false], name));
    }
    for (rows, columns) in [(32, 64), (64, 64), (128, 128)] {
        cases.push(([rows, 16_384, columns], [true, false], "few outputs"));
    }
    cases.push(([511, 255, 257], [false, true], "no multiple of four"));
    cases
}

pub fn run(gpu: &Gpu, peak: f64) -> Result<()> {
    println!(
        "\n| product | rows × inner × columns | op(A), op(B) | GFLOP/s | of peak | first call, s |\n|---|---|---|---:|---:|---:|"
    );
    for ([rows, inner, columns], [ta, tb], name) in cases() {
        let shape = |first, second, turned| if turned { [second, first] } else { [first, second] };
        let a = Tensor::normal(gpu, &shape(rows, inner, ta), 1.0, 7)?;
        let b = Tensor::normal(gpu, &shape(inner, columns, tb), 1.0, 8)?;
        let view = |tensor, turned| Matrix::new(tensor).map(|matrix| if turned { matrix.t() } else { matrix });
        let product = Gemm::new(view(&a, ta)?, view(&b, tb)?);
        let start = Instant::now();
        check(&product.compute()?, [&a, &b], [rows, inner, columns], [ta, tb], 1e-4)?;
        let first = start.elapsed().as_secs_f64();
        let out = Tensor::zeros(gpu, &[rows, columns])?;
        let seconds = fastest(gpu, || product.compute_into(Matrix::new(&out)?))?;
        let rate = 2.0 * (rows * inner * columns) as f64 / seconds;
        let mark = |turned: bool| if turned { "T" } else { "N" };
        println!(
            "| {name} | {rows} × {inner} × {columns} | {}{} | {:.1} | {:.0} % | {first:.2} |",
            mark(ta),
            mark(tb),
            rate / 1e9,
            100.0 * rate / peak
        );
    }
    precisions(gpu)
}

/// The same product at each precision: the cost of emulated f16, or the gain of matrix units.
fn precisions(gpu: &Gpu) -> Result<()> {
    println!(
        "\n| rows × inner × columns | op(A), op(B) | operands | GFLOP/s | time to f32 | first call, s |\n|---|---|---|---:|---:|---:|"
    );
    for size in [[512, 512, 512], [512, 256, 768]] {
        let [rows, inner, columns] = size;
        let a = Tensor::normal(gpu, &[rows, inner], 1.0, 7)?;
        let b = Tensor::normal(gpu, &[columns, inner], 1.0, 8)?;
        let out = Tensor::zeros(gpu, &[rows, columns])?;
        let mut plain = None;
        for (precision, error) in [(Precision::F32, 1e-4), (Precision::F16x3, 1e-4), (Precision::F16, 4e-3)] {
            let product = Gemm { precision, ..Gemm::new(Matrix::new(&a)?, Matrix::new(&b)?.t()) };
            let start = Instant::now();
            check(&product.compute()?, [&a, &b], size, [false, true], error)?;
            let first = start.elapsed().as_secs_f64();
            let seconds = fastest(gpu, || product.compute_into(Matrix::new(&out)?))?;
            let rate = 2e-9 * (rows * inner * columns) as f64 / seconds;
            let ratio = seconds / *plain.get_or_insert(seconds);
            println!("| {rows} × {inner} × {columns} | NT | {precision} | {rate:.1} | {ratio:.2} | {first:.2} |");
        }
    }
    Ok(())
}

/// Compares elements spread over the product with f64; the tolerance is `limit` times the square root of the inner size.
fn check(out: &Tensor, [a, b]: [&Tensor; 2], [rows, inner, columns]: [usize; 3], [ta, tb]: [bool; 2], limit: f64) -> Result<()> {
    let (out, a, b) = (out.to_vec()?, a.to_vec()?, b.to_vec()?);
    for at in (0..97).map(|i| i * 7_919 % (rows * columns)).chain([rows * columns - 1]) {
        let (row, column) = (at / columns, at % columns);
        let left = |k: usize| f64::from(if ta { a[k * rows + row] } else { a[row * inner + k] });
        let right = |k: usize| f64::from(if tb { b[column * inner + k] } else { b[k * columns + column] });
        let want: f64 = (0..inner).map(|k| left(k) * right(k)).sum();
        let error = (f64::from(out[at]) - want).abs() / (inner as f64).sqrt();
        assert!(error < limit, "element {at} of {rows} × {inner} × {columns}: {} is not {want}", out[at]);
    }
    Ok(())
}
