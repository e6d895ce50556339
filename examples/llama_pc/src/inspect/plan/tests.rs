//! The estimates against what the device counts.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use polytape::exchange::{ExchangeOptions, Local, in_process};
use polytape::gpu::KernelTier;
use polytape::{Error, Gpu, GpuOptions, Indices, Stacks, Trainer};

use super::flops::StepFlops;
use super::limits::Limits;
use super::model::Model;
use super::ranks::{Ask, Ranks};
use super::{Adapter, Report, bindings, memory};
use crate::config::Config;
use crate::model::import;

fn gpu(profile: bool) -> polytape::Result<Gpu> {
    Gpu::open(&GpuOptions { warn: |_| (), profile, ..Default::default() })
}

fn config(sets: &[&str]) -> Config {
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    let mut config = Config::load(None, &sets).expect("a good configuration");
    config.resolve_vocab(None).expect("a vocabulary");
    config
}

/// Two steps on any tokens: the second has the optimizer's moments from its beginning. With `rank`, as one of several ranks.
fn two_steps(gpu: &Gpu, config: &Config, rank: Option<Local>) -> polytape::Result<Trainer> {
    let model = import::Model::fresh(gpu, config).expect("a model");
    let trainer = Trainer::new(model.params, model.preconditioner, (config.optimizer.rule().build)(&config.optimizer), 1.0)?;
    let mut trainer = trainer.with_replicas(config.train.replicas)?;
    if let Some(rank) = rank {
        // Gradients that are sent while others are computed leave less at the peak.
        trainer = trainer.on_ranks(Arc::new(rank), ExchangeOptions { overlap: false, ..Default::default() })?;
    }
    let train = &config.train;
    let count = (train.batch_size * config.data.seq_len) as u32;
    let vocab = config.model.vocab.expect("a vocabulary") as u32;
    for _ in 0..2 {
        let own = trainer.micro_batches(train.grad_accumulation)?;
        let batch = || Indices::from_slice(gpu, &(0..count).map(|i| i * 7919 % vocab).collect::<Vec<_>>());
        let batches = own.clone().map(|_| Ok((batch()?, batch()?))).collect::<polytape::Result<Vec<_>>>()?;
        let (llama, seq_len) = (&model.llama, config.data.seq_len);
        trainer.step(train.grad_accumulation, 1e-3, |tape, i| {
            let (inputs, targets) = &batches[i - own.start];
            llama.loss(tape, inputs, targets, seq_len)
        })?;
    }
    Ok(trainer)
}

/// A rank's peak is mostly what all have: the share that is its own is seen in a model of many matrices.
#[test]
fn the_memory_of_a_rank_is_within_a_tenth_of_the_measured_peak_and_the_bytes_are_those_sent() {
    let shape = ["model.dim=128", "model.layers=6", "model.heads=4", "model.vocab=4000", "data.seq_len=32", "train.batch_size=2"];
    let train = ["train.grad_accumulation=4", "train.replicas=4"];
    let stacks = Stacks::of(&gpu(false).expect("the tests need an adapter, a software one at least"));
    for sets in [&["optimizer.kind=adamw"][..], &["optimizer.kind=muon", "pc.level=4"]] {
        let config = config(&[&shape[..], &train[..], sets].concat());
        let model = Model::new(&config, stacks).expect("a model");
        for ranks in [2, 4] {
            let ask = Ask { ranks, bandwidth: 1e9, speed: Some(1e12) };
            let plan = Ranks::new(&config, &model, StepFlops::new(&model), ask).expect("a plan");
            let run = |local: Local| {
                let gpu = gpu(false)?;
                let start = two_steps(&gpu, &config, Some(local))?.traffic();
                Ok::<_, polytape::Error>((gpu.memory().peak, start.sent))
            };
            let found: Vec<(u64, u64)> = thread::scope(|scope| {
                let locals = in_process(ranks, Duration::from_secs(60)).into_iter();
                let threads: Vec<_> = locals.map(|local| scope.spawn(|| run(local))).collect();
                threads.into_iter().map(|thread| thread.join().expect("no panic").expect("steps")).collect()
            });
            let most = found.iter().map(|(peak, _)| *peak).max().expect("a rank");
            let ratio = plan.memory_bytes as f64 / most as f64;
            assert!((0.9..1.1).contains(&ratio), "{sets:?}, {ranks} ranks: {} planned, {most} found", plan.memory_bytes);
            // Two steps, and the weights once before.
            let sent: u64 = found.iter().map(|(_, sent)| *sent).sum();
            let values: usize = model.parameters.iter().map(|parameter| parameter.numel()).sum();
            assert_eq!(sent, 2 * plan.sent_by_all + (4 * values * (ranks - 1)) as u64);
            // 2(P−1)/P · 4N, and little else.
            let formula = (8 * values * (ranks - 1)) as f64;
            assert!((plan.sent_by_all as f64 / formula - 1.0).abs() < 0.01, "{}", plan.sent_by_all);
            assert!(plan.largest_share < 1.2 / ranks as f64, "{}", plan.largest_share);
        }
        let ask = Ask { ranks: 3, bandwidth: 1e9, speed: None };
        assert!(Ranks::new(&config, &model, StepFlops::new(&model), ask).is_err());
    }
}

#[test]
fn the_memory_estimate_is_within_a_tenth_of_the_measured_peak() {
    let adamw = "optimizer.kind=adamw";
    let muon = "optimizer.kind=muon";
    // A wide vocabulary, a deep and narrow model, long sequences; each by itself and with PC layers, with either optimizer.
    let shapes: [&[&str]; 4] = [
        &["model.dim=128", "model.layers=2", "model.heads=4", "model.vocab=8000", "data.seq_len=32", "train.batch_size=2"],
        &[
            "model.dim=96",
            "model.layers=6",
            "model.heads=4",
            "model.vocab=500",
            "model.tied=true",
            "data.seq_len=96",
            "train.batch_size=3",
        ],
        &[
            "model.dim=128",
            "model.layers=2",
            "model.heads=4",
            "model.kv_heads=2",
            "model.vocab=300",
            "data.seq_len=512",
            "train.batch_size=1",
        ],
        &[
            "model.dim=64",
            "model.layers=3",
            "model.heads=4",
            "model.kv_heads=2",
            "model.head_dim=48",
            "model.qk_norm=true",
            "model.vocab=300",
            "data.seq_len=256",
            "train.batch_size=2",
        ],
    ];
    let variants: [&[&str]; 4] = [&[adamw], &[adamw, "pc.level=4"], &[muon, "pc.level=2", "train.grad_accumulation=2"], &[muon]];
    let recomputed: &[&str] = &[adamw, "pc.level=4", "train.checkpoint_activations=true", "model.tied=true"];
    let pairs = shapes.iter().flat_map(|shape| variants.map(|variant| (*shape, variant)));
    // A device of its own, so that no other test's buffers are counted.
    let gpu = gpu(false).expect("the tests need an adapter, a software one at least");
    let mut wrong = Vec::new();
    for (shape, variant) in pairs.chain([(shapes[0], recomputed), (shapes[1], recomputed)]) {
        let config = config(&[shape, variant].concat());
        gpu.reset_peak();
        two_steps(&gpu, &config, None).expect("two steps");
        let measured = gpu.memory().peak as f64;
        let moment = memory::peak(&Model::new(&config, Stacks::of(&gpu)).expect("a model"));
        let ratio = moment.total() as f64 / measured;
        if (ratio - 1.0).abs() > 0.1 {
            wrong.push(format!("{shape:?} {variant:?}: {ratio:.3} of {measured}, {moment:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// PC layers and Muon take matrices of one shape together where kernels are compiled: most memory where there are many, and few tokens.
#[test]
fn the_memory_of_stacks_is_within_a_tenth_of_the_measured_peak() {
    let shape = ["model.dim=128", "model.layers=8", "model.heads=4", "model.vocab=300", "data.seq_len=8", "train.batch_size=1"];
    let variants: [&[&str]; 3] = [
        &["optimizer.kind=adamw", "pc.level=4", "pc.targets=['qk', 'v', 'o', 'ffn']"],
        &["optimizer.kind=muon", "pc.level=2", "train.grad_accumulation=2"],
        &["optimizer.kind=muon"],
    ];
    // Stacks of all, and of a few.
    for memory_budget in [1 << 30, 64 << 20] {
        let open = GpuOptions {
            kernels: Some(KernelTier::Portable),
            memory_budget: Some(memory_budget),
            warn: |_| (),
            ..Default::default()
        };
        let gpu = Gpu::open(&open).expect("the tests need an adapter, a software one at least");
        for variant in variants {
            let config = config(&[&shape[..], variant].concat());
            gpu.reset_peak();
            two_steps(&gpu, &config, None).expect("two steps");
            let measured = gpu.memory().peak as f64;
            let moment = memory::peak(&Model::new(&config, Stacks::of(&gpu)).expect("a model"));
            let ratio = moment.total() as f64 / measured;
            assert!((ratio - 1.0).abs() < 0.1, "{variant:?} of {memory_budget}: {ratio:.3} of {measured}, {moment:?}");
        }
    }
}

#[test]
fn the_operations_are_those_that_the_device_counts() {
    let gpu = match gpu(true) {
        Err(Error::Adapter(problem)) if problem.contains("no timestamp queries") => return,
        opened => opened.expect("a device"),
    };
    for level in ["0", "1", "2", "3", "4"] {
        let level = format!("pc.level={level}");
        let sets = ["model.dim=64", "model.layers=2", "model.heads=4", "model.kv_heads=2", "model.vocab=512", "data.seq_len=32"];
        let more =
            [&level, "pc.targets=['qk', 'o', 'ffn']", "optimizer.kind=muon", "train.batch_size=2", "train.grad_accumulation=2"];
        let config = config(&[&sets[..], &more].concat());
        let matmul = || {
            gpu.profile()
                .expect("a profile")
                .kernels
                .iter()
                .filter(|(name, _)| **name == "matmul")
                .map(|(_, time)| time.work)
                .sum::<u64>()
        };
        let before = matmul();
        two_steps(&gpu, &config, None).expect("two steps");
        let counted = (matmul() - before) as f64 / 2.0;
        let mut model = Model::new(&config, Stacks::default()).expect("a model");
        // The power iteration and attention have kernels of their own.
        model.power_iterations = 0;
        let attention = 3.0 * 4.0 * (2 * 64) as f64 * 33.0 / 2.0 * (2 * 2 * 32) as f64;
        let expected = StepFlops::new(&model).total() - attention;
        // Level 0 writes its dγ as a product of a few numbers.
        assert!((counted / expected - 1.0).abs() < 1e-3, "{level}: {counted} counted, {expected} expected");
    }
}

#[test]
fn parameters_are_counted() {
    let model = |sets: &[&str]| Model::new(&config(sets), Stacks::default()).expect("a model");
    let published = model(&["model.preset=1B", "pc.level=4"]);
    assert_eq!(published.trainable() - published.non_embedding(), 2 * 32_000 * 2048);
    // 18 layers of four PC layers, each with its γ.
    assert_eq!(published.trainable(), 1_055_991_808 + 72);
}

#[test]
fn the_largest_micro_batch_fits_and_the_next_does_not() {
    let mut model = Model::new(&config(&["model.preset=20M", "data.seq_len=128"]), Stacks::default()).expect("a model");
    let limits = Limits { memory: Some(2 << 30), ..Limits::default() };
    let batch = limits.largest_batch(&model).expect("one sequence fits");
    model.batch = batch;
    assert!(limits.fit(&model));
    model.batch = batch + 1;
    assert!(!limits.fit(&model));
    assert_eq!(Limits { memory: Some(1 << 20), ..Limits::default() }.largest_batch(&model), None);
    let buffer = Limits { buffer: Some(100 << 20), ..Limits::default() };
    model.batch = buffer.largest_batch(&model).expect("one sequence fits");
    assert!(memory::largest_buffer(&model, None).1 <= 100 << 20 && model.batch > 1);
}

/// Gate and up, or q, k and v, are one buffer if that can be bound.
#[test]
fn activations_of_one_shape_share_the_largest_buffer() {
    // 4096 tokens: an activation of a width of 64 takes 1 MiB.
    let sets = ["model.dim=64", "model.heads=4", "model.vocab=100", "data.seq_len=512", "train.batch_size=8"];
    let largest = |more: &[&str], shared: Option<u64>| {
        let model = Model::new(&config(&[&sets[..], more].concat()), Stacks::default()).expect("a model");
        let (name, bytes) = memory::largest_buffer(&model, shared);
        (name, bytes >> 20)
    };
    let (wide, narrow) = (&["model.intermediate_size=256"], &["model.intermediate_size=64"]);
    assert_eq!(largest(wide, None), ("2 activations [tokens, intermediate_size]".to_owned(), 8));
    assert_eq!(largest(wide, Some(8 << 20)), ("2 activations [tokens, intermediate_size]".to_owned(), 8));
    assert_eq!(largest(wide, Some(6 << 20)), ("an activation [tokens, intermediate_size]".to_owned(), 4));
    assert_eq!(largest(narrow, None), ("3 activations [tokens, heads·head_dim]".to_owned(), 3));
    let fewer = [narrow[0], "model.kv_heads=2"];
    assert_eq!(largest(&fewer, None), ("2 activations [tokens, intermediate_size]".to_owned(), 2));
}

#[test]
fn a_buffer_that_is_too_large_is_the_reason() {
    let config = config(&["model.preset=20M", "data.seq_len=128"]);
    let model = Model::new(&config, Stacks::default()).expect("a model");
    let limits = Limits { memory: Some(1 << 40), buffer: Some(1 << 20), ..Limits::default() };
    let problem = limits.buffer_problem(&model).expect("the embedding alone is larger");
    assert!(
        problem.starts_with("needs a buffer of ") && problem.ends_with(", where the adapter has 1.00 MiB at most"),
        "{problem}"
    );
    assert!(!limits.fit(&model));
    let mut report = Report::new(&config, limits.memory, None, None).expect("a plan");
    report.adapter = Some(Adapter {
        name: "a GPU".to_owned(),
        kernels: KernelTier::Portable.to_string(),
        binding_limit: None,
        buffer_limit: 1 << 20,
        attention: None,
        binding_problem: None,
        buffer_problem: Some(problem.clone()),
    });
    assert!(report.text().contains(&format!("\ncannot run         {problem}\n")), "{}", report.text());
    assert_eq!(Limits { buffer: Some(1 << 40), ..limits }.buffer_problem(&model), None);
}

#[test]
fn what_does_not_fit_gets_advice_of_as_many_tokens() {
    let sets = ["model.preset=20M", "data.seq_len=256", "train.batch_size=64", "train.grad_accumulation=2"];
    let model = Model::new(&config(&sets), Stacks::default()).expect("a model");
    let advice = |memory: u64| Limits { memory: Some(memory), ..Limits::default() }.advice(&model);
    for memory in [512u64 << 20, 768 << 20, 1 << 30] {
        let advice = advice(memory);
        assert!(!advice.is_empty());
        for found in advice {
            assert_eq!(found.batch_size * found.grad_accumulation, 128, "{found:?}");
            assert!(found.bytes <= memory);
        }
    }
    assert!(advice(1 << 40).is_empty() && advice(1 << 20).is_empty());
}

#[test]
fn attention_of_the_published_1b_fits_a_small_binding() {
    let mut model =
        Model::new(&config(&["model.preset=1B", "data.seq_len=8192", "train.batch_size=4", "pc.level=4"]), Stacks::default())
            .expect("a model");
    let limit = 128 << 20;
    let windows = bindings::attention(&model, limit).expect("attention is cut");
    assert_eq!((windows.sequences, windows.queries, windows.bytes), (2, 8192, limit));
    assert_eq!(bindings::problem(&model, limit), None);
    let limits = Limits { binding: Some(limit), ..Limits::default() };
    assert!(limits.fit(&model));
    (model.batch, model.seq_len) = (1, 32_768);
    let problem = bindings::problem(&model, limit).expect("one sequence exceeds it");
    assert!(
        problem.starts_with("attention: k and v [32768, 2048] of one sequence are bound whole: 268435456 bytes"),
        "{problem}"
    );
    assert!(!limits.fit(&model));
    // Its widest PC layers are [2048, 5632].
    model.seq_len = 64;
    let problem = "a PC layer needs 44.0 MiB in one binding, where the adapter allows 32.0 MiB";
    assert_eq!(bindings::problem(&model, 32 << 20).as_deref(), Some(problem));
}
