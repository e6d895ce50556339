//! The same training step of the same Llama in polytape, burn, candle and, where Python has it, PyTorch, in one run on one machine.
//!
//! All start from polytape's initial weights and see the same tokens. The losses of the first two steps must agree before anything
//! is timed: the first compares the forward passes, the second the backward passes and the optimizers. Then single products, whose
//! results must agree too.

mod burn;
mod candle;
mod polytape;
mod products;
mod torch;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use ::burn::tensor::{Device, DeviceKind};
use ::polytape::llama::LlamaConfig;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const SEQUENCES: usize = 4;
const SEQ_LEN: usize = 128;
const TOKENS: usize = SEQUENCES * SEQ_LEN;
const RATE: f64 = 3e-4;
const BETAS: [f64; 2] = [0.9, 0.95];
const EPS: f64 = 1e-8;
const WEIGHT_DECAY: f64 = 0.1;

const ROUNDS: usize = 5;
const REST: Duration = Duration::from_millis(200);
const STEPS: usize = 4;
const TOLERANCE: f32 = 1e-3;

/// Shared initial state.
struct Setup {
    /// `max_seq_len` is the length of each sequence.
    config: LlamaConfig,
    /// How often the same batch is walked in a step.
    micro_batches: usize,
    /// Shape and values by Hugging Face name.
    weights: HashMap<String, (Vec<usize>, Vec<f32>)>,
    inputs: Vec<u32>,
    targets: Vec<u32>,
}

impl Setup {
    /// Cosines and sines [seq_len, head_dim / 2] of the rotary angles, for libraries that take tables.
    fn rotary(&self) -> [Vec<f32>; 2] {
        let half = self.config.head_dim() / 2;
        let angle = |i: usize| (i / half) as f64 * self.config.rope_theta.powf(-((i % half) as f64) / half as f64);
        [f64::cos, f64::sin].map(|f| (0..SEQ_LEN * half).map(|i| f(angle(i)) as f32).collect())
    }
}

/// One library's training run.
trait Peer {
    /// Forward, backward and AdamW step; the loss before the update is read back if `read`.
    fn step(&mut self, read: bool) -> Result<Option<f32>>;

    /// Waits for the device, so that no work leaks into the next measurement.
    fn wait(&self) -> Result<()>;
}

/// Seconds of `work`, from when the peer before it has come to rest: threads without work spin for a while, OpenMP's for some
/// milliseconds, on a core that the next peer needs. `warm_up` wakes this peer's own.
fn seconds(mut warm_up: impl FnMut() -> Result<()>, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    std::thread::sleep(REST);
    warm_up()?;
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64())
}

/// Tokens per second over `steps` steps, the last with its loss read back.
fn speed(steps: usize, step: impl FnMut(bool) -> Result<()>) -> Result<f64> {
    let step = std::cell::RefCell::new(step);
    let run = |steps: usize| (1..=steps).try_for_each(|at| step.borrow_mut()(at == steps));
    Ok((steps * TOKENS) as f64 / seconds(|| run(1), || run(steps))?)
}

fn full(peer: &mut dyn Peer) -> Result<f64> {
    speed(STEPS, |last| {
        peer.step(last)?;
        if last { peer.wait() } else { Ok(()) }
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Inputs and targets of a full-period congruential generator: tokens without a crate, spread over the vocabulary.
fn tokens(count: usize, vocab: usize) -> (Vec<u32>, Vec<u32>) {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) % vocab as u32
    };
    let stream: Vec<u32> = (0..=count).map(|_| next()).collect();
    (stream[..count].to_vec(), stream[1..].to_vec())
}

/// The 20M preset, eight micro-batches of two sequences of 256 tokens, in polytape and PyTorch.
fn preset() -> Result<()> {
    const MICRO_BATCHES: usize = 8;
    let config = LlamaConfig { max_seq_len: 256, ..LlamaConfig::preset("20M")? };
    let (inputs, targets) = tokens(2 * config.max_seq_len, config.vocab);
    let count = (MICRO_BATCHES * inputs.len()) as f64;
    let (mut ours, setup) = polytape::Run::new(config, MICRO_BATCHES, inputs, targets)?;
    let Some(mut torch) = torch::Run::new(&setup)? else { return Ok(()) };
    // The second step shows whether the first one's gradients were right.
    for _ in 0..2 {
        let losses = [ours.step(true)?.ok_or("no loss")?, torch.step(true)?.ok_or("no loss")?];
        println!("\nloss of the 20M preset, polytape and PyTorch: {losses:.5?}");
        if !((losses[0] - losses[1]).abs() <= TOLERANCE) {
            return Err(format!("the losses differ by more than {TOLERANCE}").into());
        }
    }
    let mut speeds = [const { Vec::new() }; 2];
    for _ in 0..ROUNDS {
        for (peer, speeds) in [&mut ours as &mut dyn Peer, &mut torch].into_iter().zip(&mut speeds) {
            speeds.push(count / seconds(|| Ok(()), || peer.step(true).map(drop))?);
        }
    }
    let [ours, torch] = speeds.map(median);
    println!("20M preset, tokens/s, medians of {ROUNDS}: polytape {ours:.0}, PyTorch {torch:.0}, ratio {:.2}", ours / torch);
    Ok(())
}

fn main() -> Result<()> {
    let config = LlamaConfig { intermediate_size: 768, max_seq_len: SEQ_LEN, ..LlamaConfig::new(256, 4, 4, 512) };
    let (inputs, targets) = tokens(TOKENS, config.vocab);
    let (mut ours, setup) = polytape::Run::new(config, 1, inputs, targets)?;
    println!("adapter: {}, kernels: {}", ours.adapter(), ours.kernels());
    let mut burn = burn::Run::new(&setup, Device::wgpu(DeviceKind::DefaultDevice))?;
    let mut burn_cpu = burn::Run::new(&setup, Device::flex())?;
    let mut candle = candle::Run::new(&setup)?;
    let mut torch = torch::Run::new(&setup)?;

    for step in 1..=2 {
        let mut losses = Vec::new();
        let peers = [&mut ours as &mut dyn Peer, &mut burn, &mut burn_cpu, &mut candle];
        for peer in peers.into_iter().chain(torch.as_mut().map(|torch| torch as &mut dyn Peer)) {
            losses.push(peer.step(true)?.ok_or("no loss")?);
        }
        println!("loss at step {step}, polytape, burn (wgpu), burn (flex), candle, PyTorch: {losses:.5?}");
        // Negated so that a NaN fails too.
        if !losses.iter().all(|loss| (loss - losses[0]).abs() <= TOLERANCE) {
            return Err(format!("the losses of step {step} differ by more than {TOLERANCE}").into());
        }
    }
    // Warm-up: burn autotunes its kernels on first use.
    burn.step(true)?;
    burn.forward_backward(true)?;
    burn.wait()?;

    let mut names = vec![
        "polytape, full step".to_owned(),
        "burn (wgpu), forward and backward only".to_owned(),
        "burn (wgpu), full step".to_owned(),
        "burn (flex, CPU), full step".to_owned(),
        "candle (CPU), full step".to_owned(),
    ];
    names.extend(torch.as_ref().map(|torch| format!("PyTorch {} (CPU), full step", torch.version)));
    let mut speeds = vec![Vec::new(); names.len()];
    for _ in 0..ROUNDS {
        speeds[0].push(full(&mut ours)?);
        speeds[1].push(speed(STEPS, |last| burn.forward_backward(last))?);
        speeds[2].push(full(&mut burn)?);
        speeds[3].push(full(&mut burn_cpu)?);
        speeds[4].push(full(&mut candle)?);
        if let Some(torch) = &mut torch {
            speeds[5].push(full(torch)?);
        }
    }

    let ours = median(speeds[0].clone());
    println!("\n| | tokens/s, median of {ROUNDS} | min to max | polytape / this |\n|---|---:|---:|---:|");
    for (name, speeds) in names.iter().zip(speeds) {
        let fold = |f: fn(f64, f64) -> f64| speeds.iter().copied().reduce(f).unwrap_or(f64::NAN);
        let (low, high, middle) = (fold(f64::min), fold(f64::max), median(speeds.clone()));
        println!("| {name} | {middle:.0} | {low:.0} to {high:.0} | {:.2} |", ours / middle);
    }
    products::run(torch)?;
    preset()
}
