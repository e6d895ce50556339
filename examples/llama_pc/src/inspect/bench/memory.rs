//! Kernels that memory bounds, and their bandwidth relative to a copy: what they read and write at least. Times are device times of
//! the kernel alone, so the other dispatches of an operation do not count.

use std::cell::RefCell;

use polytape::optim::{AdamConfig, AdamW, Clip, Optimizer};
use polytape::{Gpu, Gradients, Indices, Params, Result, Role, RotaryTable, Tape, Tensor, Var};

use super::report::{Row, Unit};
use super::session::{Case, Session, Timing, agree};
use super::values::{tensor, value};

const HEAD_DIM: usize = 64;
const THETA: f64 = 10_000.0;
const EPS: f32 = 1e-5;
const VOCABULARY: usize = 32_000;
/// AdamW's learning rate.
const LR: f32 = 1e-3;
/// Repetitions, of which the best counts, each of some calls.
const SAMPLES: usize = 5;
const CALLS: usize = 4;

/// Three tensors [rows, columns] and a row [columns].
struct Data {
    rows: usize,
    columns: usize,
    x: Tensor,
    y: Tensor,
    z: Tensor,
    row: Tensor,
}

/// A kernel that memory bounds.
struct MemoryKernel<'a> {
    /// Its name in the profile.
    kernel: &'static str,
    /// Minimum number of tensors read and written.
    tensors_moved: usize,
    run: Box<dyn Fn() -> Result<Tensor> + 'a>,
    /// An element of the expected result, in f64.
    want: Box<dyn Fn(usize) -> f64 + 'a>,
}

impl Data {
    fn new(gpu: &Gpu, [rows, columns]: [usize; 2]) -> Result<Self> {
        let one = |seed| tensor(gpu, &[rows, columns], 1.0, seed);
        Ok(Self { rows, columns, x: one(1)?, y: one(2)?, z: one(3)?, row: tensor(gpu, &[columns], 1.0, 4)? })
    }

    /// Elements of x, y and z in f64.
    fn at(&self, i: usize) -> [f64; 3] {
        [1, 2, 3].map(|seed| f64::from(value(seed, i)))
    }

    /// An element of the row.
    fn weight(&self, i: usize) -> f64 {
        f64::from(value(4, i % self.columns))
    }

    /// Σ over element i's row of f(x, y, weight).
    fn row_sum(&self, i: usize, f: impl Fn(f64, f64, f64) -> f64) -> f64 {
        let first = i / self.columns * self.columns;
        let term = |c: usize| f(self.at(first + c)[0], self.at(first + c)[1], self.weight(c));
        (0..self.columns).map(term).sum()
    }

    /// 1/√(mean(x²) + eps) of element i's row.
    fn inverse_rms(&self, i: usize) -> f64 {
        1.0 / (self.row_sum(i, |x, _, _| x * x) / self.columns as f64 + f64::from(EPS)).sqrt()
    }

    /// Records `operation` on leaves x, y and the row; returns the gradient of the leaf at `place`, or the value without a place.
    fn record<F>(&self, place: Option<usize>, operation: F) -> Result<Tensor>
    where
        F: for<'t> Fn([&Var<'t>; 3]) -> Result<Var<'t>>,
    {
        let params = Params::new(self.x.gpu());
        let tape = Tape::new(&params);
        let leaves = [&self.x, &self.y, &self.row].map(|tensor| tape.leaf(tensor.clone()));
        let value = operation([&leaves[0], &leaves[1], &leaves[2]])?;
        let Some(place) = place else { return Ok(value.value().clone()) };
        let cotangent = if place == 1 { &self.z } else { &self.y };
        let gradients = tape.backward_from(&[(&value, cotangent.clone())], &mut Gradients::new())?;
        Ok(gradients.get(&leaves[place]).expect("bug: a gradient flows into every leaf that is used").clone())
    }

    fn case<'a>(
        &'a self,
        kernel: &'static str,
        tensors_moved: usize,
        run: impl Fn() -> Result<Tensor> + 'a,
        want: impl Fn(usize) -> f64 + 'a,
    ) -> MemoryKernel<'a> {
        MemoryKernel { kernel, tensors_moved, run: Box::new(run), want: Box::new(want) }
    }

    fn maps(&self) -> Vec<MemoryKernel<'_>> {
        let silu = |x: f64| x / (1.0 + (-x).exp());
        vec![
            self.case("weighted_sum", 3, || self.x.weighted_sum(1.0, &self.y, 1.0), |i| self.at(i)[0] + self.at(i)[1]),
            self.case(
                "accumulate",
                3,
                || {
                    let mut params = Params::new(self.x.gpu());
                    let id = params.add("w", Role::Matrix, self.x.clone())?;
                    let mut gradients = Gradients::new();
                    gradients.add(id, self.x.scaled(1.0)?)?;
                    gradients.add(id, self.y.clone())?;
                    Ok(gradients.take(id).expect("bug: a gradient was added"))
                },
                |i| self.at(i)[0] + self.at(i)[1],
            ),
            self.case("swiglu", 3, || self.record(None, |[x, y, _]| x.swiglu(y)), move |i| silu(self.at(i)[0]) * self.at(i)[1]),
            self.case(
                "swiglu backward",
                5,
                || self.record(Some(1), |[x, y, _]| x.swiglu(y)),
                move |i| silu(self.at(i)[0]) * self.at(i)[2],
            ),
        ]
    }

    fn rows(&self) -> Vec<MemoryKernel<'_>> {
        vec![
            self.case(
                "rms_norm",
                2,
                || self.record(None, |[x, _, w]| x.rms_norm(w, EPS)),
                |i| self.weight(i) * self.at(i)[0] * self.inverse_rms(i),
            ),
            self.case(
                "rms_norm backward",
                3,
                || self.record(Some(0), |[x, _, w]| x.rms_norm(w, EPS)),
                move |i| {
                    let ([x, dy, _], r) = (self.at(i), self.inverse_rms(i));
                    r * self.weight(i) * dy - x * r.powi(3) * self.row_sum(i, |x, dy, w| w * dy * x) / self.columns as f64
                },
            ),
            self.case(
                "column sum",
                2,
                || self.record(Some(2), |[x, _, w]| x.mul_row(w)),
                |i| (0..self.rows).map(|r| self.at(r * self.columns + i)).map(|[x, dy, _]| x * dy).sum(),
            ),
            self.case(
                "softmax",
                2,
                || self.record(None, |[x, _, _]| x.softmax()),
                |i| self.at(i)[0].exp() / self.row_sum(i, |x, _, _| x.exp()),
            ),
        ]
    }

    fn lookups<'a>(&'a self, table: &'a RotaryTable, ids: &'a Indices) -> Vec<MemoryKernel<'a>> {
        let rotated = |i: usize| {
            let (position, place, half) = (i / self.columns, i % HEAD_DIM, HEAD_DIM / 2);
            let angle = position as f64 * THETA.powf(-((place % half) as f64) / half as f64);
            if place < half {
                self.at(i)[0] * angle.cos() - self.at(i + half)[0] * angle.sin()
            } else {
                self.at(i)[0] * angle.cos() + self.at(i - half)[0] * angle.sin()
            }
        };
        vec![
            self.case("rotary", 2, || self.record(None, |[x, _, _]| x.rotary(table, self.rows)), rotated),
            self.case(
                "embedding",
                2,
                || self.record(None, |[x, _, _]| x.embedding(ids)),
                |i| self.at(ids.values()[i / self.columns] as usize * self.columns + i % self.columns)[0],
            ),
        ]
    }

    /// The gradient norm with x as the gradient, and an AdamW step with it.
    fn optimizer<'a>(&'a self, state: &'a RefCell<(Params, AdamW)>) -> Vec<MemoryKernel<'a>> {
        let gradients = || -> Result<Gradients> {
            let mut gradients = Gradients::new();
            let (params, _) = &*state.borrow();
            gradients.add(params.id("w")?, self.x.clone())?;
            Ok(gradients)
        };
        let norm = move || Clip::new(self.x.gpu(), &gradients()?, f32::INFINITY);
        let first = |i: usize| {
            // m/c₁ is g after one step and v/c₂ is g².
            let ([g, w, _], lr) = (self.at(i), f64::from(LR));
            w * (1.0 - lr * 0.1) - lr * g / (g.abs() + 1e-8)
        };
        let step = move || -> Result<Tensor> {
            let (gradients, clip) = (gradients()?, norm()?);
            let (params, adam) = &mut *state.borrow_mut();
            adam.step(params, gradients, &clip, LR)?;
            Ok(params.get(params.id("w")?)?.tensor.clone())
        };
        vec![
            self.case("reduce", 1, move || Ok(norm()?.values().clone()), |i| if i == 0 { self.norm() } else { 1.0 }),
            self.case("adam", 7, step, first),
        ]
    }

    fn norm(&self) -> f64 {
        (0..self.rows * self.columns).map(|i| self.at(i)[0].powi(2)).sum::<f64>().sqrt()
    }
}

impl MemoryKernel<'_> {
    /// Compares elements spread over the result with float64.
    fn check(&self) -> Case {
        let found = (self.run)()?;
        for i in (0..found.len()).step_by(found.len().div_ceil(7)) {
            let (found, want) = (f64::from(found.read(i..i + 1)?[0]), (self.want)(i));
            agree(|| format!("element {i}"), found, want, 1e-4 * want.abs().max(1.0))?;
        }
        Ok(())
    }
}

/// Device time of a kernel's dispatches of one call.
fn time(gpu: &Gpu, kernel: &str, run: &dyn Fn() -> Result<()>) -> Result<Timing> {
    let so_far = || Ok(gpu.profile()?.kernels.get(kernel).map_or(0.0, |time| time.seconds));
    let sample = |_| {
        let before: f64 = so_far()?;
        (0..CALLS).try_for_each(|_| run())?;
        Ok((so_far()? - before) / CALLS as f64)
    };
    Ok(Timing::of((0..SAMPLES).map(sample).collect::<Result<_>>()?))
}

/// Cross-entropy over some rows of logits.
struct Loss {
    tokens: usize,
    x: Tensor,
    w: Tensor,
    targets: Indices,
}

impl Loss {
    const WIDTH: usize = 64;

    fn new(gpu: &Gpu, tokens: usize) -> Result<Self> {
        let targets: Vec<u32> = (0..tokens as u32).map(|row| row * 241 % VOCABULARY as u32).collect();
        let (x, w) = (tensor(gpu, &[tokens, Self::WIDTH], 0.2, 5)?, tensor(gpu, &[VOCABULARY, Self::WIDTH], 1.0, 6)?);
        Ok(Self { tokens, x, w, targets: Indices::from_slice(gpu, &targets)? })
    }

    fn run(&self) -> Result<Tensor> {
        let params = Params::new(self.x.gpu());
        let tape = Tape::new(&params);
        Ok(tape.leaf(self.x.clone()).head_cross_entropy(&tape.leaf(self.w.clone()), &self.targets)?.value().clone())
    }

    /// Compares the mean loss with float64.
    fn check(&self) -> Case {
        let value = |seed, at| f64::from(value(seed, at));
        let logit = |row: usize, id: usize| {
            (0..Self::WIDTH).map(|d| 0.2 * value(5, row * Self::WIDTH + d) * value(6, id * Self::WIDTH + d)).sum::<f64>()
        };
        let loss = |(row, &target): (usize, &u32)| {
            (0..VOCABULARY).map(|id| logit(row, id).exp()).sum::<f64>().ln() - logit(row, target as usize)
        };
        let want = self.targets.values().iter().enumerate().map(loss).sum::<f64>() / self.tokens as f64;
        agree(|| "the loss".into(), f64::from(self.run()?.item()?), want, 1e-4)
    }
}

/// Every line of the part.
pub fn run(session: &mut Session) -> Case {
    let gpu = session.gpu.clone();
    if !has_timer(&gpu) {
        session.leave_out("", "the adapter has no timestamps inside passes to time kernels by");
        return Ok(());
    }
    gpu.time_kernels(true)?;
    let outcome = kernels(session, &gpu);
    gpu.time_kernels(false)?;
    outcome
}

/// Whether the adapter can time kernels.
pub fn has_timer(gpu: &Gpu) -> bool {
    use polytape::gpu::Features;
    gpu.adapter().features.contains(Features::TIMESTAMP_QUERY | Features::TIMESTAMP_QUERY_INSIDE_PASSES)
}

fn kernels(session: &mut Session, gpu: &Gpu) -> Case {
    // More than a cache holds, and no more than the smallest binding of WebGPU.
    let shape @ [rows, columns] = if gpu.adapter().is_software() { [4096, 1024] } else { [16_384, 2048] };
    let data = Data::new(gpu, shape)?;
    let table = RotaryTable::new(gpu, rows, HEAD_DIM, THETA)?;
    let ids: Vec<u32> = (0..rows as u32).map(|i| i * 2741 % rows as u32).collect();
    let ids = Indices::from_slice(gpu, &ids)?;
    let mut params = Params::new(gpu);
    params.add("w", Role::Matrix, data.y.duplicate()?)?;
    let state = RefCell::new((params, AdamW::new(AdamConfig::default())));
    let copy = data.case("scaled", 2, || data.x.scaled(0.5), |i| 0.5 * data.at(i)[0]);
    let others = [data.maps(), data.rows(), data.lookups(&table, &ids), data.optimizer(&state)].into_iter().flatten();
    for case in std::iter::once(copy).chain(others) {
        let what = format!("{} on {rows} × {columns}", if case.kernel == "scaled" { "scaled, a copy," } else { case.kernel });
        session.case(&what.clone(), estimate(session, case.tensors_moved * rows * columns), |session| {
            case.check()?;
            let timing = time(gpu, case.kernel, &|| (case.run)().map(drop))?;
            session.row(row(session, what, (4 * case.tensors_moved * rows * columns) as f64, timing));
            Ok(())
        });
    }
    let tokens = polytape::logit_rows(rows, VOCABULARY);
    let what = format!("cross_entropy on {tokens} × {VOCABULARY}");
    session.case(&what.clone(), estimate(session, 2 * tokens * VOCABULARY), |session| {
        let loss = Loss::new(gpu, tokens)?;
        loss.check()?;
        let timing = time(gpu, "cross_entropy", &|| loss.run().map(drop))?;
        session.row(row(session, what, (4 * 2 * tokens * VOCABULARY) as f64, timing));
        Ok(())
    });
    Ok(())
}

/// Seconds to check and time a kernel that reads and writes that many values.
fn estimate(session: &Session, values: usize) -> f64 {
    let calls = (SAMPLES * CALLS + 1) as f64;
    session.limits.copy.map_or(0.0, |copy| calls * (4 * values) as f64 / copy)
}

fn row(session: &Session, what: String, bytes: f64, timing: Timing) -> Row {
    let rate = bytes / timing.seconds;
    Row {
        what,
        unit: Unit::Gigabytes,
        value: rate / 1e9,
        spread: timing.spread,
        of_limit: session.limits.copy.map(|copy| rate / copy),
        ..Row::default()
    }
}
