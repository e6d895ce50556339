//! Time and memory of a training step by tokens per micro-batch, model size and sequence length, with the exponent of a power-law
//! fit.

use std::time::Instant;

use polytape::llama::{Llama, LlamaConfig};
use polytape::optim::{AdamConfig, AdamW};
use polytape::{Gpu, Indices, Result, Trainer};

const VOCABULARY: usize = 512;

struct Point {
    /// What is varied.
    size: f64,
    seconds: f64,
    bytes: f64,
}

/// One plain AdamW step on `sequences` × `length` tokens.
fn point(gpu: &Gpu, dim: usize, sequences: usize, length: usize, size: impl Fn(f64) -> f64) -> Result<Point> {
    let config = LlamaConfig { max_seq_len: length, ..LlamaConfig::new(dim, 4, dim / 32, VOCABULARY) };
    let (llama, params) = Llama::init(gpu, config, 7)?;
    let parameters = params.numel() as f64;
    let mut trainer = Trainer::new(params, None, Box::new(AdamW::new(AdamConfig::default())), 1.0)?;
    let tokens: Vec<u32> = (0..=sequences * length).map(|i| (i * 7_919 % VOCABULARY) as u32).collect();
    let inputs = Indices::from_slice(gpu, &tokens[1..])?;
    let targets = Indices::from_slice(gpu, &tokens[..tokens.len() - 1])?;
    let mut seconds = f64::INFINITY;
    for repetition in 0..4 {
        gpu.reset_peak();
        let start = Instant::now();
        let output = trainer.step(1, 1e-3, |tape, _| llama.loss(tape, &inputs, &targets, length))?;
        let loss = output.loss;
        assert!(loss.is_finite(), "a loss of {loss}");
        // The first step compiles.
        if repetition > 0 {
            seconds = seconds.min(start.elapsed().as_secs_f64());
        }
    }
    Ok(Point { size: size(parameters), seconds, bytes: gpu.memory().peak as f64 })
}

/// Slope of a linear fit in log-log space.
fn exponent(points: &[Point], value: impl Fn(&Point) -> f64) -> f64 {
    let logarithms: Vec<(f64, f64)> = points.iter().map(|point| (point.size.ln(), value(point).ln())).collect();
    let count = logarithms.len() as f64;
    let (x, y) = logarithms.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0 / count, y + point.1 / count));
    let (xy, xx) = logarithms
        .iter()
        .fold((0.0, 0.0), |(xy, xx), point| (xy + (point.0 - x) * (point.1 - y), xx + (point.0 - x) * (point.0 - x)));
    xy / xx
}

fn table(what: &str, points: &[Point]) {
    println!("\n| {what} | s/step | peak MiB |\n|---|---:|---:|");
    for point in points {
        println!("| {:.0} | {:.3} | {:.1} |", point.size, point.seconds, point.bytes / f64::from(1 << 20));
    }
    println!("| exponent | {:.2} | {:.2} |", exponent(points, |point| point.seconds), exponent(points, |point| point.bytes));
}

pub fn run(gpu: &Gpu) -> Result<()> {
    let tokens = [1, 2, 4, 8, 16].map(|sequences| point(gpu, 256, sequences, 128, |_| 128.0 * sequences as f64));
    table("tokens in a micro-batch (dim 256, sequences of 128)", &tokens.into_iter().collect::<Result<Vec<_>>>()?);
    let models = [64, 128, 256, 512, 1024].map(|dim| point(gpu, dim, 4, 128, |parameters| parameters));
    table("parameters (dim 64 to 1024, 4 sequences of 128)", &models.into_iter().collect::<Result<Vec<_>>>()?);
    let lengths = [128, 256, 512, 1024, 2048].map(|length| point(gpu, 256, 2048 / length, length, |_| length as f64));
    table("length of a sequence (dim 256, 2,048 tokens)", &lengths.into_iter().collect::<Result<Vec<_>>>()?);
    Ok(())
}
