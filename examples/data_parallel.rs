//! One model trained by four ranks, here threads of one process with a device each: bit for bit the losses of one rank.
//!
//! Each rank computes its share of a step's micro-batches. Every parameter has one owner, which adds up the gradients, keeps the
//! optimizer's state, and sends the new weights to all.
//!
//!     cargo run --release --example data_parallel

use std::sync::Arc;
use std::time::Duration;

use polytape::exchange::{Exchange, ExchangeOptions, in_process};
use polytape::optim::{Muon, MuonConfig};
use polytape::spectral::{PcConfig, Preconditioner};
use polytape::{Gpu, GpuOptions, Params, Result, Role, Tensor, Trainer};

const REPLICAS: usize = 4; // leaves of the gradient sum: any number of ranks that divides it gives the same bits
const MICRO_BATCHES: usize = 8;
const STEPS: usize = 40;
const WIDTH: usize = 64;

/// What one rank does: the losses, and the numbers that it keeps.
fn train(exchange: Option<Arc<dyn Exchange>>) -> Result<(Vec<f32>, usize)> {
    let gpu = Gpu::open(&GpuOptions { threads: Some(1), warn: |_| (), ..Default::default() })?;
    let mut params = Params::new(&gpu);
    let mut weights = Vec::new();
    for layer in 0..4 {
        let values = Tensor::normal(&gpu, &[WIDTH, WIDTH], 0.15, layer)?;
        weights.push(params.add(format!("{layer}.weight"), Role::Matrix, values)?);
    }
    let targets: Vec<_> = weights.iter().map(|&weight| (weight, 1)).collect();
    let pc = Preconditioner::attach(&mut params, PcConfig::default(), &targets, 0)?;
    let rule = Box::new(Muon::new(MuonConfig::default()));
    let mut trainer = Trainer::new(params, Some(pc), rule, 1.0)?.with_replicas(REPLICAS)?;
    if let Some(exchange) = exchange {
        trainer = trainer.on_ranks(exchange, ExchangeOptions::default())?;
    }
    let mut losses = Vec::new();
    for step in 0..STEPS {
        // `batch` counts the micro-batches of all ranks: the data are a function of it alone.
        let output = trainer.step(MICRO_BATCHES, 0.02, |tape, batch| {
            let seed = (MICRO_BATCHES * step + batch) as u64;
            let input = Tensor::normal(&gpu, &[32, WIDTH], 1.0, seed)?;
            let mut x = tape.constant(input.clone());
            for &weight in &weights {
                x = x.matmul_nt(&tape.param(weight)?)?.silu()?;
            }
            let miss = x.sub(&tape.constant(input).silu()?)?;
            miss.mul(&miss)?.mean()
        })?;
        losses.push(output.loss);
    }
    Ok((losses, trainer.params.numel()))
}

fn main() -> Result<()> {
    let (one, all) = train(None)?;
    println!("one rank:   loss {:.5} to {:.5}, keeps {all} parameters", one[0], one[STEPS - 1]);
    let ranks = in_process(REPLICAS, Duration::from_secs(60));
    let outcomes = std::thread::scope(|scope| {
        let threads: Vec<_> = ranks.into_iter().map(|rank| scope.spawn(|| train(Some(Arc::new(rank))))).collect();
        threads.into_iter().map(|thread| thread.join().expect("bug: a panic")).collect::<Result<Vec<_>>>()
    })?;
    for (rank, (losses, own)) in outcomes.iter().enumerate() {
        assert!(*losses == one, "rank {rank}: other losses than on one");
        println!("rank {rank} of 4: loss {:.5} to {:.5}, as on one; keeps {own} parameters", losses[0], losses[STEPS - 1]);
    }
    Ok(())
}
