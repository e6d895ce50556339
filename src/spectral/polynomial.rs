//! Polynomials of a symmetric matrix G with few products, and Newton–Schulz.
//!
//! Powers of G commute and are symmetric, so with G2 = G² a polynomial is evaluated by pairs of coefficients from the top,
//! q_j = a_2j·I + a_2j+1·G + G2·q_j+1, where an even degree starts at a + b·G + c·G2: one product for degree 2, two for 3 and 4,
//! where Horner takes one less than the degree. The identity, α and β are epilogues of the product.

use crate::error::Result;
use crate::gpu::{Access, Kernel, Launch, grid};
use crate::ops::{Gemm, Matrix};
use crate::tensor::Tensor;

static COMBINE: Kernel = Kernel::trusted(
    "combine",
    include_str!("../../shaders/combine.wgsl"),
    "main",
    &[Access::Read, Access::Read, Access::ReadWrite],
);

/// α·a + β·b + δ·I over a batch [batch, n, n]; b is transposed on request.
fn combine(a: &Tensor, alpha: f32, b: &Tensor, beta: f32, transposed: bool, delta: f32) -> Result<Tensor> {
    let [matrices, size, _] = a.dims("combine")?;
    let out = Tensor::uninitialized(a.gpu(), a.shape())?;
    let arguments = [size as u32, matrices as u32, alpha.to_bits(), beta.to_bits(), delta.to_bits()];
    a.gpu().launch(&Launch {
        kernel: &COMBINE,
        constants: &[("TRANSPOSED", u32::from(transposed))],
        buffers: &[a.slice(), b.slice(), out.slice()],
        arguments: bytemuck::cast_slice(&arguments),
        workgroups: grid(a.len() as u64, 64),
        iterations: 0,
        work: 0,
    })?;
    Ok(out)
}

/// a + aᵀ.
fn plus_transposed(a: &Tensor) -> Result<Tensor> {
    combine(a, 1.0, a, 1.0, true, 0.0)
}

fn product<'a>(a: &'a Tensor, b: &'a Tensor) -> Result<Gemm<'a>> {
    Ok(Gemm::new(Matrix::new(a)?, Matrix::new(b)?))
}

/// P(G) = Σ aᵢ·Gⁱ of a batch of symmetric matrices, with what its backward needs.
pub(super) struct Polynomial<'a> {
    gram: &'a Tensor,
    square: Option<Tensor>,
    /// q_0 = P, q_1, … from the bottom.
    levels: Vec<Tensor>,
    coefficients: &'a [f32],
}

impl<'a> Polynomial<'a> {
    /// Evaluates; a polynomial of degree 0 has no value, as it is a0·I.
    pub(super) fn new(gram: &'a Tensor, coefficients: &'a [f32]) -> Result<Self> {
        let degree = coefficients.len() - 1;
        let mut this = Self { gram, square: None, levels: Vec::new(), coefficients };
        match degree {
            0 => return Ok(this),
            1 => this.levels.push(combine(gram, coefficients[1], gram, 0.0, false, coefficients[0])?),
            2 => this.levels.push(this.quadratic()?),
            _ => this.by_pairs(degree)?,
        }
        Ok(this)
    }

    /// a0·I + a1·G + a2·G² in one product.
    fn quadratic(&self) -> Result<Tensor> {
        let [a0, a1, a2] = [0, 1, 2].map(|i| self.coefficients[i]);
        let add = Some((Matrix::new(self.gram)?, a1));
        Gemm { alpha: a2, add, delta: a0, symmetric: true, ..product(self.gram, self.gram)? }.compute()
    }

    fn by_pairs(&mut self, degree: usize) -> Result<()> {
        let (gram, a) = (self.gram, self.coefficients);
        let square = Gemm { symmetric: true, ..product(gram, gram)? }.compute()?;
        let mut pair = (degree - 1) / 2;
        let top = if degree.is_multiple_of(2) {
            combine(gram, a[degree - 1], &square, a[degree], false, a[degree - 2])?
        } else {
            combine(gram, a[degree], gram, 0.0, false, a[degree - 1])?
        };
        let mut levels = vec![top];
        while pair > 0 {
            pair -= 1;
            let above = levels.last().expect("bug: there is a top");
            let add = Some((Matrix::new(gram)?, a[2 * pair + 1]));
            levels.push(Gemm { add, delta: a[2 * pair], symmetric: true, ..product(&square, above)? }.compute()?);
        }
        levels.reverse();
        self.levels = levels;
        self.square = Some(square);
        Ok(())
    }

    /// P, or `None` where it is a0·I.
    pub(super) fn value(&self) -> Option<&Tensor> {
        self.levels.first()
    }

    /// D + Dᵀ, where D = ∂⟨R, P(G)⟩/∂G for a cotangent R of P. Any R; not zero only above degree 0.
    pub(super) fn backward(&self, r: &Tensor) -> Result<Option<Tensor>> {
        let a = self.coefficients;
        let degree = a.len() - 1;
        match degree {
            0 => return Ok(None),
            1 => return combine(r, a[1], r, a[1], true, 0.0).map(Some),
            2 => {
                let dsquare = combine(r, a[2], r, a[2], true, 0.0)?;
                return self.through_square(&combine(r, a[1], r, a[1], true, 0.0)?, &dsquare).map(Some);
            }
            _ => {}
        }
        let square = self.square.as_ref().expect("bug: degrees above 2 keep the square");
        let (mut dlevel, mut dgram, mut dsquare) = (r.clone(), None, None);
        for (pair, above) in self.levels.iter().enumerate().skip(1) {
            add_scaled(&mut dgram, &dlevel, a[2 * pair - 1])?;
            add_product(&mut dsquare, &dlevel, above)?;
            dlevel = product(square, &dlevel)?.compute()?;
        }
        add_scaled(&mut dgram, &dlevel, a[if degree.is_multiple_of(2) { degree - 1 } else { degree }])?;
        if degree.is_multiple_of(2) {
            add_scaled(&mut dsquare, &dlevel, a[degree])?;
        }
        let (Some(dgram), Some(dsquare)) = (dgram, dsquare) else {
            unreachable!("bug: degrees above 2 have two levels");
        };
        self.through_square(&plus_transposed(&dgram)?, &plus_transposed(&dsquare)?).map(Some)
    }

    /// (dG + dGᵀ) + Y + Yᵀ with Y = G·(dG2 + dG2ᵀ): the backward of G2 = G², from symmetrised sums.
    fn through_square(&self, dgram: &Tensor, dsquare: &Tensor) -> Result<Tensor> {
        let half = Gemm { add: Some((Matrix::new(dgram)?, 0.5)), ..product(self.gram, dsquare)? }.compute()?;
        plus_transposed(&half)
    }
}

/// sum += factor·term.
fn add_scaled(sum: &mut Option<Tensor>, term: &Tensor, factor: f32) -> Result<()> {
    *sum = Some(match sum.take() {
        None => term.scaled(factor)?,
        Some(sum) => sum.weighted_sum(1.0, term, factor)?,
    });
    Ok(())
}

/// sum += a·b.
fn add_product(sum: &mut Option<Tensor>, a: &Tensor, b: &Tensor) -> Result<()> {
    *sum = Some(match sum.take() {
        None => product(a, b)?.compute()?,
        Some(sum) => {
            Gemm { keep: 1.0, ..product(a, b)? }.compute_into(Matrix::new(&sum)?)?;
            sum
        }
    });
    Ok(())
}

/// Coefficient sets (a, b, c) of the quintic X ← a·X + (b·A + c·A²)·X, A = X·Xᵀ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NewtonSchulz {
    /// One triple for every step.
    #[default]
    Simple,
    /// Five triples.
    Quintic,
    /// Eight triples, of which the last repeats.
    PolarExpress,
    /// Four triples.
    Aol,
}

impl NewtonSchulz {
    fn triples(self) -> &'static [[f32; 3]] {
        match self {
            Self::Simple => &[[3.4445, -4.7750, 2.0315]],
            Self::Quintic => &[
                [4.0848, -6.8946, 2.9270],
                [3.9505, -6.3029, 2.6377],
                [3.7418, -5.5913, 2.3037],
                [2.8769, -3.1427, 1.2046],
                [2.8366, -3.0525, 1.2012],
            ],
            Self::PolarExpress => &[
                [7.2086, -15.5131, 9.0178],
                [3.9623, -2.5813, 0.4542],
                [3.9466, -2.5765, 0.4544],
                [3.8991, -2.5671, 0.4566],
                [3.7186, -2.5308, 0.4653],
                [3.1390, -2.3073, 0.4733],
                [2.1715, -1.5246, 0.3885],
                [1.8648, -1.2224, 0.3577],
            ],
            Self::Aol => {
                &[[4.0098, -7.0585, 2.4635], [3.4585, -5.5479, 2.5959], [2.7573, -3.2939, 1.4254], [2.7215, -3.0494, 1.3169]]
            }
        }
    }

    /// The coefficients of step `step`, counted from 0.
    pub fn at(self, step: usize) -> [f32; 3] {
        let triples = self.triples();
        match self {
            Self::PolarExpress => triples[step.min(triples.len() - 1)],
            _ => triples[step % triples.len()],
        }
    }

    /// The usual number of steps.
    pub fn default_steps(self) -> usize {
        if self == Self::PolarExpress { 8 } else { 5 }
    }
}

/// `steps` steps of X ← X·P(XᵀX) (or the mirror image for a wide X, so that the smaller side is squared), which drive the singular
/// values of an X [r, c] of norm at most 1 towards 1.
pub fn newton_schulz(x: Tensor, coefficients: NewtonSchulz, steps: usize) -> Result<Tensor> {
    let [rows, columns] = x.dims("newton_schulz")?;
    let mut x = x.reshape(&[1, rows, columns])?;
    for step in 0..steps {
        let gram = gram(&x, None)?;
        let triple = coefficients.at(step);
        let polynomial = Polynomial::new(&gram, &triple)?;
        let p = polynomial.value().expect("bug: a quintic has degree 2");
        x = beside(&x, p)?.compute()?;
    }
    x.reshape(&[rows, columns])
}

/// The product with P on the smaller side: x·p for a tall x, p·x for a wide one.
pub(super) fn beside<'a>(x: &'a Tensor, p: &'a Tensor) -> Result<Gemm<'a>> {
    let [_, rows, columns] = x.dims("pc")?;
    if rows >= columns { product(x, p) } else { product(p, x) }
}

/// f·xᵀx for a tall x, f·x·xᵀ for a wide one.
pub(super) fn gram(x: &Tensor, factor: Option<crate::ops::Factor<'_>>) -> Result<Tensor> {
    let (left, right) = sides(x, x)?;
    Gemm { factor, symmetric: true, ..Gemm::new(left, right) }.compute()
}

/// The factors of xᵀ·y for a tall x, of y·xᵀ for a wide one.
pub(super) fn sides<'a>(x: &'a Tensor, y: &'a Tensor) -> Result<(Matrix<'a>, Matrix<'a>)> {
    let [_, rows, columns] = x.dims("pc")?;
    let (x, y) = (Matrix::new(x)?, Matrix::new(y)?);
    Ok(if rows >= columns { (x.t(), y) } else { (y, x.t()) })
}
