//! Classifies two spirals with a small network: two inputs, two layers of 64 tanh units, two classes, AdamW. Prints the loss and then
//! the plane, shaded by the predicted class, with the training points.
//!
//!     cargo run --release --example mlp

use std::f32::consts::PI;

use polytape::optim::{AdamConfig, AdamW};
use polytape::{Gpu, Indices, ParamId, Params, Result, Role, Tape, Tensor, Trainer, Var};

/// Points per spiral.
const POINTS: usize = 100;
const UNITS: usize = 64;
const STEPS: usize = 300;
/// Size of the plot in characters, which are about twice as high as wide.
const COLUMNS: usize = 76;
const LINES: usize = 38;
/// The plot shows x and y from -REACH to REACH.
const REACH: f32 = 1.12;

/// Point `i` of the spiral `class`: 1¾ turns outwards to radius 1.
fn spiral(class: usize, i: usize) -> [f32; 2] {
    let radius = ((i as f32 + 1.0) / POINTS as f32).sqrt();
    let angle = 3.5 * PI * radius + PI * class as f32;
    [radius * angle.cos(), radius * angle.sin()]
}

/// Weights [out, in] and biases [out] of the hidden layers, and the head [classes, units].
struct Network {
    layers: Vec<(ParamId, ParamId)>,
    head: ParamId,
}

impl Network {
    fn init(gpu: &Gpu) -> Result<(Self, Params)> {
        let mut params = Params::new(gpu);
        let mut layers = Vec::new();
        for (index, (inputs, std)) in [(2, 2.0), (UNITS, 0.15)].into_iter().enumerate() {
            let weight = Tensor::normal(gpu, &[UNITS, inputs], std, index as u64)?;
            let bias = Tensor::normal(gpu, &[UNITS], 0.5, 10 + index as u64)?;
            layers.push((
                params.add(format!("{index}.weight"), Role::Matrix, weight)?,
                params.add(format!("{index}.bias"), Role::Vector, bias)?,
            ));
        }
        let head = params.add("head", Role::Head, Tensor::normal(gpu, &[2, UNITS], 0.1, 20)?)?;
        Ok((Self { layers, head }, params))
    }

    /// x [points, 2] → [points, units]
    fn features<'t>(&self, tape: &'t Tape<'t>, x: &Tensor) -> Result<Var<'t>> {
        let mut x = tape.constant(x.clone());
        for &(weight, bias) in &self.layers {
            x = x.matmul_nt(&tape.param(weight)?)?.add_row(&tape.param(bias)?)?.tanh()?;
        }
        Ok(x)
    }
}

fn main() -> Result<()> {
    let gpu = Gpu::open(&Default::default())?;
    let (network, params) = Network::init(&gpu)?;
    let points: Vec<[f32; 2]> = (0..2 * POINTS).map(|i| spiral(i % 2, i / 2)).collect();
    let classes: Vec<u32> = (0..2 * POINTS as u32).map(|i| i % 2).collect();
    let x = Tensor::from_slice(&gpu, points.as_flattened(), &[points.len(), 2])?;
    let targets = Indices::from_slice(&gpu, &classes)?;

    let optimizer = AdamW::new(AdamConfig { weight_decay: 0.0, ..Default::default() });
    let mut trainer = Trainer::new(params, None, Box::new(optimizer), 1.0)?;
    for step in 0..=STEPS {
        let lr = 1e-2 * (1.0 - step as f32 / (STEPS + 1) as f32);
        let output = trainer
            .step(1, lr, |tape, _| network.features(tape, &x)?.head_cross_entropy(&tape.param(network.head)?, &targets))?;
        if step % 50 == 0 {
            println!("step {step:4}  loss {:.5}", output.loss);
        }
    }

    let answer = |x: &Tensor| -> Result<Vec<f32>> {
        let tape = Tape::inference(&trainer.params);
        network.features(&tape, x)?.matmul_nt(&tape.param(network.head)?)?.softmax()?.value().to_vec()
    };
    // [p(class 0), p(class 1)] per point.
    let right = answer(&x)?.chunks(2).zip(&classes).filter(|(p, class)| p[**class as usize] > 0.5).count();
    println!("{right} of {} points are classified correctly\n", points.len());
    draw(&answer(&grid(&gpu)?)?, &points)
}

/// The points of the plane at the plot's characters, line by line from the top.
fn grid(gpu: &Gpu) -> Result<Tensor> {
    let at = |i: usize, count: usize| REACH * ((2 * i + 1) as f32 / count as f32 - 1.0);
    let cell = |i: usize| [at(i % COLUMNS, COLUMNS), -at(i / COLUMNS, LINES)];
    let cells: Vec<[f32; 2]> = (0..COLUMNS * LINES).map(cell).collect();
    Tensor::from_slice(gpu, cells.as_flattened(), &[cells.len(), 2])
}

/// Blank where the prediction is class 0 (points o), shaded where it is class 1 (points #).
fn draw(probabilities: &[f32], points: &[[f32; 2]]) -> Result<()> {
    let shade = |p: f32| [' ', '·', '░', '▒'][((4.0 * p) as usize).min(3)];
    let mut picture: Vec<char> = probabilities.chunks(2).map(|p| shade(p[1])).collect();
    for (i, [x, y]) in points.iter().enumerate() {
        let at = |value: f32, count: usize| ((value / REACH + 1.0) / 2.0 * count as f32) as usize;
        picture[at(-y, LINES) * COLUMNS + at(*x, COLUMNS)] = ['o', '#'][i % 2];
    }
    for line in picture.chunks(COLUMNS) {
        println!("{}", line.iter().collect::<String>());
    }
    Ok(())
}
