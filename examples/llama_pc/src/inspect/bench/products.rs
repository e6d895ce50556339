//! The products of a training step: x·Wᵀ forward, dy·W and dyᵀ·x backward, at each precision.

use polytape::llama::LlamaConfig;
use polytape::{Gemm, Matrix, Precision, Tensor, logit_rows};

use super::report::{Row, Unit};
use super::session::{Case, Session, agree};
use super::sizes::{PUBLISHED, SMALL, TOKENS, preset, tokens};
use super::table;
use super::values::{dot, tensor, value};

/// A product op(A)·op(B).
struct Product {
    what: String,
    /// [rows, inner, columns].
    size: [usize; 3],
    /// Whether A and B are stored transposed.
    transposed: [bool; 2],
}

impl Product {
    fn operations(&self) -> f64 {
        2.0 * self.size.iter().product::<usize>() as f64
    }

    /// Forward and backward of a layer on `tokens` tokens.
    fn of_layer(model: &str, layer: &str, tokens: usize, [inner, outer]: [usize; 2]) -> [Self; 3] {
        let product = |size: [usize; 3], transposed, text: &str| {
            let [rows, inner, columns] = size;
            Self { what: format!("{model} {layer}: {text} {rows} × {inner} × {columns}"), size, transposed }
        };
        [
            product([tokens, inner, outer], [false, true], "A·Bᵀ"),
            product([tokens, outer, inner], [false, false], "A·B"),
            product([outer, tokens, inner], [true, false], "Aᵀ·B"),
        ]
    }

    /// A, B, and zeros for the product.
    fn operands(&self, session: &Session) -> Case<[Tensor; 3]> {
        let ([rows, inner, columns], [ta, tb], gpu) = (self.size, self.transposed, &session.gpu);
        let stored = |first, second, transposed: bool| if transposed { [second, first] } else { [first, second] };
        let a = tensor(gpu, &stored(rows, inner, ta), 1.0, 1)?;
        let b = tensor(gpu, &stored(inner, columns, tb), 1.0, 2)?;
        Ok([a, b, Tensor::zeros(gpu, &[rows, columns])?])
    }

    /// Every product of a block, and those of the head.
    fn of_model(name: &str, sizes: &LlamaConfig, tokens: usize) -> Vec<Self> {
        let (dim, wide) = (sizes.dim, sizes.intermediate_size);
        [
            Self::of_layer(name, "q, k, v, o", tokens, [dim, sizes.q_dim()]),
            Self::of_layer(name, "gate, up", tokens, [dim, wide]),
            Self::of_layer(name, "down", tokens, [wide, dim]),
            Self::of_layer(name, "head", logit_rows(tokens, sizes.vocab), [dim, sizes.vocab]),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// Times that a product runs while it is measured: to be checked, and to be timed thrice.
const RUNS: f64 = 4.0;
/// Side of the product whose speed gives the first estimates.
const PROBE: usize = 512;

/// Every line of the part.
pub fn run(session: &mut Session) -> Case {
    let mut rates = Precision::ALL.map(|_| f64::INFINITY);
    for (precision, rate) in Precision::ALL.into_iter().zip(&mut rates) {
        *rate = probe(session, precision)?;
    }
    let mut measured = false;
    for (at, name) in PUBLISHED.into_iter().enumerate() {
        let sizes = preset(name)?;
        let share = session.left() / (PUBLISHED.len() - at) as f64;
        let seconds = |tokens| estimate(&Product::of_model(name, &sizes, tokens), &rates);
        let Some(tokens) = tokens(share, seconds) else {
            let (least, needed) = (TOKENS[TOKENS.len() - 1], TOKENS.map(seconds)[TOKENS.len() - 1]);
            let (needed, share) = (table::seconds(needed), table::seconds(share));
            session.leave_out(name, format!("its products of {least} tokens take about {needed}, {share} left for them"));
            continue;
        };
        measured = true;
        products(session, &Product::of_model(name, &sizes, tokens), &mut rates);
    }
    if !measured {
        products(session, &Product::of_model(SMALL, &preset(SMALL)?, PROBE), &mut rates);
    }
    Ok(())
}

/// FLOP/s of a small product.
fn probe(session: &Session, precision: Precision) -> Case<f64> {
    let x = tensor(&session.gpu, &[PROBE, PROBE], 1.0, 1)?;
    let gemm = Gemm { precision, ..Gemm::new(Matrix::new(&x)?, Matrix::new(&x)?.t()) };
    let out = gemm.compute()?;
    let timing = session.time(|| gemm.compute_into(Matrix::new(&out)?))?;
    Ok(2.0 * (PROBE as f64).powi(3) / timing.seconds)
}

/// Seconds that the products take at all precisions.
fn estimate(products: &[Product], rates: &[f64]) -> f64 {
    let operations: f64 = products.iter().map(Product::operations).sum();
    rates.iter().map(|rate| RUNS * operations / rate).sum()
}

fn products(session: &mut Session, products: &[Product], rates: &mut [f64]) {
    for product in products {
        // The operands are the same at every precision.
        let mut operands = None;
        for (precision, rate) in Precision::ALL.into_iter().zip(rates.iter_mut()) {
            let what = format!("{} at {precision}", product.what);
            session.case(&what, RUNS * product.operations() / *rate, |session| {
                let tensors = match operands.take() {
                    Some(tensors) => tensors,
                    None => product.operands(session)?,
                };
                let tensors = operands.insert(tensors);
                *rate = measure(session, product, precision, tensors)?;
                Ok(())
            });
        }
    }
}

/// FLOP/s of a product.
fn measure(session: &mut Session, product: &Product, precision: Precision, [a, b, out]: &[Tensor; 3]) -> Case<f64> {
    let [ta, tb] = product.transposed;
    let view = |tensor, transposed| Matrix::new(tensor).map(|matrix| if transposed { matrix.t() } else { matrix });
    let gemm = Gemm { precision, ..Gemm::new(view(a, ta)?, view(b, tb)?) };
    gemm.compute_into(Matrix::new(out)?)?;
    check(product, precision, out)?;
    let timing = session.time(|| gemm.compute_into(Matrix::new(out)?))?;
    let rate = product.operations() / timing.seconds;
    // f16x3 is three products of f16.
    let limit = match (precision, session.limits.matrices) {
        (Precision::F16, Some(matrices)) => matrices,
        (Precision::F16x3, Some(matrices)) => matrices / 3.0,
        _ => session.limits.multiply_adds,
    };
    if precision == Precision::F32 {
        session.limits.product = Some(session.limits.product.map_or(rate, |best| best.max(rate)));
    }
    session.row(Row {
        what: product.what.clone(),
        column: precision.to_string(),
        unit: Unit::Teraflops,
        value: rate / 1e12,
        of_limit: Some(rate / limit),
        spread: timing.spread,
        ..Row::default()
    });
    Ok(rate)
}

/// Compares elements of three rows with float64; the tolerance grows with the root of the inner size, as the sums do.
fn check(product: &Product, precision: Precision, out: &Tensor) -> Case {
    let ([rows, inner, columns], [ta, tb]) = (product.size, product.transposed);
    let tolerance = if precision == Precision::F16 { 4e-3 } else { 1e-4 } * (inner as f64).sqrt();
    for row in [0, rows / 3 * 2 + 1, rows - 1].map(|row| row.min(rows - 1)) {
        let found = out.read(row * columns..(row + 1) * columns)?;
        for column in (0..31).map(|at| at * 7919 % columns).chain([columns - 1]) {
            let left = |k: usize| f64::from(value(1, if ta { k * rows + row } else { row * inner + k }));
            let right = |k: usize| f64::from(value(2, if tb { column * inner + k } else { k * columns + column }));
            let want = dot(inner, |k| left(k) * right(k));
            agree(|| format!("element [{row}, {column}]"), f64::from(found[column]), want, tolerance)?;
        }
    }
    Ok(())
}
