//! Training steps of the 20M preset, plain and with PC layers of level 4 on o and ffn, and evaluation before and after merging. Eight
//! micro-batches of two sequences of 256 tokens per step.

use std::time::Instant;

use polytape::llama::{Llama, LlamaConfig};
use polytape::optim::{AdamConfig, AdamW};
use polytape::spectral::{PcConfig, Preconditioner};
use polytape::{Gpu, Indices, Params, Result, Tape, Trainer};

use crate::fastest;

const MICRO_BATCHES: usize = 8;
const SEQUENCES: usize = 2;
const SEQ_LEN: usize = 256;
const ROUNDS: usize = 7;

struct Model {
    llama: Llama,
    trainer: Trainer,
    inputs: Indices,
    targets: Indices,
}

impl Model {
    fn new(gpu: &Gpu, with_pc: bool) -> Result<Self> {
        let config = LlamaConfig { max_seq_len: SEQ_LEN, ..LlamaConfig::preset("20M")? };
        let vocab = config.vocab as u32;
        let (llama, mut params) = Llama::init(gpu, config, 7)?;
        let is_target = |name: &str| name.contains(".mlp.") || name.contains(".o_proj.");
        let targets: Vec<_> = params.iter().filter(|(_, param)| is_target(&param.name)).map(|(id, _)| (id, 1)).collect();
        let pc = with_pc.then(|| Preconditioner::attach(&mut params, PcConfig::default(), &targets, 7)).transpose()?;
        let tokens: Vec<u32> = (0..=(SEQUENCES * SEQ_LEN) as u32).map(|i| i.wrapping_mul(2_654_435_761) % vocab).collect();
        Ok(Self {
            llama,
            trainer: Trainer::new(params, pc, Box::new(AdamW::new(AdamConfig::default())), 1.0)?,
            inputs: Indices::from_slice(gpu, &tokens[1..])?,
            targets: Indices::from_slice(gpu, &tokens[..tokens.len() - 1])?,
        })
    }

    fn step(&mut self, micro_batches: usize) -> Result<f32> {
        let Self { llama, trainer, inputs, targets } = self;
        Ok(trainer.step(micro_batches, 1e-3, |tape, _| llama.loss(tape, inputs, targets, SEQ_LEN))?.loss)
    }

    fn evaluate(&self, params: &Params) -> Result<f32> {
        let tape = Tape::inference(params);
        self.llama.loss(&tape, &self.inputs, &self.targets, SEQ_LEN)?.value().item()
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

pub fn run(gpu: &Gpu) -> Result<()> {
    println!(
        "\n| 20M preset, medians of {ROUNDS} rounds | s/step | tokens/s | vs plain | dispatches | submits | KiB up | KiB down |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|");
    let mut evaluations = Vec::new();
    for micro_batches in [MICRO_BATCHES, 1] {
        let mut models = [Model::new(gpu, false)?, Model::new(gpu, true)?];
        let mut rounds = Vec::new();
        let first = [models[0].step(micro_batches)?, models[1].step(micro_batches)?];
        // Interleaved, so that other load affects both alike.
        for _ in 0..ROUNDS {
            let mut timed = |at: usize| -> Result<f64> {
                let start = Instant::now();
                models[at].step(micro_batches)?;
                Ok(start.elapsed().as_secs_f64())
            };
            rounds.push([timed(0)?, timed(1)?]);
        }
        let seconds = [0, 1].map(|at| median(rounds.iter().map(|round| round[at])));
        let ratios = [1.0, median(rounds.iter().map(|round| round[1] / round[0]))];
        for (at, name) in ["plain", "PC level 4"].into_iter().enumerate() {
            let before = gpu.counters();
            let loss = models[at].step(micro_batches)?;
            assert!(loss < first[at], "{name}: the loss does not fall, {} to {loss}", first[at]);
            let after = gpu.counters();
            println!(
                "| {name}, {micro_batches} micro-batches | {:.2} | {:.0} | {:.3} | {} | {} | {:.1} | {:.1} |",
                seconds[at],
                (micro_batches * SEQUENCES * SEQ_LEN) as f64 / seconds[at],
                ratios[at],
                after.dispatches - before.dispatches,
                after.submits - before.submits,
                (after.bytes_uploaded - before.bytes_uploaded) as f64 / 1024.0,
                (after.bytes_read - before.bytes_read) as f64 / 1024.0,
            );
        }
        evaluations = models.into_iter().collect();
    }
    println!("\n| evaluation of two sequences | ms |\n|---|---:|");
    for (name, model) in ["plain", "PC, merged"].into_iter().zip(&evaluations) {
        let params = model.trainer.effective_params()?;
        println!("| {name} | {:.1} |", 1e3 * fastest(gpu, || model.evaluate(&params).map(drop))?);
    }
    Ok(())
}
