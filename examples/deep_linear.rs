//! What bounded singular values do for gradient descent: a product of 2 to 32 matrices of 32×32 learns a rotation, once with plain
//! layers and once with PC layers of level 4, from the same weights of condition number 3.
//!
//! Ill-conditioned layers attenuate each other's gradients, the more of them the worse. The PC layer divides by the largest singular
//! value and raises the others towards it. Both use the best of the same learning rates. Writes `deep_linear.svg`.
//!
//!     cargo run --release --example deep_linear

use plotters::prelude::*;
use polytape::optim::{Clip, Optimizer, OptimizerState, Slot};
use polytape::spectral::{NewtonSchulz, PcConfig, Preconditioner, newton_schulz};
use polytape::{Error, Gpu, Gradients, Params, Result, Role, Tape, Tensor, Trainer};

const SIZE: usize = 32;
const DEPTHS: [usize; 5] = [2, 4, 8, 16, 32];
const CONDITION: f32 = 3.0; // of every layer's initial weights
const STEPS: usize = 200;
const ZERO: f32 = SIZE as f32 / 2.0; // the loss of a product that is zero
const GOAL: f32 = 1e-3 * ZERO; // a run stops there

#[derive(Default)]
struct GradientDescent(OptimizerState); // w ← w − lr·g

impl Optimizer for GradientDescent {
    fn step(&mut self, params: &mut Params, gradients: Gradients, _: &Clip, lr: f32) -> Result<()> {
        self.0.count_step();
        for (id, gradient) in gradients.into_checked(params)? {
            params.set(id, params.get(id)?.tensor.weighted_sum(1.0, &gradient, -lr)?)?;
        }
        Ok(())
    }

    fn slots(&self, _: Role, _: &[usize]) -> Vec<Slot> {
        Vec::new()
    }

    fn state(&self) -> &OptimizerState {
        &self.0
    }

    fn state_mut(&mut self) -> &mut OptimizerState {
        &mut self.0
    }
}

/// A random rotation: the polar factor of I + G/2. Its determinant is positive, and so is that of every product of layers: between
/// determinants of opposite sign, gradient descent would have to pass a singular matrix.
fn rotation(gpu: &Gpu, seed: u64) -> Result<Tensor> {
    let identity: Vec<f32> = (0..SIZE * SIZE).map(|i| if i % (SIZE + 1) == 0 { 1.0 } else { 0.0 }).collect();
    let noise = Tensor::normal(gpu, &[SIZE, SIZE], 0.5 / (SIZE as f64).sqrt(), seed)?;
    let near = Tensor::from_slice(gpu, &identity, &[SIZE, SIZE])?.weighted_sum(0.4, &noise, 0.4)?;
    newton_schulz(near, NewtonSchulz::PolarExpress, 12)
}

/// Rotation · diagonal · rotation: singular values in geometric progression from σ₁ to σ₁/κ, with mean square 1.
fn layer(gpu: &Gpu, condition: f32, seed: u64) -> Result<Tensor> {
    let stretch: Vec<f32> = (0..SIZE).map(|i| condition.powf(-(i as f32) / (SIZE - 1) as f32)).collect();
    let mean_square = stretch.iter().map(|s| s * s).sum::<f32>() / SIZE as f32;
    let stretch = Tensor::from_slice(gpu, &stretch, &[SIZE])?.scaled(mean_square.sqrt().recip())?;
    let params = Params::new(gpu);
    let tape = Tape::inference(&params);
    let [left, right] = [tape.constant(rotation(gpu, 2 * seed)?), tape.constant(rotation(gpu, 2 * seed + 1)?)];
    Ok(left.mul_row(&tape.constant(stretch))?.matmul(&right)?.value().clone())
}

/// The loss ½‖W…W₂W₁ − target‖² before each step, until it reaches the goal or diverges.
fn train(gpu: &Gpu, depth: usize, bounded: bool, lr: f32) -> Result<Vec<f32>> {
    let mut params = Params::new(gpu);
    let add = |i| params.add(format!("{i}.weight"), Role::Matrix, layer(gpu, CONDITION, i as u64)?);
    let weights = (0..depth).map(add).collect::<Result<Vec<_>>>()?;
    // Without norm recovery the largest singular value is 1, and no gradient is stopped.
    let config = PcConfig { recover_norm: false, learnable_gamma: false, ..Default::default() };
    let targets: Vec<_> = weights.iter().map(|&weight| (weight, 1)).collect();
    let pc = bounded.then(|| Preconditioner::attach(&mut params, config, &targets, 0)).transpose()?;
    let mut trainer = Trainer::new(params, pc, Box::<GradientDescent>::default(), f32::INFINITY)?;
    let target = rotation(gpu, 1000)?;
    let mut losses: Vec<f32> = Vec::new();
    while losses.len() < STEPS && losses.last().is_none_or(|loss| *loss > GOAL && *loss < 10.0 * losses[0]) {
        let stepped = trainer.step(1, lr, |tape, _| {
            let product = weights[1..].iter().try_fold(tape.param(weights[0])?, |x, &w| tape.param(w)?.matmul(&x))?;
            let error = product.sub(&tape.constant(target.clone()))?;
            error.mul(&error)?.sum()?.scale(0.5)
        });
        losses.push(match stepped {
            Err(Error::NonFinite { .. }) => f32::INFINITY,
            stepped => stepped?.loss,
        });
    }
    Ok(losses)
}

/// Of thirty learning rates the one that converges fastest, its losses, and that decrease of ln(loss) per step, from the loss of a product
/// that is zero: a deep plain product begins far above it, and coming down to it is no progress.
fn best(gpu: &Gpu, depth: usize, bounded: bool) -> Result<(f32, Vec<f32>, f32)> {
    let mut best = (0.0, Vec::new(), f32::NEG_INFINITY);
    for power in 1..31 {
        let lr = 0.5_f32.powi(power);
        let losses = train(gpu, depth, bounded, lr)?;
        let convergence = (ZERO / losses[losses.len() - 1]).ln() / (losses.len() - 1) as f32;
        if convergence > best.2 {
            best = (lr, losses, convergence);
        }
    }
    Ok(best)
}

/// The convergence rates over the depth.
fn draw(curves: &[(&str, Vec<(f32, f32)>)]) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::new("deep_linear.svg", (720, 440)).into_drawing_area();
    root.fill(&WHITE)?;
    let highest = curves.iter().flat_map(|(_, points)| points).map(|point| point.1).fold(0.0, f32::max);
    let mut chart = ChartBuilder::on(&root)
        .caption("Convergence of a product of matrices", ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(64)
        .build_cartesian_2d((1.8f32..36.0).log_scale().base(2.0), 0.0..1.05 * highest)?;
    chart.configure_mesh().x_desc("depth").y_desc("decrease of ln(loss) per step").draw()?;
    for (number, (label, points)) in curves.iter().enumerate() {
        let color = Palette99::pick(number).to_rgba();
        let series = chart.draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(2)))?;
        series.label(*label).legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], color.stroke_width(2)));
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.9)).draw()?;
    Ok(root.present()?)
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let gpu = Gpu::open(&Default::default())?;
    println!("{:>5}  {:<5}  {:>8}  {:>5}  {:>10}  {:>17}", "depth", "layer", "lr", "steps", "last loss", "ln(loss) per step");
    let mut curves = [("plain", vec![]), ("PC, level 4", vec![])];
    for depth in DEPTHS {
        for (bounded, (_, points)) in [false, true].into_iter().zip(&mut curves) {
            let (lr, losses, convergence) = best(&gpu, depth, bounded)?;
            let (steps, last) = (losses.len() - 1, losses[losses.len() - 1]);
            println!(
                "{depth:>5}  {:<5}  {lr:>8.1e}  {steps:>5}  {last:>10.3e}  {:>17.4}",
                if bounded { "PC" } else { "plain" },
                -convergence
            );
            points.push((depth as f32, convergence.max(0.0)));
        }
    }
    draw(&curves)?;
    println!("the faster the loss falls, the better; the picture is deep_linear.svg");
    Ok(())
}
