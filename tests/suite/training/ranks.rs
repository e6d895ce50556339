//! Several ranks, here threads: the bits of one process, whatever their number, and each tensor at one owner.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use polytape::exchange::{Exchange, ExchangeOptions, Local, Stored, Wire, in_process};
use polytape::gpu::KernelTier;
use polytape::llama::{Llama, LlamaConfig};
use polytape::optim::{LossScale, OPTIMIZERS};
use polytape::{Error, Gpu, GpuOptions, Gradients, Precision, Result, Tensor, Trainer};

use super::small::{SEQ, batch, config, optimizer, precondition};
use crate::device;

const TIMEOUT: Duration = Duration::from_secs(60);

/// A run of several steps.
#[derive(Clone)]
struct Case {
    rule: &'static str,
    pc: bool,
    precision: Precision,
    replicas: usize,
    micro_batches: usize,
    /// Of the loss, so that f16 gradients overflow at first.
    factor: f32,
    kernels: KernelTier,
    options: ExchangeOptions,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            rule: "adamw",
            pc: true,
            precision: Precision::F32,
            replicas: 4,
            micro_batches: 4,
            factor: 1.0,
            kernels: device::default().kernels(),
            options: ExchangeOptions::default(),
        }
    }
}

/// Bits by name.
type Tensors = BTreeMap<String, Vec<u32>>;

/// What a run leaves: losses, norms and whether a step was skipped; parameters; the optimizer's state.
#[derive(PartialEq)]
struct Outcome {
    steps: Vec<(u32, u32, bool)>,
    model: Tensors,
    state: Tensors,
    taken: u64,
}

/// Tables of several partial sums, which are divided by rows.
fn sizes() -> LlamaConfig {
    LlamaConfig { vocab: 1100, ..config() }
}

impl Case {
    fn gpu(&self) -> Result<Gpu> {
        device::open(&GpuOptions { kernels: Some(self.kernels), threads: Some(1), ..Default::default() })
    }

    /// The trainer of one process, new or from what a run left.
    fn trainer(&self, gpu: &Gpu, from: Option<&Outcome>) -> Result<(Llama, Trainer)> {
        let (model, mut params) = Llama::init(gpu, sizes(), 3)?;
        let preconditioner = self.pc.then(|| precondition(&mut params, sizes().layers)).transpose()?;
        let values = |bits: &[u32]| bits.iter().copied().map(f32::from_bits).collect::<Vec<_>>();
        let trainer = match from {
            None => Trainer::new(params, preconditioner, optimizer(self.rule), 1.0)?,
            Some(from) => {
                let ids: Vec<_> = params.iter().map(|(id, param)| (id, param.clone())).collect();
                for (id, param) in ids {
                    params.set(id, Tensor::from_slice(gpu, &values(&from.model[&param.name]), param.tensor.shape())?)?;
                }
                let mut rule = optimizer(self.rule);
                let shapes: BTreeMap<String, Vec<usize>> = params
                    .iter()
                    .flat_map(|(_, param)| {
                        let slots = rule.slots(param.role, param.tensor.shape()).into_iter();
                        slots.map(|slot| (format!("{}.{}", param.name, slot.name), slot.shape)).collect::<Vec<_>>()
                    })
                    .collect();
                rule.load_state(&params, from.taken, &mut |name| {
                    Tensor::from_slice(gpu, &values(&from.state[name]), &shapes[name])
                })?;
                Trainer::resume(params, preconditioner, rule, 1.0)
            }
        };
        let mut trainer = trainer.with_precision(self.precision).with_replicas(self.replicas)?;
        trainer.loss_scale = trainer.loss_scale.map(|_| LossScale { interval: 2, ..LossScale::default() });
        Ok((model, trainer))
    }

    fn steps(&self, model: &Llama, trainer: &mut Trainer, steps: std::ops::Range<usize>) -> Result<Vec<(u32, u32, bool)>> {
        let gpu = trainer.params.gpu().clone();
        let step = |step: usize| {
            let output = trainer.step(self.micro_batches, 1e-2, |tape, i| {
                let (inputs, targets) = batch(&gpu, self.micro_batches * step + i)?;
                model.loss(tape, &inputs, &targets, SEQ)?.scale(self.factor)
            })?;
            Ok((output.loss.to_bits(), output.grad_norm.to_bits(), output.skipped.is_some()))
        };
        steps.map(step).collect()
    }

    /// The same on one rank, out of what all of them have.
    fn run(&self, ranks: usize, from: Option<&Outcome>, steps: std::ops::Range<usize>) -> Outcome {
        let rank = |local: Local| -> Result<(Outcome, [usize; 2])> {
            let gpu = self.gpu()?;
            let (model, mut trainer) = self.trainer(&gpu, from)?;
            if ranks > 1 {
                trainer = trainer.on_ranks(Arc::new(local), self.options)?;
            }
            let steps = self.steps(&model, &mut trainer, steps.clone())?;
            let (model, state) = trainer.stored()?;
            let counts = [model.len(), state.len()];
            let taken = trainer.optimizer.state().steps();
            Ok((Outcome { steps, model: values(&model)?, state: values(&state)?, taken }, counts))
        };
        let locals = in_process(ranks, TIMEOUT);
        let outcomes: Vec<(Outcome, [usize; 2])> = thread::scope(|scope| {
            let threads: Vec<_> = locals.into_iter().map(|local| scope.spawn(|| rank(local))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic").expect("a run")).collect()
        });
        join(outcomes)
    }

    fn same_bits(&self, what: &str) {
        let one = self.run(1, None, 0..4);
        assert!(one.steps.iter().all(|(loss, _, _)| f32::from_bits(*loss).is_finite()), "{what}");
        for ranks in [2, 4] {
            let several = self.run(ranks, None, 0..4);
            assert_eq!(several.steps, one.steps, "{what}, {ranks} ranks");
            assert!(several == one, "{what}: other weights or state on {ranks} ranks");
        }
    }
}

/// The parts that are here, by name and number, as a rank has no others.
fn values(list: &[Stored]) -> Result<Tensors> {
    let mut found = Tensors::new();
    for stored in list {
        for (number, part) in stored.parts.iter().enumerate() {
            if let Some(tensor) = &part.tensor {
                assert_eq!(tensor.len(), part.len);
                found.insert(format!("{} {number:03}", stored.name), tensor.to_vec()?.into_iter().map(f32::to_bits).collect());
            }
        }
    }
    Ok(found)
}

/// Joins what the ranks have: each part is at one of them, and losses and norms are the same on all.
fn join(outcomes: Vec<(Outcome, [usize; 2])>) -> Outcome {
    let counts = outcomes[0].1;
    assert!(outcomes.iter().all(|(outcome, others)| *others == counts && outcome.steps == outcomes[0].0.steps));
    let (mut model, mut state) = (BTreeMap::new(), BTreeMap::new());
    let (steps, taken) = (outcomes[0].0.steps.clone(), outcomes[0].0.taken);
    for (outcome, _) in outcomes {
        for (all, own) in [(&mut model, outcome.model), (&mut state, outcome.state)] {
            own.into_iter().for_each(|(name, bits)| assert!(all.insert(name.clone(), bits).is_none(), "{name} has two owners"));
        }
    }
    let whole = |parts: Tensors, count: usize| {
        let mut tensors = Tensors::new();
        for (name, bits) in parts {
            let (name, _) = name.rsplit_once(' ').expect("a number");
            tensors.entry(name.to_owned()).or_default().extend(bits);
        }
        assert_eq!(tensors.len(), count);
        tensors
    };
    Outcome { steps, model: whole(model, counts[0]), state: whole(state, counts[1]), taken }
}

#[test]
fn any_number_of_ranks_gives_the_bits_of_one() {
    for (rule, _) in OPTIMIZERS {
        for pc in [false, true] {
            Case { rule, pc, ..Default::default() }.same_bits(&format!("{rule}, PC layers: {pc}"));
        }
    }
}

#[test]
fn leaves_of_several_micro_batches_and_small_buckets_change_nothing() {
    for overlap in [false, true] {
        let options = ExchangeOptions { bucket: Some(1000), overlap, ..Default::default() };
        Case { micro_batches: 8, options, ..Default::default() }.same_bits(&format!("8 micro-batches, overlap: {overlap}"));
    }
}

#[test]
fn ranks_agree_on_skipped_steps_and_the_loss_scale() {
    let case = Case { rule: "muon", precision: Precision::F16, factor: 100.0, ..Default::default() };
    case.same_bits("f16");
    assert!(case.run(4, None, 0..4).steps.iter().any(|step| step.2), "the first gradients overflow");
}

#[test]
fn every_tier_gives_its_own_bits_on_any_number_of_ranks() {
    for gpu in device::all().iter().skip(1) {
        Case { rule: "muon", kernels: gpu.kernels(), ..Default::default() }.same_bits(&format!("{} kernels", gpu.kernels()));
    }
}

#[test]
fn one_replica_gives_the_bits_of_a_plain_step() {
    let case = Case { replicas: 1, ..Default::default() };
    let gpu = case.gpu().expect("a device");
    let (model, mut trainer) = case.trainer(&gpu, None).expect("a trainer");
    let steps = case.steps(&model, &mut trainer, 0..3).expect("steps");
    let mut plain = case.trainer(&gpu, None).expect("a trainer").1;
    let batches = (0..12).map(|number| batch(&gpu, number)).collect::<Result<Vec<_>>>().expect("batches");
    for (step, expected) in steps.iter().enumerate() {
        let (total, gradients) = plain
            .gradients(4, |tape, i| {
                let (inputs, targets) = &batches[4 * step + i];
                model.loss(tape, inputs, targets, SEQ)
            })
            .expect("gradients");
        let clip = plain.clip(&gradients).expect("a norm");
        let output = plain.decide(&total, &clip).expect("finite");
        assert_eq!((output.loss.to_bits(), output.grad_norm.to_bits(), false), *expected);
        plain.apply(gradients, &clip, 1e-2).expect("an update");
    }
}

#[test]
fn a_run_goes_on_with_another_number_of_ranks() {
    let case = Case { rule: "normuon", ..Default::default() };
    let whole = case.run(1, None, 0..6);
    let first = case.run(4, None, 0..2);
    let second = case.run(2, Some(&first), 2..4);
    let third = case.run(1, Some(&second), 4..6);
    assert_eq!([first.steps, second.steps, third.steps.clone()].concat(), whole.steps);
    assert!(third.model == whole.model && third.state == whole.state);
}

/// Halves round to 8 bits of mantissa.
#[test]
fn a_bf16_exchange_trains_about_as_well() {
    let options = ExchangeOptions { wire: Wire::Bf16, ..Default::default() };
    let loss = |ranks, options| {
        let outcome = Case { options, ..Default::default() }.run(ranks, None, 0..4);
        f32::from_bits(outcome.steps.last().expect("a step").0)
    };
    let (exact, rounded) = (loss(2, ExchangeOptions::default()), loss(2, options));
    assert!(exact != rounded && (rounded / exact - 1.0).abs() < 0.02, "{exact} and {rounded}");
}

/// The formula of the design: 2(P−1)/P · 4N bytes, but for flags and norms.
#[test]
fn a_step_moves_each_gradient_and_each_weight_once() {
    let case = Case { pc: false, ..Default::default() };
    let traffic = |steps: usize| {
        let rank = |local: Local| {
            let gpu = case.gpu().expect("a device");
            let (model, trainer) = case.trainer(&gpu, None).expect("a trainer");
            let mut trainer = trainer.on_ranks(Arc::new(local), case.options).expect("a rank");
            case.steps(&model, &mut trainer, 0..steps).expect("steps");
            (trainer.numel(), trainer.traffic())
        };
        thread::scope(|scope| {
            let threads: Vec<_> = in_process(4, TIMEOUT).into_iter().map(|local| scope.spawn(|| rank(local))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Vec<_>>()
        })
    };
    let (before, after) = (traffic(1), traffic(3));
    let sent: u64 = before.iter().zip(&after).map(|(before, after)| after.1.sent - before.1.sent).sum::<u64>() / 2;
    let received: u64 = before.iter().zip(&after).map(|(before, after)| after.1.received - before.1.received).sum::<u64>() / 2;
    let expected = 2 * 3 * 4 * before[0].0 as u64;
    assert_eq!(sent, received);
    assert!(sent >= expected && sent < expected + expected / 50, "{sent} bytes, {expected} and a little expected");
}

/// Sums of different adapters may differ in their last bit.
#[test]
fn ranks_decide_by_the_numbers_of_the_first() {
    let case = Case::default();
    let decide = |local: Local| -> Result<f32> {
        let gpu = case.gpu()?;
        let own = Tensor::from_slice(&gpu, &[1.0 + local.rank() as f32], &[1])?;
        let mut trainer = case.trainer(&gpu, None)?.1.on_ranks(Arc::new(local), case.options)?;
        let clip = trainer.clip(&Gradients::new())?;
        Ok(trainer.decide(&own, &clip)?.loss)
    };
    thread::scope(|scope| {
        let threads: Vec<_> = in_process(4, TIMEOUT).into_iter().map(|local| scope.spawn(|| decide(local))).collect();
        for thread in threads {
            assert_eq!(thread.join().expect("no panic").expect("a decision"), 1.0);
        }
    });
}

#[test]
fn replicas_and_ranks_must_divide_the_step() {
    let text = |result: Result<()>| result.expect_err("an error").to_string();
    let case = Case::default();
    let gpu = case.gpu().expect("a device");
    let trainer = |replicas| case.trainer(&gpu, None).and_then(|(_, trainer)| trainer.with_replicas(replicas));
    assert_eq!(text(trainer(3).map(drop)), "3 replicas: a power of two expected");
    let trainer = trainer(4).expect("a trainer");
    assert_eq!(text(trainer.micro_batches(6).map(drop)), "6 micro-batches: a multiple of the 4 replicas expected");
    let rank = |ranks| -> Result<Trainer> {
        let local: Arc<dyn Exchange> = Arc::new(in_process(ranks, TIMEOUT).remove(0));
        case.trainer(&gpu, None)?.1.on_ranks(local, case.options)
    };
    assert_eq!(text(rank(8).map(drop)), "8 ranks: a divisor of the 4 replicas expected");
    let again = rank(1).expect("a rank").with_replicas(1);
    assert_eq!(text(again.map(drop)), "with_replicas: expected before `on_ranks`");
}

#[test]
fn a_rank_that_ends_or_is_silent_is_named() {
    let mut locals = in_process(3, Duration::from_millis(200));
    let silent = locals.pop().expect("a rank");
    drop(locals.pop());
    let first: Arc<dyn Exchange> = Arc::new(locals.pop().expect("a rank"));
    let started = Instant::now();
    let failed = |rank| first.receive(rank).expect_err("nothing comes").to_string();
    assert_eq!(failed(1), "rank 1 has ended");
    assert!(started.elapsed() < Duration::from_millis(200), "at once");
    assert_eq!(failed(2), "rank 2 sent nothing for 200ms");
    assert!(matches!(first.any(true), Err(Error::Rank { rank: 1, .. })));
    drop(silent);
}

#[test]
fn a_rank_with_another_model_is_named() {
    let rank = |local: Local| -> Result<()> {
        let (case, other) = (Case { pc: false, ..Default::default() }, local.rank() == 1);
        let gpu = case.gpu()?;
        let sizes = LlamaConfig { layers: if other { 1 } else { 2 }, ..sizes() };
        let (_, params) = Llama::init(&gpu, sizes, 3)?;
        let trainer = Trainer::new(params, None, optimizer(case.rule), 1.0)?.with_replicas(4)?;
        trainer.on_ranks(Arc::new(local), case.options).map(drop)
    };
    let outcomes: Vec<Result<()>> = thread::scope(|scope| {
        let threads: Vec<_> = in_process(2, TIMEOUT).into_iter().map(|local| scope.spawn(|| rank(local))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Err(Error::Rank { .. }))), "{outcomes:?}");
}

#[test]
fn a_nan_on_one_rank_is_an_error_on_all() {
    let rank = |local: Local| -> Result<f32> {
        let case = Case::default();
        let gpu = case.gpu()?;
        let (model, trainer) = case.trainer(&gpu, None)?;
        let mut trainer = trainer.on_ranks(Arc::new(local), case.options)?;
        let output = trainer.step(case.micro_batches, 1e-2, |tape, i| {
            let (inputs, targets) = batch(&gpu, i)?;
            model.loss(tape, &inputs, &targets, SEQ)?.scale(if i == 2 { f32::NAN } else { 1.0 })
        })?;
        Ok(output.loss)
    };
    let outcomes: Vec<Result<f32>> = thread::scope(|scope| {
        let threads: Vec<_> = in_process(4, TIMEOUT).into_iter().map(|local| scope.spawn(|| rank(local))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Err(Error::NonFinite { step: 1, .. }))), "{outcomes:?}");
}

/// A budget between what a rank holds before a step and what it needs in one.
#[test]
fn a_rank_out_of_memory_says_so_and_is_named_by_the_others() {
    let case = Case { pc: false, ..Default::default() };
    // What is in use before a step, and at its peak.
    let rank = |local: Local, memory_budget: Option<u64>| -> Result<[u64; 2]> {
        let budget = memory_budget.filter(|_| local.rank() == 1);
        let options = GpuOptions { kernels: Some(case.kernels), threads: Some(1), memory_budget: budget, ..Default::default() };
        let gpu = device::open(&options)?;
        let (model, trainer) = case.trainer(&gpu, None)?;
        let mut trainer = trainer.on_ranks(Arc::new(local), case.options)?;
        let before = gpu.memory().peak;
        case.steps(&model, &mut trainer, 0..1)?;
        Ok([before, gpu.memory().peak])
    };
    let run = |budget: Option<u64>| -> Vec<Result<[u64; 2]>> {
        thread::scope(|scope| {
            let ranks = in_process(2, TIMEOUT).into_iter();
            let threads: Vec<_> = ranks.map(|local| scope.spawn(move || rank(local, budget))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        })
    };
    let [before, peak] = run(None).remove(1).expect("enough memory");
    assert!(before < peak);
    let found = run(Some((before + peak) / 2));
    assert!(matches!(found[1], Err(Error::OutOfMemory { .. })), "{:?}", found[1]);
    assert!(matches!(found[0], Err(Error::Rank { rank: 1, .. })), "{:?}", found[0]);
}
