//! Memory-bound kernels: minimum traffic in tensors, and bandwidth relative to a copy. Times are device times per kernel, so other
//! dispatches of an operation do not count.

use std::cell::RefCell;

use polytape::optim::{AdamConfig, AdamW, Clip, Optimizer};
use polytape::{Gpu, GpuOptions, Gradients, Indices, Params, Result, Role, RotaryTable, Tape, Tensor, Var};

use crate::device_seconds;

const ROWS: usize = 4096;
const COLUMNS: usize = 1024;
const HEAD_DIM: usize = 64;
const THETA: f64 = 10_000.0;
const EPS: f32 = 1e-5;
const VOCABULARY: usize = 32_000;
/// AdamW's learning rate.
const RATE: f32 = 1e-3;

/// Three tensors [ROWS, COLUMNS] and a row [COLUMNS], on device and host.
struct Data {
    x: Tensor,
    y: Tensor,
    z: Tensor,
    row: Tensor,
    host: [Vec<f32>; 4],
}

/// A kernel to measure.
struct Case<'a> {
    /// Its name in the profile.
    kernel: &'static str,
    /// Minimum traffic, in tensors read and written.
    passes: usize,
    run: Box<dyn Fn() -> Result<Tensor> + 'a>,
    /// An element of the expected result, in f64.
    want: Box<dyn Fn(usize) -> f64 + 'a>,
}

impl Data {
    fn new(gpu: &Gpu) -> Result<Self> {
        let normal = |seed| Tensor::normal(gpu, &[ROWS, COLUMNS], 1.0, seed);
        let (x, y, z, row) = (normal(1)?, normal(2)?, normal(3)?, Tensor::normal(gpu, &[COLUMNS], 1.0, 4)?);
        let host = [x.to_vec()?, y.to_vec()?, z.to_vec()?, row.to_vec()?];
        Ok(Self { x, y, z, row, host })
    }

    /// Elements of x, y and z in f64.
    fn at(&self, i: usize) -> [f64; 3] {
        [0, 1, 2].map(|tensor| f64::from(self.host[tensor][i]))
    }

    /// Σ over element i's row of f(x, y, weight).
    fn row_sum(&self, i: usize, f: impl Fn(f64, f64, f64) -> f64) -> f64 {
        let first = i / COLUMNS * COLUMNS;
        let term = |c: usize| f(self.at(first + c)[0], self.at(first + c)[1], f64::from(self.host[3][c]));
        (0..COLUMNS).map(term).sum()
    }

    /// 1/√(mean(x²) + eps) of element i's row.
    fn inverse_rms(&self, i: usize) -> f64 {
        1.0 / (self.row_sum(i, |x, _, _| x * x) / COLUMNS as f64 + f64::from(EPS)).sqrt()
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
        Ok(gradients.get(&leaves[place]).expect("a gradient flows into every leaf that is used").clone())
    }

    fn case<'a>(
        &'a self,
        kernel: &'static str,
        passes: usize,
        run: impl Fn() -> Result<Tensor> + 'a,
        want: impl Fn(usize) -> f64 + 'a,
    ) -> Case<'a> {
        Case { kernel, passes, run: Box::new(run), want: Box::new(want) }
    }

    fn maps(&self) -> Vec<Case<'_>> {
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
                    Ok(gradients.take(id).expect("a gradient was added"))
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

    fn rows(&self) -> Vec<Case<'_>> {
        let weight = |i: usize| f64::from(self.host[3][i % COLUMNS]);
        vec![
            self.case(
                "rms_norm",
                2,
                || self.record(None, |[x, _, w]| x.rms_norm(w, EPS)),
                move |i| weight(i) * self.at(i)[0] * self.inverse_rms(i),
            ),
            self.case(
                "rms_norm backward",
                3,
                || self.record(Some(0), |[x, _, w]| x.rms_norm(w, EPS)),
                move |i| {
                    let ([x, dy, _], r) = (self.at(i), self.inverse_rms(i));
                    r * weight(i) * dy - x * r.powi(3) * self.row_sum(i, |x, dy, w| w * dy * x) / COLUMNS as f64
                },
            ),
            self.case(
                "column sum",
                2,
                || self.record(Some(2), |[x, _, w]| x.mul_row(w)),
                |i| (0..ROWS).map(|r| self.at(r * COLUMNS + i)).map(|[x, dy, _]| x * dy).sum(),
            ),
            self.case(
                "softmax",
                2,
                || self.record(None, |[x, _, _]| x.softmax()),
                |i| self.at(i)[0].exp() / self.row_sum(i, |x, _, _| x.exp()),
            ),
        ]
    }

    fn lookups<'a>(&'a self, table: &'a RotaryTable, ids: &'a Indices) -> Vec<Case<'a>> {
        let turned = |i: usize| {
            let (position, place, half) = (i / COLUMNS, i % HEAD_DIM, HEAD_DIM / 2);
            let angle = position as f64 * THETA.powf(-((place % half) as f64) / half as f64);
            if place < half {
                self.at(i)[0] * angle.cos() - self.at(i + half)[0] * angle.sin()
            } else {
                self.at(i)[0] * angle.cos() + self.at(i - half)[0] * angle.sin()
            }
        };
        vec![
            self.case("rotary", 2, || self.record(None, |[x, _, _]| x.rotary(table, ROWS)), turned),
            self.case(
                "embedding",
                2,
                || self.record(None, |[x, _, _]| x.embedding(ids)),
                |i| self.at(ids.values()[i / COLUMNS] as usize * COLUMNS + i % COLUMNS)[0],
            ),
        ]
    }

    /// The gradient norm with x as the gradient, and an AdamW step with it.
    fn optimizer<'a>(&'a self, state: &'a RefCell<(Params, AdamW)>) -> Vec<Case<'a>> {
        let gradients = || -> Result<Gradients> {
            let mut gradients = Gradients::new();
            let (params, _) = &*state.borrow();
            gradients.add(params.id("w")?, self.x.clone())?;
            Ok(gradients)
        };
        let norm = move || Clip::new(self.x.gpu(), &gradients()?, f32::INFINITY);
        let first = |i: usize| {
            // m/c₁ is g after one step and v/c₂ is g².
            let ([g, w, _], rate) = (self.at(i), f64::from(RATE));
            w * (1.0 - rate * 0.1) - rate * g / (g.abs() + 1e-8)
        };
        let step = move || -> Result<Tensor> {
            let (gradients, clip) = (gradients()?, norm()?);
            let (params, adam) = &mut *state.borrow_mut();
            adam.step(params, gradients, &clip, RATE)?;
            Ok(params.get(params.id("w")?)?.tensor.clone())
        };
        vec![
            self.case("reduce", 1, move || Ok(norm()?.values().clone()), |i| if i == 0 { self.norm() } else { 1.0 }),
            self.case("adam", 7, step, first),
        ]
    }

    fn norm(&self) -> f64 {
        self.host[0].iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()
    }
}

impl Case<'_> {
    /// Compares elements spread over the result with f64.
    fn check(&self) -> Result<()> {
        let found = (self.run)()?.to_vec()?;
        for i in (0..found.len()).step_by(found.len().div_ceil(7)) {
            let (found, want) = (f64::from(found[i]), (self.want)(i));
            assert!((found - want).abs() <= 1e-4 * want.abs().max(1.0), "{}: {found} at {i}, not {want}", self.kernel);
        }
        Ok(())
    }

    /// Bytes per second.
    fn rate(&self, gpu: &Gpu) -> Result<f64> {
        self.check()?;
        let seconds = device_seconds(gpu, self.kernel, || (self.run)().map(drop))?;
        Ok((self.passes * 4 * ROWS * COLUMNS) as f64 / seconds)
    }
}

/// Bytes per second of cross-entropy: logits read, their gradient written in place.
fn cross_entropy(gpu: &Gpu) -> Result<f64> {
    const TOKENS: usize = 128;
    let (x, w) = (Tensor::normal(gpu, &[TOKENS, 64], 0.2, 5)?, Tensor::normal(gpu, &[VOCABULARY, 64], 1.0, 6)?);
    let targets: Vec<u32> = (0..TOKENS as u32).map(|row| row * 241 % VOCABULARY as u32).collect();
    let on_device = Indices::from_slice(gpu, &targets)?;
    let run = || -> Result<Tensor> {
        let params = Params::new(gpu);
        let tape = Tape::new(&params);
        Ok(tape.leaf(x.clone()).head_cross_entropy(&tape.leaf(w.clone()), &on_device)?.value().clone())
    };
    let (found, x, w) = (f64::from(run()?.item()?), x.to_vec()?, w.to_vec()?);
    let logit = |row: usize, id: usize| (0..64).map(|d| f64::from(x[row * 64 + d]) * f64::from(w[id * 64 + d])).sum::<f64>();
    let loss = |(row, &target): (usize, &u32)| {
        (0..VOCABULARY).map(|id| logit(row, id).exp()).sum::<f64>().ln() - logit(row, target as usize)
    };
    let want = targets.iter().enumerate().map(loss).sum::<f64>() / TOKENS as f64;
    assert!((found - want).abs() < 1e-4, "cross_entropy: {found}, not {want}");
    let seconds = device_seconds(gpu, "cross_entropy", || run().map(drop))?;
    Ok((2 * 4 * TOKENS * VOCABULARY) as f64 / seconds)
}

pub fn run(gpu: &Gpu) -> Result<()> {
    let gpu = Gpu::open(&GpuOptions { profile: true, kernels: Some(gpu.kernels()), warn: |_| (), ..Default::default() })?;
    let data = Data::new(&gpu)?;
    let table = RotaryTable::new(&gpu, ROWS, HEAD_DIM, THETA)?;
    let ids = Indices::from_slice(&gpu, &(0..ROWS as u32).map(|i| i * 2741 % ROWS as u32).collect::<Vec<_>>())?;
    let mut params = Params::new(&gpu);
    params.add("w", Role::Matrix, data.y.duplicate()?)?;
    let state = RefCell::new((params, AdamW::new(AdamConfig::default())));
    println!("\n| kernel, on {ROWS} × {COLUMNS} | tensors read and written | GB/s | of a copy |\n|---|---:|---:|---:|");
    let copy = data.case("scaled", 2, || data.x.scaled(0.5), |i| 0.5 * data.at(i)[0]).rate(&gpu)?;
    let print = |kernel, passes, rate| println!("| {kernel} | {passes} | {:.1} | {:.0} % |", rate / 1e9, 100.0 * rate / copy);
    print("scaled, a copy", 2, copy);
    for case in [data.maps(), data.rows(), data.lookups(&table, &ids), data.optimizer(&state)].into_iter().flatten() {
        print(case.kernel, case.passes, case.rate(&gpu)?);
    }
    print("cross_entropy", 2, cross_entropy(&gpu)?);
    Ok(())
}
