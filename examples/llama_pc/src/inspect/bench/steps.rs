//! Whole training steps, plain and with PC layers: tokens per second, what the PC layers add, and where the time goes.

use std::time::{Duration, Instant};

use polytape::gpu::KernelTier;
use polytape::llama::{Llama, LlamaConfig, names};
use polytape::spectral::Preconditioner;
use polytape::{Indices, Precision, Tensor, Trainer};

use super::memory::has_timer;
use super::report::{Row, Unit};
use super::session::{Case, Session, Stop, Timing};
use super::sizes::preset;
use super::table;
use super::values::{tensor, value};
use crate::config::Config;
use crate::inspect::plan::{self, StepFlops};
use crate::model::engine;

/// A model and the tokens of its step.
#[derive(Clone, Copy)]
struct Setup {
    model: &'static str,
    precision: Precision,
    micro_batches: usize,
    sequences: usize,
    seq_len: usize,
}

/// What adapters are fast enough for, and what slow ones may still have time for.
const SETUPS: [[Setup; 2]; 4] = {
    const fn setup(model: &'static str, precision: Precision, [micro_batches, sequences, seq_len]: [usize; 3]) -> Setup {
        Setup { model, precision, micro_batches, sequences, seq_len }
    }
    const F32: Precision = Precision::F32;
    const F16: Precision = Precision::F16;
    [
        [setup("20M", F32, [8, 2, 256]), setup("20M", F32, [1, 2, 256])],
        [setup("271M", F32, [1, 4, 2048]), setup("271M", F32, [1, 1, 256])],
        [setup("271M", F16, [1, 4, 2048]), setup("271M", F16, [1, 1, 256])],
        [setup("1B", F32, [1, 2, 2048]), setup("1B", F32, [1, 1, 256])],
    ]
};

/// Micro-batches for which the cost of the PC layers is given: they are computed once per step, however many there are.
const MICRO_BATCHES: f64 = 8.0;
/// Rounds of a plain and a PC step that are timed at most. Before them, one compiles.
const ROUNDS: usize = 5;
/// The share of a product's rate that a step reaches, and of the limit where no product was measured, for the estimate.
const OF_PRODUCT: f64 = 0.4;
const OF_LIMIT: f64 = 0.1;

/// Every line of the part.
pub fn run(session: &mut Session) -> Case {
    for (at, setups) in SETUPS.into_iter().enumerate() {
        let [setup, _] = setups;
        let share = session.left() / (SETUPS.len() - at) as f64;
        if setup.precision != Precision::F32 && session.gpu.kernels() != KernelTier::Matrix {
            continue;
        }
        let mut problems = Vec::new();
        for setup in setups {
            match problem(session, &setup)? {
                Some(problem) => problems.push((setup, problem)),
                None => {
                    session.case(&setup.to_string(), 0.0, |session| measure(session, &setup, share));
                    break;
                }
            }
        }
        // Of two that cannot be measured, what stands against the smaller one says more.
        if problems.len() == setups.len()
            && let Some((setup, problem)) = problems.pop()
        {
            session.leave_out(&setup.to_string(), problem);
        }
    }
    Ok(())
}

impl std::fmt::Display for Setup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { model, precision, micro_batches, sequences, seq_len } = self;
        write!(f, "{model} at {precision}, {micro_batches} × {sequences} × {seq_len} tokens")
    }
}

impl Setup {
    fn config(&self) -> Case<Config> {
        let Self { model, precision, micro_batches, sequences, seq_len } = self;
        let set = [
            format!("model.preset={model}"),
            "pc.targets=[\"o\", \"ffn\"]".to_owned(),
            format!("data.seq_len={seq_len}"),
            format!("train.batch_size={sequences}"),
            format!("train.grad_accumulation={micro_batches}"),
            format!("train.precision={precision}"),
        ];
        let mut config = Config::load(None, &set)?;
        config.resolve_vocab(None)?;
        Ok(config)
    }

    fn tokens(&self) -> usize {
        self.micro_batches * self.sequences * self.seq_len
    }
}

/// Why there is no use in beginning: too little memory, or too little time.
fn problem(session: &Session, setup: &Setup) -> Case<Option<String>> {
    let config = setup.config()?;
    if let Some(problem) = plan::problem(&config, &session.gpu)? {
        return Ok(Some(problem));
    }
    let rate = session.limits.product.map_or(OF_LIMIT * session.limits.multiply_adds, |best| OF_PRODUCT * best);
    // A plain step and one with PC layers, each to compile and to be timed.
    let flops = StepFlops::of(&config)?;
    let estimate = 2.0 * (2.0 * flops.model + flops.pc) / rate;
    let left = session.left();
    let text = format!("takes about {}, {} left", table::seconds(estimate), table::seconds(left));
    Ok((estimate > left).then_some(text))
}

/// A model that repeats a step on the same tokens.
struct Model {
    setup: Setup,
    llama: Llama,
    trainer: Trainer,
    preconditioner: Preconditioner,
    inputs: Indices,
    targets: Indices,
}

impl Model {
    fn new(session: &Session, setup: &Setup) -> Case<Self> {
        let (gpu, config) = (&session.gpu, setup.config()?);
        let sizes = engine::model(&config);
        let stds: Vec<(String, f64)> = sizes.parameters().into_iter().map(|parameter| (parameter.name, parameter.std)).collect();
        let mut number = 0;
        // Drawing a billion normal values takes longer than the steps.
        let (llama, mut params) = Llama::load(gpu, sizes, |name, shape| {
            number += 1;
            match stds.iter().find(|(other, _)| other == name).map_or(0.0, |(_, std)| *std) {
                0.0 => Tensor::from_slice(gpu, &vec![1.0; shape.iter().product()], shape),
                std => tensor(gpu, shape, std as f32, number),
            }
        })?;
        let id = |(stem, heads): (String, usize)| Ok((params.id(&names::weight(&stem))?, heads));
        let targets = engine::pc_targets(&config).into_iter().map(id).collect::<polytape::Result<Vec<_>>>()?;
        let pc = config.pc.as_ref().map(engine::pc).transpose()?.unwrap_or_default();
        let preconditioner = Preconditioner::attach(&mut params, pc, &targets, config.seed)?;
        preconditioner.refresh(&mut params)?;
        let optimizer = (config.optimizer.rule().build)(&config.optimizer);
        let trainer = Trainer::new(params, None, optimizer, config.train.max_grad_norm as f32)?.with_precision(setup.precision);
        let vocab = preset(setup.model)?.vocab as f32;
        let tokens = setup.sequences * setup.seq_len;
        let token = |at| ((value(9, at) / 12f32.sqrt() + 0.5) * vocab).clamp(0.0, vocab - 1.0) as u32;
        let tokens: Vec<u32> = (0..=tokens).map(token).collect();
        Ok(Self {
            setup: *setup,
            llama,
            trainer,
            preconditioner,
            inputs: Indices::from_slice(gpu, &tokens[..tokens.len() - 1])?,
            targets: Indices::from_slice(gpu, &tokens[1..])?,
        })
    }

    /// Seconds and loss of a step on the device's idle queue.
    fn step(&mut self, session: &Session, with_pc: bool) -> polytape::Result<(f64, f32)> {
        /// Small enough for every size; the time does not depend on it.
        const RATE: f32 = 1e-4;
        let Self { setup, llama, trainer, preconditioner, inputs, targets } = self;
        trainer.preconditioner = with_pc.then(|| preconditioner.clone());
        session.gpu.synchronize()?;
        let start = Instant::now();
        let output = trainer.step(setup.micro_batches, RATE, |tape, _| llama.loss(tape, inputs, targets, setup.seq_len))?;
        session.gpu.synchronize()?;
        Ok((start.elapsed().as_secs_f64(), output.loss))
    }
}

/// Rounds of plain and PC steps, which take turns so that other load meets both: one, and others for as long as the share of the time
/// lasts, in seconds.
fn measure(session: &mut Session, setup: &Setup, share: f64) -> Case {
    let ends = Instant::now() + Duration::from_secs_f64(share);
    let mut model = Model::new(session, setup)?;
    let what = setup.to_string();
    let first = [model.step(session, false)?.1, model.step(session, true)?.1];
    check_first(&first, &preset(setup.model)?)?;
    let mut samples = [Vec::new(), Vec::new()];
    let mut lowest = first;
    let (mut dispatches, mut host) = (0, f64::INFINITY);
    while samples[0].len() < ROUNDS && (samples[0].is_empty() || Instant::now() < ends) && !session.is_over() {
        for (at, samples) in samples.iter_mut().enumerate() {
            let before = session.gpu.counters();
            let (seconds, loss) = model.step(session, at == 1)?;
            let after = session.gpu.counters();
            samples.push(seconds);
            lowest[at] = lowest[at].min(loss);
            if at == 1 {
                dispatches = after.dispatches - before.dispatches;
                host = host.min(seconds - after.waited.saturating_sub(before.waited).as_secs_f64());
            }
        }
    }
    if samples[1].is_empty() {
        return Ok(());
    }
    for (at, name) in ["plain", "PC"].into_iter().enumerate() {
        let (first, lowest) = (first[at], lowest[at]);
        if lowest >= first {
            return Err(Stop::Wrong(format!("the loss of {name} steps on the same tokens never falls below its first, {first}")));
        }
    }
    let [plain, pc] = samples.map(Timing::of);
    speeds(session, setup, [plain, pc]);
    session.row(Row { what: what.clone(), unit: Unit::Dispatches, value: dispatches as f64, ..Row::default() });
    // On the host tier the host is the device.
    if session.gpu.kernels() != KernelTier::Host {
        session.row(milliseconds(&what, "host", host.max(0.0)));
    }
    if has_timer(&session.gpu) && !session.is_over() {
        profile(session, &mut model, &what)?;
    }
    Ok(())
}

fn milliseconds(what: &str, column: &str, seconds: f64) -> Row {
    let (what, column) = (what.to_owned(), column.to_owned());
    Row { what, column, unit: Unit::Milliseconds, value: 1e3 * seconds, ..Row::default() }
}

/// Untrained weights have a loss near ln(vocabulary).
fn check_first(losses: &[f32], sizes: &LlamaConfig) -> Case {
    let want = (sizes.vocab as f64).ln();
    let is_near = |loss: f32| (f64::from(loss) - want).abs() < 1.5; // not so for a NaN
    match losses.iter().find(|loss| !is_near(**loss)) {
        None => Ok(()),
        Some(loss) => Err(Stop::Wrong(format!("the first loss is {loss}, expected about {want:.2}"))),
    }
}

/// Tokens per second, and what the PC layers add.
fn speeds(session: &mut Session, setup: &Setup, timings: [Timing; 2]) {
    let what = setup.to_string();
    let [plain, pc] = timings.map(|timing| timing.seconds);
    for (column, timing) in ["plain", "PC"].into_iter().zip(timings) {
        session.row(Row {
            what: what.clone(),
            column: column.to_owned(),
            unit: Unit::Tokens,
            value: setup.tokens() as f64 / timing.seconds,
            spread: timing.spread,
            ..Row::default()
        });
    }
    let of_eight = (pc - plain) / (plain * MICRO_BATCHES / setup.micro_batches as f64);
    let column = format!("PC of {MICRO_BATCHES} micro-batches");
    session.row(Row { what, column, unit: Unit::Percent, value: 100.0 * of_eight, ..Row::default() });
}

/// Times every kernel of a PC step.
fn profile(session: &mut Session, model: &mut Model, what: &str) -> Case {
    session.gpu.time_kernels(true)?;
    let outcome = model.step(session, true);
    let table = session.gpu.profile()?;
    session.gpu.time_kernels(false)?;
    outcome?;
    let seconds = table.kernels.values().map(|time| time.seconds).sum();
    session.row(milliseconds(what, "device", seconds));
    if let Some((name, time)) = table.kernels.iter().max_by(|a, b| a.1.longest.total_cmp(&b.1.longest)) {
        let note = Some(format!("longest: {name}"));
        session.row(Row { note, ..milliseconds(what, "longest", time.longest) });
    }
    Ok(())
}
