//! Properties of every run: reproducible, resumable, constant memory.

use std::collections::HashMap;

use polytape::llama::{Llama, LlamaConfig};
use polytape::optim::{Clip, OPTIMIZERS};
use polytape::safetensors::{Reader, save};
use polytape::{
    EffectiveGradients, Gpu, GpuOptions, Gradients, Params, Precision, Result, Skip, StepHook, StepOutput, Tape, Tensor, Trainer,
};

use super::small::{SEQ, Small, batch, bits, config, optimizer, precondition};
use crate::device;

#[test]
fn recomputed_activations_give_the_same_bits() {
    for gpu in device::all() {
        for precision in Precision::ALL {
            let run = |checkpoint_activations| {
                let config = LlamaConfig { checkpoint_activations, ..config() };
                Small::at(precision, gpu, config, "adamw").and_then(|mut small| small.run(0..3)).expect("three steps")
            };
            assert!(run(true) == run(false), "{precision}, {} kernels", gpu.kernels());
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_bits() {
    for gpu in device::all() {
        for (rule, _) in OPTIMIZERS {
            let run = || Small::new(gpu, config(), rule).and_then(|mut small| small.run(0..3)).expect("three steps");
            assert!(run() == run(), "{} kernels, {rule}", gpu.kernels());
        }
    }
}

#[test]
fn shaders_without_checks_give_the_same_bits() {
    for kernels in device::all().iter().map(Gpu::kernels) {
        let run = |checked_shaders| {
            let options = GpuOptions { kernels: Some(kernels), checked_shaders, ..Default::default() };
            device::open(&options).and_then(|gpu| Small::new(&gpu, config(), "muon")?.run(0..2)).expect("two steps")
        };
        assert!(run(true) == run(false), "{kernels} kernels");
    }
}

#[test]
fn a_model_learns() {
    let gpu = device::default();
    let mut small = Small::new(gpu, config(), "muon").expect("a model");
    let mut losses = (0..40).map(|step| small.step(step % 2).expect("a step").loss);
    let (first, last) = (losses.next().expect("a loss"), losses.last().expect("a loss"));
    assert!((first - 50f32.ln()).abs() < 1.0, "before training all 50 tokens are about as likely: {first}");
    assert!(last < 0.5 * first, "from {first} to {last}");
}

#[test]
fn memory_does_not_grow_with_the_steps() {
    // A separate device, because other tests use the shared ones concurrently.
    let gpu = device::open(&GpuOptions::default()).expect("an adapter");
    let mut small = Small::new(&gpu, LlamaConfig { layers: 1, ..config() }, "adamw").expect("a model");
    let mut measure = |steps: std::ops::Range<usize>| {
        for step in steps {
            gpu.reset_peak();
            small.step(step).expect("a step");
        }
        gpu.synchronize().expect("the device");
        gpu.memory()
    };
    let early = measure(0..3);
    assert!(early.peak > early.live && early.allocated >= early.peak, "{early:?}");
    assert_eq!(measure(3..200), early);
}

#[test]
fn a_checkpoint_resumes_with_the_same_bits() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("run.safetensors");
    for gpu in device::all() {
        let lower = [("adamw", Precision::F16), ("muon", Precision::F16x3)];
        for (rule, precision) in OPTIMIZERS.map(|(rule, _)| (rule, Precision::F32)).into_iter().chain(lower) {
            let mut small = Small::at(precision, gpu, config(), rule).expect("a model");
            small.run(0..2).expect("two steps");
            let trainer = &small.trainer;
            let loss_scale = trainer.loss_scale.clone();
            let mut tensors: Vec<(String, Tensor)> =
                trainer.params.iter().map(|(_, param)| (param.name.clone(), param.tensor.clone())).collect();
            tensors.extend(trainer.optimizer.state_tensors(&trainer.params).expect("a state"));
            let metadata = HashMap::from([("steps".to_string(), trainer.optimizer.state().steps().to_string())]);
            save(&path, &tensors, metadata).expect("a file");
            let expected = small.run(2..4).expect("two more steps");

            let file = Reader::open(&path).expect("a checkpoint");
            let (model, mut params) =
                Llama::load(gpu, config(), |name, shape| file.tensor_of(gpu, name, shape)).expect("a model");
            // Attached as in a new run, so that the order of the parameters, and of the reductions over them, is the same.
            let preconditioner = Some(precondition(&mut params, 2).expect("PC layers"));
            let extra: Vec<_> = params.iter().filter(|(_, param)| param.name.contains(".pc_")).map(|(id, _)| id).collect();
            for id in extra {
                let param = params.get(id).expect("a parameter").clone();
                params.set(id, file.tensor_of(gpu, &param.name, param.tensor.shape()).expect("a tensor")).expect("its shape");
            }
            let mut optimizer = optimizer(rule);
            optimizer.load_state(&params, 2, &mut |name| file.tensor(gpu, name)).expect("a state");
            let mut trainer = Trainer::resume(params, preconditioner, optimizer, 1.0);
            (trainer.precision, trainer.loss_scale) = (precision, loss_scale);
            let mut resumed = Small { model, trainer };
            let context = format!("{precision}, {} kernels, {rule}", gpu.kernels());
            assert!(resumed.run(2..4).expect("two more steps") == expected, "{context}");
            assert_eq!(resumed.trainer.loss_scale, small.trainer.loss_scale, "{context}");
        }
    }
}

#[test]
fn an_evaluation_records_nothing_and_changes_nothing() {
    for gpu in device::all() {
        let small = Small::new(gpu, config(), "adamw").expect("a model");
        let before = bits(&small.trainer.params).expect("read-back");
        let weights = small.trainer.effective_params().expect("effective weights");
        let (inputs, targets) = batch(gpu, 0).expect("a batch");
        let (evaluation, training) = (Tape::inference(&weights), Tape::new(&weights));
        let loss = small.model.loss(&evaluation, &inputs, &targets, SEQ).expect("a loss");
        assert!(evaluation.is_empty() && !loss.wants_gradient());
        let same = small.model.loss(&training, &inputs, &targets, SEQ).expect("a loss");
        assert!(!training.is_empty() && same.wants_gradient());
        assert_eq!(loss.value().item().expect("read-back"), same.value().item().expect("read-back"));
        assert!(bits(&small.trainer.params).expect("read-back") == before);
    }
}

#[test]
fn an_observed_loss_is_the_loss_and_shows_the_stream_after_every_block() {
    for gpu in device::all() {
        for checkpoint_activations in [false, true] {
            let config = LlamaConfig { layers: 3, checkpoint_activations, ..config() };
            let (model, params) = Llama::init(gpu, config, 3).expect("a model");
            let (inputs, targets) = batch(gpu, 0).expect("a batch");
            let tape = Tape::new(&params);
            let mut seen = Vec::new();
            let observe = |x: &Tensor| {
                seen.push(x.clone());
                Ok(())
            };
            let observed = model.observed_loss(&tape, &inputs, &targets, SEQ, observe).expect("a loss");
            let plain = model.loss(&tape, &inputs, &targets, SEQ).expect("a loss");
            assert_eq!(observed.value().item().expect("a number"), plain.value().item().expect("a number"));
            assert_eq!(seen.len(), 3);
            // The last block is followed by the final norm, whose output has the direction of the residual stream.
            let norm = params.id("model.norm.weight").expect("a norm");
            let last = tape
                .constant(seen[2].clone())
                .rms_norm(&tape.param(norm).expect("a parameter"), model.config().norm_eps)
                .expect("a norm");
            let hidden = model.hidden(&tape, &inputs, SEQ).expect("the stream");
            assert_eq!(last.value().to_vec().expect("values"), hidden.value().to_vec().expect("values"));
        }
    }
}

/// Refuses every step, doubles the gradients on the way, and keeps what it saw.
#[derive(Default)]
struct Refusing {
    observed: Option<f32>,
}

impl StepHook for Refusing {
    fn adjust(&mut self, effective: &mut EffectiveGradients) -> Result<()> {
        let doubled = std::mem::take(&mut effective.gradients);
        for (id, gradient) in doubled.iter() {
            effective.gradients.add(id, gradient.scaled(2.0)?)?;
        }
        Ok(())
    }

    fn observe(&mut self, params: &Params, gradients: &Gradients, loss_scale: f32) -> Result<()> {
        assert_eq!(loss_scale, 1.0);
        self.observed = Some(Clip::new(params.gpu(), gradients, f32::INFINITY)?.values().to_vec()?[0]);
        Ok(())
    }

    fn decide(&mut self, output: &StepOutput) -> bool {
        assert_eq!(self.observed, Some(output.grad_norm));
        false
    }
}

#[test]
fn a_hook_sees_changes_and_refuses_a_step() {
    for gpu in device::all() {
        let mut small = Small::new(gpu, config(), "muon").expect("a model");
        small.run(0..1).expect("a step");
        let before = bits(&small.trainer.params).expect("read-back");
        let (inputs, targets) = batch(gpu, 1).expect("a batch");
        let model = small.model.clone();
        let loss = |trainer: &mut Trainer, hook: &mut dyn StepHook| {
            trainer.step_with(1, 1e-2, |tape, _| model.loss(tape, &inputs, &targets, SEQ), hook).expect("a step")
        };
        let refused = loss(&mut small.trainer, &mut Refusing::default());
        assert_eq!(refused.skipped, Some(Skip::Hook));
        assert!(bits(&small.trainer.params).expect("read-back") == before);
        assert_eq!((small.trainer.optimizer.state().steps(), small.trainer.steps), (1, 2));
        let applied = loss(&mut small.trainer, &mut ());
        assert_eq!((applied.skipped, applied.loss), (None, refused.loss));
        assert!((refused.grad_norm / applied.grad_norm - 2.0).abs() < 1e-5, "{refused:?}, {applied:?}");
    }
}

#[test]
fn a_step_that_is_not_finite_names_its_parameter_and_is_not_applied() {
    for gpu in device::all() {
        // A plain matrix and a preconditioned one; only in the last of two micro-batches.
        for name in ["model.layers.0.self_attn.v_proj.weight", "model.layers.1.self_attn.o_proj.weight"] {
            let mut small = Small::new(gpu, config(), "adamw").expect("a model");
            let (inputs, targets) = batch(gpu, 0).expect("a batch");
            let id = small.trainer.params.id(name).expect("a matrix");
            let before = bits(&small.trainer.params).expect("read-back");
            let stepped = small.trainer.step(2, 1e-2, |tape, i| {
                let loss = small.model.loss(tape, &inputs, &targets, SEQ)?;
                let w = tape.param(id)?;
                // A finite gradient whose square overflows.
                if i == 1 { loss.add(&w.mul(&w)?.sum()?.scale(1e30)?) } else { Ok(loss) }
            });
            let error = stepped.expect_err("an infinite norm");
            let text = format!("step 1: the gradient norm is inf (first in {name}), expected a finite number");
            assert_eq!(error.to_string(), text, "{} kernels", gpu.kernels());
            assert!(bits(&small.trainer.params).expect("read-back") == before);
            assert_eq!(small.trainer.optimizer.state().steps(), 0);
        }
    }
}
