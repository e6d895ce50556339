//! PC layers and Muon on some blocks of the published models: what a step pays for them besides the model.

use polytape::llama::names;
use polytape::optim::Clip;
use polytape::spectral::{NewtonSchulz, PC_U, PC_V, Preconditioner};
use polytape::{Gpu, Gradients, ParamId, Params, Result, Role, Tensor};

use super::report::{Row, Unit};
use super::session::{Case, Session, Timing, agree};
use super::sizes::{PUBLISHED, SMALL};
use super::table;
use super::values::{dot, filled, tensor, value};
use crate::config::Config;
use crate::inspect::plan::StepFlops;
use crate::model::engine;

/// Blocks at a time, where there is time for as many: a step computes matrices of one shape together.
const BLOCKS: [usize; 2] = [4, 1];
/// Times that a part runs while it is measured.
const RUNS: f64 = 4.0;
/// The share of the limit that slow kernels reach, for the first estimate.
const SLOW: f64 = 0.1;
/// Seeds of the two vectors that the PC layer's check needs.
const LEFT: u32 = 91;
const RIGHT: u32 = 92;

/// Every line of the part.
pub fn run(session: &mut Session) -> Case {
    let mut measured = false;
    for (at, name) in PUBLISHED.into_iter().enumerate() {
        let share = session.left() / (PUBLISHED.len() - at) as f64;
        measured |= model(session, name, share)?;
    }
    if !measured {
        model(session, SMALL, session.left())?;
    }
    Ok(())
}

/// Measures as many blocks as fit in `share` of the time; false if none did.
fn model(session: &mut Session, name: &str, share: f64) -> Case<bool> {
    let rate = session.limits.product.map_or(SLOW * session.limits.multiply_adds, |best| best / 2.0);
    // The blocks are alike.
    let one = StepFlops::of(&config(name, 1)?)?;
    let seconds = |flops: f64, blocks: usize| RUNS * blocks as f64 * flops / rate;
    let rows = session.rows();
    for (column, flops, measure) in [("PC layers", one.pc, pc as Measure), ("Muon", one.optimizer, muon as Measure)] {
        let Some(blocks) = BLOCKS.into_iter().find(|&blocks| seconds(flops, blocks) <= share / 2.0) else {
            let (needed, share) = (table::seconds(seconds(flops, 1)), table::seconds(share / 2.0));
            session.leave_out(&format!("{column} of {name}"), format!("one block takes about {needed}, {share} are for it"));
            continue;
        };
        let plural = if blocks == 1 { "" } else { "s" };
        let config = config(name, blocks)?;
        session.case(&format!("{column} of {name}"), seconds(flops, blocks), |session| {
            let timing = measure(session, &config)?;
            session.row(Row {
                what: format!("{name}: {blocks} block{plural}"),
                column: column.to_owned(),
                unit: Unit::Milliseconds,
                value: 1e3 * timing.seconds,
                spread: timing.spread,
                of_limit: Some(flops * blocks as f64 / timing.seconds / session.limits.multiply_adds),
                ..Row::default()
            });
            Ok(())
        });
    }
    Ok(session.rows() > rows)
}

/// Checks and times something of a configuration.
type Measure = fn(&Session, &Config) -> Case<Timing>;

/// Seconds of the PC layers of some blocks: effective weights, backward and power iterations, as a step has them once.
fn pc(session: &Session, config: &Config) -> Case<Timing> {
    let layers = Layers::new(&session.gpu, config)?;
    layers.check()?;
    Ok(session.time(|| layers.step().map(drop))?)
}

/// A published model with some of its blocks.
fn config(name: &str, blocks: usize) -> Case<Config> {
    let layers = format!("model.layers={blocks}");
    let preset = format!("model.preset={name}");
    let pc = ["pc.level=4".to_owned(), "pc.targets=[\"o\", \"ffn\"]".to_owned()];
    // Without weight decay, so that one step from zero is the update itself.
    let muon = ["optimizer.kind=muon", "optimizer.weight_decay=0"].map(str::to_owned);
    let mut config = Config::load(None, &[&[preset, layers], &pc, &muon].map(|set| &set[..]).concat())?;
    config.resolve_vocab(None)?;
    Ok(config)
}

/// PC layers with cotangents of their effective weights.
struct Layers {
    params: Params,
    preconditioner: Preconditioner,
    cotangents: Vec<(ParamId, Tensor)>,
}

impl Layers {
    fn new(gpu: &Gpu, config: &Config) -> Case<Self> {
        let sizes = engine::model(config);
        let mut params = Params::new(gpu);
        let mut cotangents = Vec::new();
        let targets = engine::pc_targets(config);
        for (number, parameter) in sizes.parameters().into_iter().enumerate() {
            if !targets.iter().any(|(stem, _)| names::weight(stem) == parameter.name) {
                continue;
            }
            let seed = number as u32;
            let id = params.add(parameter.name, Role::Matrix, tensor(gpu, &parameter.shape, parameter.std as f32, seed)?)?;
            cotangents.push((id, outer(gpu, [parameter.shape[0], parameter.shape[1]])?));
        }
        let all: Vec<_> = cotangents.iter().map(|(id, _)| (*id, 1)).collect();
        let pc = config.pc.as_ref().expect("bug: the configuration has PC layers");
        let preconditioner = Preconditioner::attach(&mut params, engine::pc(pc)?, &all, 7)?;
        preconditioner.refresh(&mut params)?;
        Ok(Self { params, preconditioner, cotangents })
    }

    /// What a step does: effective weights, their backward, and the power iterations.
    fn step(&self) -> Result<(Params, Gradients)> {
        let effective = self.preconditioner.effective(&self.params)?;
        let mut gradients = Gradients::new();
        for (id, cotangent) in &self.cotangents {
            gradients.add(*id, cotangent.clone())?;
        }
        let gradients = self.preconditioner.backward(&self.params, &effective, gradients)?;
        self.preconditioner.refresh(&mut self.params.clone())?;
        Ok((effective.params, gradients))
    }

    /// Compares the matrices of the first block with float64, by products with vectors: no product of matrices is needed.
    fn check(&self) -> Case {
        let (effective, gradients) = self.step()?;
        for (id, _) in self.cotangents.iter().take(4) {
            let gradient = gradients.get(*id).ok_or_else(|| polytape::Error::Value("PC layer: no gradient flows".into()))?;
            self.check_layer(*id, &effective.get(*id)?.tensor, gradient)?;
        }
        Ok(())
    }

    fn check_layer(&self, id: ParamId, effective: &Tensor, gradient: &Tensor) -> Case {
        let param = self.params.get(id)?;
        let stem = param.name.trim_end_matches(".weight");
        let state = |name: &str| -> Result<Vec<f64>> {
            let vector = self.params.id(&format!("{stem}.{name}"))?;
            Ok(self.params.get(vector)?.tensor.to_vec()?.into_iter().map(f64::from).collect())
        };
        let coefficients: Vec<f64> = self.preconditioner.config().coefficients.iter().map(|a| f64::from(*a)).collect();
        let reference = Reference {
            columns: param.tensor.shape()[1],
            w: param.tensor.to_vec()?,
            u: state(PC_U)?,
            v: state(PC_V)?,
            eps: f64::from(self.preconditioner.config().eps),
            coefficients,
        };
        let [a, b] = reference.vectors();
        let name = |part: &str| format!("{part} of {}", param.name);
        // W_eff·b, in the norm.
        let none = (&vec![0.0; reference.w.len()][..], 0.0);
        let want = reference.effective(none, &b);
        let found = product(&effective.to_vec()?, reference.columns, &b);
        let difference = norm(&found.iter().zip(&want).map(|(found, want)| found - want).collect::<Vec<_>>());
        agree(|| name("the error of W_eff"), difference / norm(&want), 0.0, 1e-4)?;
        // The loss is aᵀ·W_eff·b. Along its gradient it changes by the gradient's norm.
        let gradient: Vec<f64> = gradient.to_vec()?.into_iter().map(f64::from).collect();
        let size = norm(&gradient);
        let step = 1e-4 * reference.sigma(none) / size;
        let losses = [1.0, -1.0].map(|sign| {
            let product = reference.effective((&gradient, sign * step), &b);
            dot(a.len(), |row| a[row] * product[row])
        });
        let slope = (losses[0] - losses[1]) / (2.0 * step * size);
        agree(|| name("the slope along the gradient"), slope / size, 1.0, 2e-3)
    }
}

/// A cotangent of rank one: a·bᵀ.
fn outer(gpu: &Gpu, [rows, columns]: [usize; 2]) -> Result<Tensor> {
    filled(gpu, &[rows, columns], |at| value(LEFT, at / columns) * value(RIGHT, at % columns))
}

/// A PC layer in float64, applied to vectors.
struct Reference {
    columns: usize,
    w: Vec<f32>,
    u: Vec<f64>,
    v: Vec<f64>,
    eps: f64,
    coefficients: Vec<f64>,
}

impl Reference {
    /// a and b of the cotangent.
    fn vectors(&self) -> [Vec<f64>; 2] {
        let vector = |seed, count| (0..count).map(|at| f64::from(value(seed, at))).collect();
        [vector(LEFT, self.w.len() / self.columns), vector(RIGHT, self.columns)]
    }

    /// (W + t·D)·x.
    fn apply(&self, (d, t): (&[f64], f64), x: &[f64]) -> Vec<f64> {
        let rows = self.w.chunks_exact(self.columns).zip(d.chunks_exact(self.columns));
        rows.map(|(w, d)| w.iter().zip(d).zip(x).map(|((w, d), x)| (f64::from(*w) + t * d) * x).sum()).collect()
    }

    /// (W + t·D)ᵀ·y.
    fn apply_transposed(&self, (d, t): (&[f64], f64), y: &[f64]) -> Vec<f64> {
        let mut sums = vec![0.0; self.columns];
        for ((w, d), y) in self.w.chunks_exact(self.columns).zip(d.chunks_exact(self.columns)).zip(y) {
            for ((sum, w), d) in sums.iter_mut().zip(w).zip(d) {
                *sum += (f64::from(*w) + t * d) * y;
            }
        }
        sums
    }

    /// s of W + t·D.
    fn sigma(&self, change: (&[f64], f64)) -> f64 {
        let wv = self.apply(change, &self.v);
        dot(wv.len(), |row| self.u[row] * wv[row]) + self.eps
    }

    /// W_eff·b of W + t·D: stop(s)·N·P(NᵀN)·b with N = (W + t·D)/s, where stop(s) is that of W.
    fn effective(&self, change: (&[f64], f64), b: &[f64]) -> Vec<f64> {
        let stopped = self.sigma((change.0, 0.0));
        let square = self.sigma(change).powi(2);
        let mut sum = vec![0.0; b.len()];
        // Horner's rule on a vector: z ← NᵀN·z + a·b.
        for a in self.coefficients.iter().rev() {
            let next = self.apply_transposed(change, &self.apply(change, &sum));
            sum = next.iter().zip(b).map(|(next, b)| next / square + a * b).collect();
        }
        let product = self.apply(change, &sum);
        product.into_iter().map(|value| value * stopped / square.sqrt()).collect()
    }
}

/// M·x of a row-major matrix.
fn product(m: &[f32], columns: usize, x: &[f64]) -> Vec<f64> {
    m.chunks_exact(columns).map(|row| row.iter().zip(x).map(|(m, x)| f64::from(*m) * x).sum()).collect()
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

/// Seconds of Muon's step on the matrices of some blocks.
fn muon(session: &Session, config: &Config) -> Case<Timing> {
    const RATE: f32 = 0.01;
    let gpu = session.gpu.clone();
    let mut params = Params::new(&gpu);
    let mut shapes = Vec::new();
    for parameter in engine::model(config).parameters().into_iter().filter(|parameter| parameter.role == Role::Matrix) {
        let shape = [parameter.shape[0], parameter.shape[1]];
        let id = params.add(parameter.name, Role::Matrix, Tensor::zeros(&gpu, &shape)?)?;
        shapes.push((id, shape));
    }
    let mut distinct: Vec<(Rotated, Tensor)> = Vec::new();
    for (_, shape) in &shapes {
        if !distinct.iter().any(|(rotated, _)| rotated.shape == *shape) {
            let rotated = Rotated::new(*shape);
            let tensor = rotated.tensor(&gpu)?;
            distinct.push((rotated, tensor));
        }
    }
    let of = |shape: [usize; 2]| distinct.iter().find(|(rotated, _)| rotated.shape == shape).expect("bug: every shape is there");
    let gradients = || -> Result<Gradients> {
        let mut gradients = Gradients::new();
        shapes.iter().try_for_each(|(id, shape)| gradients.add(*id, of(*shape).1.clone()))?;
        Ok(gradients)
    };
    let clip = Clip::new(&gpu, &gradients()?, f32::INFINITY)?;
    let mut optimizer = (config.optimizer.rule().build)(&config.optimizer);
    optimizer.step(&mut params, gradients()?, &clip, RATE)?;
    for (id, shape) in &shapes {
        of(*shape).0.check(&params.get(*id)?.tensor, &params.get(*id)?.name, f64::from(RATE))?;
    }
    Ok(session.time(|| optimizer.step(&mut params, gradients()?, &clip, RATE))?)
}

/// A dense matrix of known singular values and vectors: Σ reflected at two hyperplanes, (I - 2aaᵀ)·Σ·(I - 2bbᵀ). Any function of its
/// singular values is as cheap to compute.
struct Rotated {
    shape: [usize; 2],
    a: Vec<f64>,
    b: Vec<f64>,
}

impl Rotated {
    fn new(shape: [usize; 2]) -> Self {
        let unit = |seed, count| {
            let values: Vec<f64> = (0..count).map(|at| f64::from(value(seed, at))).collect();
            let norm = norm(&values);
            values.into_iter().map(|value| value / norm).collect()
        };
        Self { shape, a: unit(LEFT, shape[0]), b: unit(RIGHT, shape[1]) }
    }

    /// Singular value number `at`: from 1 down to 0.1.
    fn singular(&self, at: usize) -> f64 {
        1.0 - 0.9 * at as f64 / self.shape[0].min(self.shape[1]) as f64
    }

    /// aᵀ·f(Σ)·b, which every element needs.
    fn middle(&self, f: &impl Fn(f64) -> f64) -> f64 {
        dot(self.a.len().min(self.b.len()), |at| self.a[at] * f(self.singular(at)) * self.b[at])
    }

    /// Element [row, column] of the matrix with the singular values f(σ).
    fn element(&self, [row, column]: [usize; 2], middle: f64, f: &impl Fn(f64) -> f64) -> f64 {
        let small = self.shape[0].min(self.shape[1]);
        let sigma = |at: usize| if at < small { f(self.singular(at)) } else { 0.0 };
        let diagonal = if row == column { sigma(row) } else { 0.0 };
        // (Σ·b)ᵢ is σᵢ·bᵢ, and (aᵀ·Σ)ⱼ is aⱼ·σⱼ.
        let (sb, as_) = (
            if row < small { sigma(row) * self.b[row] } else { 0.0 },
            if column < small { self.a[column] * sigma(column) } else { 0.0 },
        );
        diagonal - 2.0 * self.a[row] * as_ - 2.0 * sb * self.b[column] + 4.0 * self.a[row] * middle * self.b[column]
    }

    fn tensor(&self, gpu: &Gpu) -> Result<Tensor> {
        let [rows, columns] = self.shape;
        let same = |sigma: f64| sigma;
        let middle = self.middle(&same);
        filled(gpu, &[rows, columns], |at| self.element([at / columns, at % columns], middle, &same) as f32)
    }

    /// Compares what Muon made of zeros in one step with float64: -lr·s·O, where O has the singular values that Newton–Schulz makes of
    /// σ/‖σ‖.
    fn check(&self, w: &Tensor, name: &str, lr: f64) -> Case {
        let [rows, columns] = self.shape;
        let small = rows.min(columns);
        let size = norm(&(0..small).map(|at| self.singular(at)).collect::<Vec<_>>());
        let coefficients = NewtonSchulz::Simple;
        let orthogonal = |sigma: f64| {
            (0..coefficients.default_steps()).fold(sigma / size, |x, step| {
                let [a, b, c] = coefficients.at(step).map(f64::from);
                x * (a + x * x * (b + c * x * x))
            })
        };
        let middle = self.middle(&orthogonal);
        let scale = -lr * 0.2 * (rows.max(columns) as f64).sqrt();
        // The elements' root mean square.
        let typical = scale.abs() / (rows.max(columns) as f64).sqrt();
        for row in [0, rows / 2, rows - 1] {
            let found = w.read(row * columns..(row + 1) * columns)?;
            for column in [0, row.min(columns - 1), columns / 3, columns - 1] {
                let want = scale * self.element([row, column], middle, &orthogonal);
                agree(|| format!("element [{row}, {column}] of {name}"), f64::from(found[column]), want, 2e-3 * typical)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotated_matrix_has_the_singular_values_that_it_says() {
        let rotated = Rotated::new([5, 7]);
        let middle = rotated.middle(&|sigma| sigma);
        let square = rotated.middle(&|sigma| sigma * sigma * sigma);
        let m = |row, column| rotated.element([row, column], middle, &|sigma| sigma);
        // M·Mᵀ·M has the cubes.
        for (row, column) in [(0, 0), (2, 6), (4, 3)] {
            let gram = |i: usize| dot(7, |k| m(row, k) * m(i, k));
            let found = dot(5, |i| gram(i) * m(i, column));
            let want = rotated.element([row, column], square, &|sigma| sigma.powi(3));
            assert!((found - want).abs() < 1e-12, "{found} and {want}");
        }
    }
}
