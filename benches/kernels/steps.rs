//! Dispatches of a training step, and their workgroups, on a GPU that need not be there: a rehearsal. Then what a step costs the host, on
//! an adapter that is not the CPU itself: a GPU's driver that executes nothing will do.

use std::time::Instant;

use polytape::gpu::{AdapterSummary, DeviceType, KernelTier, Tuning, adapters};
use polytape::llama::{Llama, LlamaConfig};
use polytape::optim::{AdamConfig, AdamW, Muon, MuonConfig, Optimizer};
use polytape::spectral::{PcConfig, Preconditioner};
use polytape::{Error, Gpu, GpuOptions, Indices, Result, Tensor, Trainer};

/// The tokens of a step: sequences in a micro-batch, their length, micro-batches.
type Tokens = [usize; 3];

/// Name, configuration and tokens: the demo as configured, the published sizes, all with 1,024 tokens in the vocabulary.
fn cases() -> Result<Vec<(String, LlamaConfig, Tokens)>> {
    let demo = LlamaConfig { intermediate_size: 384, ..LlamaConfig::new(128, 4, 4, 1024) };
    let mut cases = vec![("demo".to_string(), demo, [16, 128, 1])];
    for (name, tokens) in [("20M", [2, 256, 8]), ("271M", [4, 2048, 8]), ("1B", [4, 2048, 8])] {
        cases.push((name.to_string(), LlamaConfig { vocab: 1024, ..LlamaConfig::preset(name)? }, tokens));
    }
    Ok(cases)
}

/// A card as large as today's, with everything that this machine's adapter has.
fn card() -> Result<AdapterSummary> {
    let none = || Error::Adapter("no adapter whose limits a card could have".into());
    let mut card = AdapterSummary { kind: DeviceType::DiscreteGpu, ..adapters().into_iter().next().ok_or_else(none)? };
    card.subgroup_lanes = (32, 32);
    card.limits.max_storage_buffer_binding_size = 2 << 30;
    card.limits.max_buffer_size = 4 << 30;
    card.limits.max_storage_buffers_per_shader_stage = 64;
    Ok(card)
}

/// Calls `after` after each of some steps, PC level 4 on o and the feed-forward matrices, with weights of zeros.
fn train(
    gpu: &Gpu,
    config: LlamaConfig,
    [batch, length, micro_batches]: Tokens,
    rule: Box<dyn Optimizer>,
    steps: usize,
    mut after: impl FnMut() -> Result<()>,
) -> Result<()> {
    let config = LlamaConfig { max_seq_len: length, ..config };
    let (llama, mut params) = Llama::load(gpu, config, |_, shape| Tensor::zeros(gpu, shape))?;
    let is_target = |name: &str| name.contains(".mlp.") || name.contains(".o_proj.");
    let targets: Vec<_> = params.iter().filter(|(_, param)| is_target(&param.name)).map(|(id, _)| (id, 1)).collect();
    let pc = Preconditioner::attach(&mut params, PcConfig::default(), &targets, 1)?;
    let mut trainer = Trainer::new(params, Some(pc), rule, 1.0)?;
    let tokens = Indices::from_slice(gpu, &vec![0; batch * length])?;
    for _ in 0..steps {
        trainer.step(micro_batches, 1e-3, |tape, _| llama.loss(tape, &tokens, &tokens, length))?;
        after()?;
    }
    Ok(())
}

fn rules() -> [(&'static str, Box<dyn Optimizer>); 2] {
    [("AdamW", Box::new(AdamW::new(AdamConfig::default()))), ("Muon", Box::new(Muon::new(MuonConfig::default())))]
}

/// Workgroups of each dispatch of the second step: the first may still put parameters together.
fn workgroups(gpu: &Gpu, config: LlamaConfig, tokens: Tokens, rule: Box<dyn Optimizer>) -> Result<Vec<u64>> {
    let mut step = Vec::new();
    train(gpu, config, tokens, rule, 2, || {
        step = gpu.rehearsed();
        Ok(())
    })?;
    let product = |workgroups: [u32; 3]| workgroups.into_iter().map(u64::from).product();
    let mut workgroups: Vec<u64> = step.into_iter().map(|dispatch| product(dispatch.workgroups)).collect();
    workgroups.sort_unstable();
    Ok(workgroups)
}

/// FLOP/s assumed of the GPU.
const FLOPS: f64 = 50e12;

/// Milliseconds of a step on an adapter that takes no time, and their share of the time that the step's arithmetic (6 operations per
/// parameter and token) would take on a GPU of [`FLOPS`]. Of the large sizes one layer, which is what their steps are made of.
fn host_time(gpu: &Gpu) -> Result<()> {
    let layer = |name| Ok::<_, Error>(LlamaConfig { layers: 1, vocab: 1024, ..LlamaConfig::preset(name)? });
    let cases = [
        ("20M", LlamaConfig::preset("20M")?, [2, 256, 8], 60),
        ("a layer of 271M", layer("271M")?, [4, 2048, 8], 12),
        ("a layer of 1B", layer("1B")?, [2, 2048, 8], 12), // twice as many do not fit the memory of drivers without hardware
    ];
    println!(
        "\n| host time | | dispatches | ms a step: least | median | µs a dispatch, least | of the arithmetic at {:.0} TFLOP/s |\n|---|---|---:|---:|---:|---:|---:|",
        FLOPS / 1e12
    );
    for (name, config, tokens, count) in cases {
        for (optimizer, rule) in rules() {
            let (mut steps, mut last, mut dispatches) = (Vec::new(), Instant::now(), gpu.counters().dispatches);
            train(gpu, config.clone(), tokens, rule, count, || {
                steps.push((last.elapsed().as_secs_f64(), gpu.counters().dispatches - dispatches));
                (last, dispatches) = (Instant::now(), gpu.counters().dispatches);
                Ok(())
            })?;
            let dispatches = steps[count - 1].1;
            // The first steps compile.
            let mut seconds: Vec<f64> = steps[count / 6..].iter().map(|(seconds, _)| *seconds).collect();
            seconds.sort_by(f64::total_cmp);
            let (least, median) = (seconds[0], seconds[seconds.len() / 2]);
            let parameters: usize = config.parameters().iter().map(|parameter| parameter.shape.iter().product::<usize>()).sum();
            let arithmetic = 6.0 * (parameters * tokens.iter().product::<usize>()) as f64 / FLOPS;
            println!(
                "| {name} | {optimizer} | {dispatches} | {:.2} | {:.2} | {:.2} | {:.1} % |",
                1e3 * least,
                1e3 * median,
                1e6 * least / dispatches as f64,
                100.0 * least / arithmetic
            );
        }
    }
    Ok(())
}

pub fn run() -> Result<()> {
    println!(
        "\n| subgroup kernels | | dispatches | workgroups: least | median | dispatches of 32 at most | peak MiB |\n|---|---|---:|---:|---:|---:|---:|"
    );
    for (name, config, tokens) in cases()? {
        for (optimizer, rule) in rules() {
            let gpu = Gpu::rehearsal(&card()?, KernelTier::Subgroup)?;
            let groups = workgroups(&gpu, config.clone(), tokens, rule)?;
            let few = groups.iter().filter(|&&count| count <= 32).count();
            let (count, median) = (groups.len(), groups[groups.len() / 2]);
            println!(
                "| {name} | {optimizer} | {count} | {} | {median} | {:.0} % | {} |",
                groups[0],
                100.0 * few as f64 / count as f64,
                gpu.memory().peak >> 20
            );
        }
    }
    let options = GpuOptions { tuning: Tuning::Off, warn: |_| (), ..Default::default() };
    let gpu = Gpu::open(&options)?;
    if gpu.adapter().is_software() { Ok(()) } else { host_time(&gpu) }
}
