//! Polynomials of a symmetric matrix with few products, and Newton–Schulz.
//!
//! Powers of a symmetric matrix commute and are symmetric. From degree d = 4 on, the matrix is shifted: with X = G + h·I, where h
//! makes the coefficient q_{d-1} of P = Σ qᵢ·Xⁱ vanish, the leading terms complete a square,
//!     q_d·K² + q_{d-3}·X + constant·I,   K = X² + s·I,   s = q_{d-2} / (2·q_d),
//! so that degree 4 takes two products and its backward two, where Horner's rule takes three and five. The remaining terms, and
//! degrees below 4 after a quadratic, use Horner's rule. Identities and scales are applied in the products' epilogues.

use crate::error::{Error, Result};
use crate::gemm::{Factor, Gemm, Matrix};
use crate::gpu::{Access, Kernel, Launch, grid, vectors, with_twin};
use crate::tensor::Tensor;

static PLUS_TRANSPOSED: Kernel = with_twin!(
    Kernel::trusted(
        "plus_transposed",
        include_str!("../../shaders/plus_transposed.wgsl"),
        "main",
        &[Access::Read, Access::ReadWrite],
    ),
    twins::plus_transposed
);

/// a + aᵀ for a batch [batch, n, n].
pub(super) fn plus_transposed(a: &Tensor) -> Result<Tensor> {
    let [matrices, size, _] = a.dims("plus_transposed")?;
    let out = Tensor::uninitialized(a.gpu(), a.shape())?;
    let blocks = size / if size.is_multiple_of(4) { 4 } else { 1 };
    a.gpu().launch(&Launch {
        kernel: &PLUS_TRANSPOSED,
        constants: &[("VECTORS", vectors(size))],
        buffers: &[a.slice(), out.slice()],
        arguments: bytemuck::cast_slice(&[size as u32, matrices as u32]),
        workgroups: grid((matrices * blocks * blocks) as u64, 64),
        iterations: 0,
        work: 0,
    })?;
    Ok(out)
}

/// A product that gives a matrix of a stack the bits that it gives alone.
pub(super) fn gemm<'a>(a: Matrix<'a>, b: Matrix<'a>) -> Gemm<'a> {
    Gemm { whole_sums: true, ..Gemm::new(a, b) }
}

fn product<'a>(a: &'a Tensor, b: &'a Tensor) -> Result<Gemm<'a>> {
    Ok(gemm(Matrix::new(a)?, Matrix::new(b)?))
}

/// A product whose result is known to be symmetric.
fn symmetric<'a>(a: &'a Tensor, b: &'a Tensor) -> Result<Gemm<'a>> {
    Ok(Gemm { symmetric: true, ..product(a, b)? })
}

/// The leading terms of a polynomial, evaluated before Horner's rule.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Leading {
    /// X
    Itself,
    /// q₂·X² + q₁·X + q₀·I
    Quadratic([f32; 3]),
    /// square·K² + linear·X + constant·I, where K = X² + inner·I
    Quartic { square: f32, inner: f32, linear: f32, constant: f32 },
}

/// Evaluation scheme of P(G) = Σ aᵢ·Gⁱ, as a polynomial of X = scale·G + shift·I.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Form {
    pub(super) scale: f32,
    shift: f32,
    leading: Leading,
    /// Horner steps: the coefficient added after each further product with X.
    steps: Vec<f32>,
}

impl Form {
    /// The scheme for these coefficients; `None` if P = a₀·I.
    pub(super) fn new(coefficients: &[f32]) -> Option<Self> {
        let degree = coefficients.iter().rposition(|&a| a != 0.0)?;
        match coefficients[..=degree] {
            [_] => None,
            // The product that computes G gives P itself.
            [shift, scale] => Some(Self { scale, shift, leading: Leading::Itself, steps: Vec::new() }),
            ref a => Some(Self::with_square(a).unwrap_or_else(|| Self::with_quadratic(a))),
        }
    }

    fn with_quadratic(a: &[f32]) -> Self {
        let (below, leading) = a.split_at(a.len() - 3);
        let leading = Leading::Quadratic([leading[0], leading[1], leading[2]]);
        Self { scale: 1.0, shift: 0.0, leading, steps: below.iter().rev().copied().collect() }
    }

    /// `None` below degree 4, or if the shifted coefficients are so large that their terms would cancel.
    fn with_square(a: &[f32]) -> Option<Self> {
        let degree = a.len() - 1;
        if degree < 4 {
            return None;
        }
        let mut q: Vec<f64> = a.iter().copied().map(f64::from).collect();
        let shift = q[degree - 1] / (degree as f64 * q[degree]);
        for first in 0..degree {
            for i in (first..degree).rev() {
                q[i] -= shift * q[i + 1];
            }
        }
        let (below, leading) = q.split_at(degree - 4);
        let inner = leading[2] / (2.0 * leading[4]);
        let constant = leading[0] - leading[4] * inner * inner;
        // Upper bound on the sum of the terms' magnitudes for eigenvalues of G in [0, 1].
        let reach = 1.0 + shift.abs();
        let highest = leading[4].abs() * (reach * reach + inner.abs()).powi(2) + leading[1].abs() * reach + constant.abs();
        let terms = below.iter().rev().fold(highest, |sum, q| sum * reach + q.abs());
        let plain: f64 = a.iter().map(|a| f64::from(a.abs())).sum();
        let form = || Self {
            scale: 1.0,
            shift: shift as f32,
            leading: Leading::Quartic {
                square: leading[4] as f32,
                inner: inner as f32,
                linear: leading[1] as f32,
                constant: constant as f32,
            },
            steps: below.iter().rev().map(|&q| q as f32).collect(),
        };
        (terms <= 4.0 * plain).then(form)
    }
}

/// A polynomial of a batch of symmetric matrices, with the intermediates for its backward.
pub(super) struct Polynomial<'a> {
    form: &'a Form,
    x: Tensor,
    /// K of [`Leading::Quartic`].
    inner: Option<Tensor>,
    /// The leading terms, then the result of each Horner step; the last is P.
    levels: Vec<Tensor>,
}

impl<'a> Polynomial<'a> {
    /// P(G) for G = f·wᵀw (tall w) or f·w·wᵀ (wide w), with the factor f on the device.
    pub(super) fn of_gram(w: &Tensor, factor: Option<Factor<'_>>, form: &'a Form) -> Result<Self> {
        let (left, right) = gram_operands(w, w)?;
        let x = Gemm { alpha: form.scale, factor, delta: form.shift, symmetric: true, ..gemm(left, right) }.compute()?;
        let (leading, inner) = match form.leading {
            Leading::Itself => (x.clone(), None),
            Leading::Quadratic([q0, q1, q2]) => {
                let addend = Some((Matrix::new(&x)?, q1));
                (Gemm { alpha: q2, addend, delta: q0, ..symmetric(&x, &x)? }.compute()?, None)
            }
            Leading::Quartic { square, inner, linear, constant } => {
                let k = Gemm { delta: inner, ..symmetric(&x, &x)? }.compute()?;
                let addend = Some((Matrix::new(&x)?, linear));
                (Gemm { alpha: square, addend, delta: constant, ..symmetric(&k, &k)? }.compute()?, Some(k))
            }
        };
        let mut levels = vec![leading];
        for &delta in &form.steps {
            let above = levels.last().expect("bug: there are leading terms");
            let level = Gemm { delta, ..symmetric(&x, above)? }.compute()?;
            levels.push(level);
        }
        Ok(Self { form, x, inner, levels })
    }

    /// P.
    pub(super) fn value(&self) -> &Tensor {
        self.levels.last().expect("bug: there are leading terms")
    }

    /// D + Dᵀ, where D = ∂⟨R, P⟩/∂X for a cotangent R of P.
    ///
    /// X and all polynomials of it are symmetric, so only S = R + Rᵀ matters. A step L' = X·L + q·I contributes (S·L + L·S)/2 and
    /// propagates (X·S + S·X)/2 to L. Half of each contribution is accumulated in Y, so that D + Dᵀ = Y + Yᵀ.
    pub(super) fn backward(&self, r: &Tensor) -> Result<Tensor> {
        let mut s = plus_transposed(r)?;
        let mut half = None;
        for level in self.levels.iter().rev().skip(1) {
            half = Some(accumulate(half, Gemm { alpha: 0.5, ..product(&s, level)? })?);
            s = plus_transposed(&Gemm { alpha: 0.5, ..product(&self.x, &s)? }.compute()?)?;
        }
        let half = match self.form.leading {
            Leading::Itself => return Ok(s),
            Leading::Quadratic([_, q1, q2]) => {
                let addend = Some((Matrix::new(&s)?, 0.5 * q1));
                accumulate(half, Gemm { alpha: q2, addend, ..product(&s, &self.x)? })?
            }
            Leading::Quartic { square, linear, .. } => {
                let k = self.inner.as_ref().expect("bug: a quartic keeps its K");
                let m = plus_transposed(&Gemm { alpha: square, ..product(&s, k)? }.compute()?)?;
                let addend = Some((Matrix::new(&s)?, 0.5 * linear));
                accumulate(half, Gemm { addend, ..product(&m, &self.x)? })?
            }
        };
        plus_transposed(&half)
    }
}

/// sum + product, in place.
fn accumulate(sum: Option<Tensor>, gemm: Gemm<'_>) -> Result<Tensor> {
    match sum {
        None => gemm.compute(),
        Some(sum) => {
            Gemm { beta: 1.0, ..gemm }.compute_into(Matrix::new(&sum)?)?;
            Ok(sum)
        }
    }
}

/// Coefficient sets (a, b, c) of the quintic `X ← a·X + (b·A + c·A²)·X`, `A = X·Xᵀ`. All but Polar Express cycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum NewtonSchulz {
    /// One triple, from Keller Jordan's [Muon](https://kellerjordan.github.io/posts/muon/): singular values end within about 0.3 of 1.
    #[default]
    Simple,
    /// Five triples, one per step, by You Jiacheng for modded-nanogpt.
    Quintic,
    /// Eight triples after [Polar Express](https://arxiv.org/abs/2505.16932); the last one repeats. Converges to 1.
    PolarExpress,
    /// Four triples, from thib-s/flash-newton-schulz.
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

    /// The usual number of steps: 8 for Polar Express, else 5.
    pub fn default_steps(self) -> usize {
        if self == Self::PolarExpress { 8 } else { 5 }
    }
}

/// Approximate orthogonalization: `steps` steps of `X ← X·(a·I + b·G + c·G²)`, `G = XᵀX` (mirrored for a wide X, so that G is on
/// the smaller side), drive the singular values of X `[rows, columns]`, or of each matrix of a stack `[count, rows, columns]`, towards
/// 1. X must have spectral norm at most about 1: divide by the Frobenius norm. Not differentiable. An error unless X is of rank 2 or
/// 3.
///
/// ```
/// # use polytape::*;
/// # use polytape::spectral::{NewtonSchulz, newton_schulz};
/// # let gpu = Gpu::open(&Default::default())?;
/// let x = Tensor::from_slice(&gpu, &[0.6, 0.0, 0.0, 0.01], &[2, 2])?;
/// let y = newton_schulz(x, NewtonSchulz::PolarExpress, 8)?.to_vec()?;
/// assert!((y[0] - 1.0).abs() < 0.02 && (y[3] - 1.0).abs() < 0.02);
/// # Ok::<(), Error>(())
/// ```
pub fn newton_schulz(x: Tensor, coefficients: NewtonSchulz, steps: usize) -> Result<Tensor> {
    let shape = x.shape().to_vec();
    let mut x = match shape[..] {
        [rows, columns] => x.reshape(&[1, rows, columns])?,
        [_, _, _] => x,
        _ => return Err(Error::shape("newton_schulz", &[&shape], format!("shape {shape:?}: 2 or 3 dimensions expected"))),
    };
    for step in 0..steps {
        let form = Form::new(&coefficients.at(step)).expect("bug: a quintic has degree 2");
        let polynomial = Polynomial::of_gram(&x, None, &form)?;
        x = multiply_on_smaller_side(&x, polynomial.value())?.compute()?;
    }
    x.reshape(&shape)
}

/// Maximum binding, in bytes, of [`newton_schulz`] of a matrix `[rows, columns]` that cannot be split: symmetric products with a
/// diagonal, with operand X (unless tall: split along its rows) and a square result.
pub fn newton_schulz_binding([rows, columns]: [usize; 2]) -> u64 {
    // Wide: X and then rows × rows; tall: columns × columns.
    4 * (rows.min(columns) * columns) as u64
}

/// The product with P on the smaller side: x·p for tall x, p·x for wide x.
pub(super) fn multiply_on_smaller_side<'a>(x: &'a Tensor, p: &'a Tensor) -> Result<Gemm<'a>> {
    let [_, rows, columns] = x.dims("matrix polynomial")?;
    if rows >= columns { product(x, p) } else { product(p, x) }
}

/// The operands of xᵀ·y for tall x, of y·xᵀ for wide x.
pub(super) fn gram_operands<'a>(x: &'a Tensor, y: &'a Tensor) -> Result<(Matrix<'a>, Matrix<'a>)> {
    let [_, rows, columns] = x.dims("matrix polynomial")?;
    let (x, y) = (Matrix::new(x)?, Matrix::new(y)?);
    Ok(if rows >= columns { (x.t(), y) } else { (y, x.t()) })
}

#[cfg(feature = "host")]
mod twins {
    use crate::gpu::host::Host;

    pub(super) fn plus_transposed(host: &Host<'_>) {
        let size = host.size(0);
        if size.is_multiple_of(4) { by_blocks::<4>(host, size) } else { by_blocks::<1>(host, size) }
    }

    /// In strips of `SIDE` rows. Blocks larger than 4 × 4 no longer fit the registers and are slower.
    fn by_blocks<const SIDE: usize>(host: &Host<'_>, size: usize) {
        let (a, [out]) = (host.input(0), host.outputs());
        let strips = size / SIDE;
        host.rows(
            host.size(1) * strips,
            4 * SIDE * size,
            [(out, SIDE * size)],
            #[inline(always)]
            |range, [out]| {
                for (strip, out) in range.zip(out.chunks_exact_mut(SIDE * size)) {
                    let a = &a[strip / strips * size * size..][..size * size];
                    let row = strip % strips * SIDE;
                    for column in (0..size).step_by(SIDE) {
                        let mut block = [[0.0; SIDE]; SIDE];
                        for (i, line) in block.iter_mut().enumerate() {
                            line.copy_from_slice(&a[(column + i) * size + row..][..SIDE]);
                        }
                        for k in 0..SIDE {
                            let own = &a[(row + k) * size + column..][..SIDE];
                            for ((out, own), line) in out[k * size + column..][..SIDE].iter_mut().zip(own).zip(&block) {
                                *out = own + line[k];
                            }
                        }
                    }
                }
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spectral::level_coefficients;

    /// P(g) of a scalar, by the scheme.
    fn value(form: &Form, g: f64) -> f64 {
        let x = f64::from(form.scale) * g + f64::from(form.shift);
        let leading = match form.leading {
            Leading::Itself => x,
            Leading::Quadratic(q) => f64::from(q[0]) + x * (f64::from(q[1]) + x * f64::from(q[2])),
            Leading::Quartic { square, inner, linear, constant } => {
                f64::from(square) * (x * x + f64::from(inner)).powi(2) + f64::from(linear) * x + f64::from(constant)
            }
        };
        form.steps.iter().fold(leading, |sum, &q| x * sum + f64::from(q))
    }

    #[test]
    fn a_form_has_the_polynomials_values() {
        let levels = (1..=4).map(|level| level_coefficients(level).expect("a level"));
        let others =
            [vec![2.5, -4.0, 5.5, -5.0, 3.0, -1.0], vec![1.0, 0.5, 0.0], vec![3.0, -7.0, 13.0, -16.0, 13.5, -8.0, 3.0, -0.5]];
        for a in levels.chain(others) {
            let form = Form::new(&a).expect("more than a constant");
            for g in [0.0, 0.1, 0.37, 0.8, 1.0] {
                let want = a.iter().rev().fold(0.0, |sum, &q| g * sum + f64::from(q));
                assert!((value(&form, g) - want).abs() < 1e-5, "{a:?} at {g}: {} instead of {want}", value(&form, g));
            }
        }
    }

    #[test]
    fn degree_4_is_a_square_unless_its_terms_would_cancel() {
        let leading = |a: &[f32]| Form::new(a).expect("more than a constant").leading;
        assert!(matches!(leading(&level_coefficients(4).expect("a level")), Leading::Quartic { .. }));
        assert!(matches!(leading(&[1.0, 0.5, -0.25, 0.75, 0.001]), Leading::Quadratic(_)));
        assert_eq!(leading(&[1.0, 0.5, 0.0, 0.0]), Leading::Itself);
        assert_eq!(Form::new(&[1.0, 0.0]), None);
    }
}
