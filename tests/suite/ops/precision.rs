//! Products at every precision: rounding bit for bit, accumulation against a float64 reference that rounds the operands the same way,
//! and the error against the exact product.

use polytape::{Factor, Gemm, Gradients, Indices, Matrix, Params, Precision, Result, Tape, Tensor};
use rand::RngExt;

use super::matmul::{TRANSPOSES, multiply, sizes_of};
use crate::check::{check_at, upload};
use crate::device;
use crate::reference::Array;
use crate::reference::array::seeded;
use crate::reference::cross_entropy::{cross_entropy_head_vjp, rounded_head, rounded_head_vjp};
use crate::reference::differences::random_arrays;
use crate::reference::half::{Operands, round, split};
use crate::tolerance::{EXACT, Tolerance, assert_close, cross_entropy, reduction, worst_error};

const HALVES: [Precision; 2] = [Precision::F16x3, Precision::F16];

pub fn operands(precision: Precision) -> Operands {
    match precision {
        Precision::F32 => Operands::Whole,
        Precision::F16x3 => Operands::Split,
        Precision::F16 => Operands::Half,
    }
}

/// A sum of `terms` products, each of which is three f16 products at f16x3.
fn sums(precision: Precision, terms: usize) -> Tolerance {
    reduction(if precision == Precision::F16x3 { 3 * terms } else { terms })
}

/// All boundary cases of rounding to f16: every f16, the midpoint to the next and its f32 neighbours on both sides, and then random
/// bits.
fn awkward() -> Vec<f32> {
    let halves: Vec<f32> = (0..31_744_u32)
        .map(|bits| match (bits >> 10, bits & 1023) {
            (0, mantissa) => mantissa as f32 * 2f32.powi(-24),
            (exponent, mantissa) => (1.0 + mantissa as f32 / 1024.0) * 2f32.powi(exponent as i32 - 15),
        })
        .collect();
    let around = halves.windows(2).flat_map(|pair| {
        let middle = 0.5 * (pair[0] + pair[1]);
        [pair[0], middle.next_down(), middle, -middle, middle.next_up()]
    });
    let limits = [65_504.0, 65_519.996, 65_520.0, 65_535.0, 65_536.0, 1e10, f32::MAX, 1e-30, 1e-40].map(|x: f32| [x, -x]);
    let mut rng = seeded(2001);
    let any = (0..20_000).map(|_| f32::from_bits(rng.random())).filter(|x| x.is_finite());
    around.chain(limits.into_iter().flatten()).chain(any.collect::<Vec<_>>()).collect()
}

/// -0 becomes +0, as in a sum that starts at +0.
fn assert_same(context: &str, x: &[f32], found: &[f32], want: impl Fn(f64) -> f64) {
    for (x, found) in x.iter().zip(found) {
        let want = want(f64::from(*x));
        assert!(f64::from(*found) == want, "{context}: {x:e} became {found:e}, should be {want:e}");
    }
}

#[test]
fn operands_are_rounded_to_the_bit_on_either_side() -> Result<()> {
    let x = awkward();
    let finite: Vec<f32> = x.iter().copied().filter(|x| x.abs() < 65_520.0).collect();
    let finite = &finite[..finite.len() / 4 * 4];
    for gpu in device::all() {
        let one = Tensor::from_slice(gpu, &[1.0], &[1, 1])?;
        let identity = Tensor::from_slice(gpu, &Array::identity(4).to_f32(), &[4, 4])?;
        let column = Tensor::from_slice(gpu, &x, &[x.len(), 1])?;
        let row = column.reshape(&[1, x.len()])?;
        // vec4 takes another load path; no infinities there, because infinity times zero is NaN.
        let tall = Tensor::from_slice(gpu, finite, &[finite.len() / 4, 4])?;
        let wide = Tensor::from_slice(gpu, finite, &[4, finite.len() / 4])?;
        for precision in HALVES {
            // f16x3 of an overflowing value is inf - inf.
            let want = |x: f64| if precision == Precision::F16 { round(x) } else { split(x).iter().sum() };
            let product = |a: &Tensor, b: &Tensor, transposed: bool| {
                let (a, b) = (Matrix::new(a)?, Matrix::new(b)?);
                let (a, b) = if transposed { (b.t(), a.t()) } else { (a, b) };
                Gemm { precision, ..Gemm::new(a, b) }.compute()?.to_vec()
            };
            let context = format!("{precision} with {} kernels", gpu.kernels());
            for transposed in [false, true] {
                for (a, b) in [(&column, &one), (&one, &row)] {
                    let found = product(a, b, transposed)?;
                    let (inside, outside): (Vec<_>, Vec<_>) = x.iter().zip(&found).partition(|(x, _)| x.abs() < 65_520.0);
                    let (inside, results): (Vec<f32>, Vec<f32>) = inside.into_iter().unzip();
                    assert_same(&context, &inside, &results, want);
                    assert!(outside.iter().all(|(_, found)| !found.is_finite()), "{context}: too large a number is finite");
                    if precision == Precision::F16 {
                        assert!(outside.iter().all(|(x, found)| **found == f32::INFINITY.copysign(**x)), "{context}");
                    }
                }
                for (a, b) in [(&tall, &identity), (&identity, &wide)] {
                    let found = product(a, b, transposed)?;
                    let turned = |values: &[f32], columns: usize| {
                        let rows = values.len() / columns;
                        Array::from_f32(&[rows, columns], values).transpose().to_f32()
                    };
                    let found = if transposed { turned(&found, if a.len() == 16 { 4 } else { a.shape()[0] }) } else { found };
                    assert_same(&context, finite, &found, want);
                }
            }
        }
    }
    Ok(())
}

/// Slices whose depth, 528, is not a multiple of that of the largest tiles, 32.
#[test]
fn slices_share_no_inner_index() -> Result<()> {
    for gpu in device::all() {
        let ones = |rows, columns| Tensor::from_slice(gpu, &vec![1.0; rows * columns], &[rows, columns]);
        let (a, b) = (ones(1024, 2064)?, ones(2064, 512)?);
        for precision in HALVES {
            let found = Gemm { precision, ..Gemm::new(Matrix::new(&a)?, Matrix::new(&b)?) }.compute()?.to_vec()?;
            let wrong = found.iter().find(|x| **x != 2064.0);
            assert_eq!(wrong, None, "{precision} with {} kernels", gpu.kernels());
        }
    }
    Ok(())
}

#[test]
fn numbers_that_are_not_finite_stay_so() -> Result<()> {
    let x = [f32::NAN, f32::from_bits(0x7fff_ffff), f32::from_bits(0xff80_0001), f32::INFINITY, f32::NEG_INFINITY];
    for gpu in device::all() {
        let (x, one) = (Tensor::from_slice(gpu, &x, &[5, 1])?, Tensor::from_slice(gpu, &[1.0], &[1, 1])?);
        for precision in Precision::ALL {
            let found = Gemm { precision, ..Gemm::new(Matrix::new(&x)?, Matrix::new(&one)?) }.compute()?.to_vec()?;
            assert!(found.iter().all(|x| !x.is_finite()), "{precision} with {} kernels: {found:?}", gpu.kernels());
        }
    }
    Ok(())
}

#[test]
fn sums_and_the_epilogue_are_not_rounded() {
    // One element; primes; just over a tile; several workgroups each way in vec4.
    for [rows, inner, columns] in [[1, 1, 1], [37, 13, 67], [65, 33, 129], [132, 68, 260]] {
        let [a, b, c, old] =
            random_arrays(2002, [&[2, rows, inner], &[2, columns, inner], &[2, rows, columns], &[2, rows, columns]]);
        // σ·C and β·out are as large as the product, but C and the old output are beyond the range of f16.
        let (c, old) = (c.times(1048576.0), old.times(1048576.0));
        let (beta, kept) = (2f32.powi(-20), -(2f32.powi(-21)));
        let factors = [0.75, -1.25];
        for precision in HALVES {
            let product = operands(precision).matmul(&a, &b, false, true);
            let half = product.len() / 2;
            let product = Array::from_fn(&product.shape, |at| 0.5 * factors[at / half] * product.data[at]);
            let want = product.plus(&c.times(f64::from(beta))).plus(&old.times(f64::from(kept)));
            for gpu in device::all() {
                let run = || {
                    let [a, b, c, out] = [&a, &b, &c, &old].map(|array| upload(gpu, array));
                    let (a, b, c, out) = (a?, b?, c?, out?);
                    let factors = Tensor::from_slice(gpu, &factors.map(|x| x as f32), &[2])?;
                    let gemm = Gemm {
                        alpha: 0.5,
                        factor: Some(Factor { tensor: &factors, index: 0, batch_stride: 1 }),
                        addend: Some((Matrix::new(&c)?, beta)),
                        beta: kept,
                        precision,
                        ..Gemm::new(Matrix::new(&a)?, Matrix::new(&b)?.t())
                    };
                    gemm.compute_into(Matrix::new(&out)?)?;
                    out.to_vec()
                };
                let context = format!("{precision}, [{rows}, {inner}, {columns}] with {} kernels", gpu.kernels());
                let found = run().unwrap_or_else(|error| panic!("{context}: {error}"));
                assert_close(&context, &found, &want, sums(precision, inner));
            }
        }
    }
}

#[test]
fn products_and_their_gradients_round_for_all_transposes() {
    // One element; just over a tile; several tiles each way in vec4.
    for sizes in [[1, 1, 1], [65, 67, 129], [68, 36, 132]] {
        for (precision, transposes) in HALVES.into_iter().flat_map(|precision| TRANSPOSES.map(|turn| (precision, turn))) {
            product(precision, sizes, transposes, [&[], &[]]);
        }
    }
    for batches in [[&[3][..], &[3]], [&[3], &[]]] {
        for precision in HALVES {
            product(precision, [37, 41, 67], [false, true], batches);
            product(precision, [68, 36, 132], [true, false], batches);
        }
    }
}

fn product(precision: Precision, [rows, inner, columns]: [usize; 3], [ta, tb]: [bool; 2], batches: [&[usize]; 2]) {
    let batch = batches[0].iter().product::<usize>();
    check_at(
        precision,
        &format!("matmul transposing {:?}", [ta, tb]),
        random_arrays(2006, sizes_of([rows, inner, columns], [ta, tb], batches).each_ref().map(|shape| &shape[..])),
        move |x| multiply(&x[0], &x[1], [ta, tb]),
        |x| operands(precision).matmul(&x[0], &x[1], ta, tb),
        |x, dy| operands(precision).matmul_vjp(&x[0], &x[1], ta, tb, dy),
        &[sums(precision, inner), sums(precision, columns), sums(precision, rows * batch)],
    );
}

#[test]
fn a_residual_is_not_rounded() {
    for [rows, inner, columns] in [[37, 41, 67], [68, 36, 132]] {
        for precision in HALVES {
            let operands = operands(precision);
            check_at(
                precision,
                "matmul_nt_add",
                random_arrays(2007, [&[rows, inner], &[columns, inner], &[rows, columns]]),
                |x| x[0].matmul_nt_add(&x[1], &x[2]),
                |x| operands.matmul(&x[0], &x[1], false, true).plus(&x[2]),
                |x, dy| {
                    let [da, db] = operands.matmul_vjp(&x[0], &x[1], false, true, dy);
                    [da, db, dy.clone()]
                },
                &[sums(precision, inner), sums(precision, columns), sums(precision, rows), EXACT],
            );
        }
    }
}

/// The logits' gradient may differ from the reference's in the last bit and then round to the other f16 neighbour. Few elements do,
/// so the result is much closer to the rounded reference than that is to the exact one.
#[test]
fn the_head_rounds_its_three_products() -> Result<()> {
    let [rows, dim, vocabulary] = [65, 36, 260];
    // Spread-out logits: most probabilities are far below 2⁻¹⁴, the smallest normal f16.
    let [x, weight] = random_arrays(2008, [&[rows, dim], &[vocabulary, dim]]);
    let targets: Vec<u32> = (0..rows as u32).map(|row| row * 31 % 260).collect();
    let dy = Array::scalar(0.37);
    let exact = cross_entropy_head_vjp(&x, &weight, &targets, &dy);
    for gpu in device::all() {
        for precision in HALVES {
            let params = Params::new(gpu);
            let tape = Tape::new(&params).with_precision(precision);
            let leaves = [tape.leaf(upload(gpu, &x)?), tape.leaf(upload(gpu, &weight)?)];
            let loss = leaves[0].head_cross_entropy(&leaves[1], &Indices::from_slice(gpu, &targets)?)?;
            let gradients = tape.backward_from(&[(&loss, upload(gpu, &dy)?)], &mut Gradients::new())?;
            let context = format!("{precision} with {} kernels", gpu.kernels());
            let want = rounded_head(operands(precision), &x, &weight, &targets);
            assert_close(&context, &loss.value().to_vec()?, &want, cross_entropy(rows, dim, vocabulary));
            let wanted = rounded_head_vjp(operands(precision), &x, &weight, &targets, &dy);
            for ((leaf, want), exact) in leaves.iter().zip(&wanted).zip(&exact) {
                let found = gradients.get(leaf).expect("a gradient");
                let found = Array::from_f32(found.shape(), &found.to_vec()?);
                let [error, rounding] = [&found, exact].map(|array| array.minus(want).norm() / want.norm());
                match precision {
                    Precision::F16 => assert!(error < 0.1 * rounding && rounding < 1e-3, "{context}: {error:e}, {rounding:e}"),
                    _ => assert!(error < 1e-6 && rounding < 1e-6, "{context}: {error:e}, {rounding:e}"),
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_symmetric_product_rounds_its_operands_too() {
    for [size, inner] in [[132, 68], [200, 100]] {
        let [a] = random_arrays(2003, [&[size, inner]]);
        for (precision, gpu) in HALVES.into_iter().flat_map(|precision| device::all().iter().map(move |gpu| (precision, gpu))) {
            let run = || {
                let a = upload(gpu, &a)?;
                let a = Matrix::new(&a)?;
                Gemm { symmetric: true, precision, ..Gemm::new(a, a.t()) }.compute()?.to_vec()
            };
            let context = format!("{precision} A·Aᵀ with {} kernels", gpu.kernels());
            let want = operands(precision).matmul(&a, &a, false, true);
            assert_close(&context, &run().expect("a product"), &want, sums(precision, inner));
        }
    }
}

#[test]
fn a_deep_product_is_cut_at_every_precision() {
    let inner = 300_001;
    let [a, b] = random_arrays(2004, [&[3, inner], &[inner, 5]]);
    for precision in HALVES {
        let want = operands(precision).matmul(&a, &b, false, false);
        for gpu in device::all() {
            let run = || {
                let (a, b) = (upload(gpu, &a)?, upload(gpu, &b)?);
                Gemm { precision, ..Gemm::new(Matrix::new(&a)?, Matrix::new(&b)?) }.compute()?.to_vec()
            };
            assert_close(&format!("deep {precision}"), &run().expect("a product"), &want, sums(precision, inner));
        }
    }
}

/// f16x3 is about as accurate as f32: a relative error of 2⁻²⁴ per operand, 2⁻²⁴ for the omitted low·low product, and f32 accumulation
/// of three times as many terms.
#[test]
fn f16x3_is_about_as_accurate_as_f32_and_f16_is_not() {
    for [rows, inner, columns] in [[37, 64, 101], [65, 257, 129], [33, 1024, 65]] {
        let [a, b] = random_arrays(2005, [&[rows, inner], &[inner, columns]]);
        // Operands of any magnitude in range: the error is relative.
        let (a, b) = (a.times(100.0), b.times(0.01));
        let (a, b) = (Array::from_f32(&a.shape, &a.to_f32()), Array::from_f32(&b.shape, &b.to_f32()));
        let exact = a.matmul(&b);
        for gpu in device::all() {
            let error = |precision| {
                let run = || {
                    let (a, b) = (upload(gpu, &a)?, upload(gpu, &b)?);
                    Gemm { precision, ..Gemm::new(Matrix::new(&a)?, Matrix::new(&b)?) }.compute()?.to_vec()
                };
                worst_error(&run().expect("a product"), &exact)
            };
            let [f32, split, half] = Precision::ALL.map(error);
            let context = format!("inner size {inner}, {} kernels: {f32:e}, {split:e}, {half:e}", gpu.kernels());
            assert!(split < 4.0 * f32, "{context}");
            assert!(half > 200.0 * split && half < 1e-2, "{context}");
        }
    }
}

#[test]
fn precisions_are_named() {
    for (precision, name) in Precision::ALL.into_iter().zip(["f32", "f16x3", "f16"]) {
        assert_eq!((precision.to_string().as_str(), name.parse::<Precision>().ok()), (name, Some(precision)));
    }
    let error = "bf16".parse::<Precision>().expect_err("not there").to_string();
    assert_eq!(error, "precision: found `bf16`, expected f32, f16x3 or f16");
}
