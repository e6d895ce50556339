//! Every matrix product: orientations, precisions and epilogues, at shapes that reach every tile and the sum of split-K.

use polytape::{Gemm, Gpu, Matrix, Precision, Result, Tensor};

/// (rows, inner, columns): one row, as in sampling; few rows; few columns; each number of rows per tile; tiles of 64; as many of
/// 128 as fill a GPU; and three with few outputs for their depth.
const SHAPES: [[usize; 3]; 10] = [
    [1, 64, 512],
    [8, 64, 512],
    [512, 64, 4],
    [64, 1024, 512],
    [96, 1024, 512],
    [512, 256, 512],
    [2048, 64, 2048],
    [64, 4096, 64],
    [16, 4096, 16],
    [512, 8192, 512],
];

/// Records all of them.
pub(crate) fn run(gpu: &Gpu) -> Result<()> {
    for shape in SHAPES {
        // Odd sizes, and sizes that allow vec4 accesses.
        for [rows, inner, columns] in [shape, shape.map(|size| size + 1)] {
            let out = Tensor::uninitialized(gpu, &[rows, columns])?;
            let addend = Tensor::uninitialized(gpu, &[rows, columns])?;
            for transposed in [[false, false], [false, true], [true, false], [true, true]] {
                let operand = |shape: [usize; 2], turned: bool| match turned {
                    true => Tensor::uninitialized(gpu, &[shape[1], shape[0]]),
                    false => Tensor::uninitialized(gpu, &shape),
                };
                let (a, b) = (operand([rows, inner], transposed[0])?, operand([inner, columns], transposed[1])?);
                let view = |tensor, turned: bool| Matrix::new(tensor).map(|matrix| if turned { matrix.t() } else { matrix });
                let product = Gemm::new(view(&a, transposed[0])?, view(&b, transposed[1])?);
                epilogues(product, Matrix::new(&addend)?, Matrix::new(&out)?, rows == columns)?;
            }
        }
    }
    Ok(())
}

fn epilogues<'a>(product: Gemm<'a>, addend: Matrix<'a>, out: Matrix<'a>, is_square: bool) -> Result<()> {
    for precision in Precision::ALL {
        for choice in 0..16 {
            let [with_addend, with_diagonal, with_old, symmetric] = [0, 1, 2, 3].map(|bit| choice >> bit & 1 == 1);
            if symmetric && !is_square {
                continue;
            }
            let addend = with_addend.then_some((addend, 1.0));
            let (delta, beta) = (f32::from(with_diagonal), f32::from(with_old));
            Gemm { precision, addend, delta, beta, symmetric, ..product }.compute_into(out)?;
        }
    }
    Ok(())
}
