//! Properties of every run: reproducible, resumable, constant memory.

use std::collections::HashMap;

use polytape::llama::{Llama, LlamaConfig};
use polytape::safetensors::{Reader, save};
use polytape::{GpuOptions, Precision, Tape, Tensor, Trainer};

use super::small::{SEQ, Small, batch, bits, config, optimizer, precondition};
use crate::device;

#[test]
fn recomputed_activations_give_the_same_bits() {
    for gpu in device::all() {
        for precision in Precision::ALL {
            let run = |checkpoint_activations| {
                let config = LlamaConfig { checkpoint_activations, ..config() };
                Small::at(precision, gpu, config, false).and_then(|mut small| small.run(0..3)).expect("three steps")
            };
            assert!(run(true) == run(false), "{precision}, {} kernels", gpu.kernels());
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_bits() {
    for gpu in device::all() {
        for muon in [false, true] {
            let run = || Small::new(gpu, config(), muon).and_then(|mut small| small.run(0..3)).expect("three steps");
            assert!(run() == run(), "{} kernels, Muon: {muon}", gpu.kernels());
        }
    }
}

#[test]
fn a_model_learns() {
    let gpu = device::default();
    let mut small = Small::new(gpu, config(), true).expect("a model");
    let mut losses = (0..40).map(|step| small.step(step % 2).and_then(|outcome| outcome.read()).expect("a step").0);
    let (first, last) = (losses.next().expect("a loss"), losses.last().expect("a loss"));
    assert!((first - 50f32.ln()).abs() < 1.0, "before training all 50 tokens are about as likely: {first}");
    assert!(last < 0.5 * first, "from {first} to {last}");
}

#[test]
fn memory_does_not_grow_with_the_steps() {
    // A separate device, because other tests use the shared ones concurrently.
    let gpu = device::open(&GpuOptions::default()).expect("an adapter");
    let mut small = Small::new(&gpu, LlamaConfig { layers: 1, ..config() }, false).expect("a model");
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
        let lower = [(false, Precision::F16), (true, Precision::F16x3)];
        for (muon, precision) in [(false, Precision::F32), (true, Precision::F32)].into_iter().chain(lower) {
            let mut small = Small::at(precision, gpu, config(), muon).expect("a model");
            small.run(0..2).expect("two steps");
            let trainer = &small.trainer;
            let loss_scale = trainer.loss_scale.clone();
            let mut tensors: Vec<(String, Tensor)> =
                trainer.params.iter().map(|(_, param)| (param.name.clone(), param.tensor.clone())).collect();
            tensors.extend(trainer.optimizer.state(&trainer.params));
            let metadata = HashMap::from([("steps".to_string(), trainer.optimizer.steps().to_string())]);
            save(&path, &tensors, metadata).expect("a file");
            let expected = small.run(2..4).expect("two more steps");

            let file = Reader::open(&path).expect("a checkpoint");
            let (model, mut params) =
                Llama::load(gpu, config(), |name, shape| file.tensor_of(gpu, name, shape)).expect("a model");
            // Attached as in a new run, so that the order of the parameters, and of the reductions over them, is the same.
            let preconditioner = Some(precondition(&mut params, 2).expect("PC layers"));
            let extra: Vec<_> = params.iter().filter(|(_, param)| param.name.contains(".pc_")).map(|(id, _)| id).collect();
            for id in extra {
                let param = params.get(id).clone();
                params.set(id, file.tensor_of(gpu, &param.name, param.tensor.shape()).expect("a tensor")).expect("its shape");
            }
            let mut optimizer = optimizer(muon);
            optimizer.load_state(&params, 2, &mut |name| file.tensor(gpu, name)).expect("a state");
            // Not Trainer::new: u and v come from the file, without power iteration.
            let trainer = Trainer { params, preconditioner, optimizer, max_grad_norm: 1.0, precision, loss_scale };
            let mut resumed = Small { model, trainer };
            let context = format!("{precision}, {} kernels, Muon: {muon}", gpu.kernels());
            assert!(resumed.run(2..4).expect("two more steps") == expected, "{context}");
            assert_eq!(resumed.trainer.loss_scale, small.trainer.loss_scale, "{context}");
        }
    }
}

#[test]
fn an_evaluation_records_nothing_and_changes_nothing() {
    for gpu in device::all() {
        let small = Small::new(gpu, config(), false).expect("a model");
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
            let last = tape.constant(seen[2].clone()).rms_norm(&tape.param(norm), model.config().norm_eps).expect("a norm");
            let hidden = model.hidden(&tape, &inputs, SEQ).expect("the stream");
            assert_eq!(last.value().to_vec().expect("values"), hidden.value().to_vec().expect("values"));
        }
    }
}

#[test]
fn a_measured_step_that_is_dropped_changes_nothing() {
    let gpu = device::default();
    let mut small = Small::new(gpu, config(), true).expect("a model");
    small.run(0..1).expect("a step");
    let before = bits(&small.trainer.params).expect("read-back");
    let (inputs, targets) = batch(gpu, 1).expect("a batch");
    let model = small.model.clone();
    let measured = small.trainer.measure(1, |tape, _| model.loss(tape, &inputs, &targets, SEQ)).expect("gradients");
    let (loss, norm) = measured.outcome.read().expect("numbers");
    assert!(loss.is_finite() && norm > 0.0);
    drop(measured);
    assert!(bits(&small.trainer.params).expect("read-back") == before);
    assert_eq!(small.trainer.optimizer.steps(), 1);
}

#[test]
fn a_gradient_that_is_not_finite_is_found_by_its_parameter() {
    for gpu in device::all() {
        // A plain matrix and a preconditioned one; only in the last of two micro-batches.
        for name in ["model.layers.0.self_attn.v_proj.weight", "model.layers.1.self_attn.o_proj.weight"] {
            let small = Small::new(gpu, config(), false).expect("a model");
            let (inputs, targets) = batch(gpu, 0).expect("a batch");
            let id = small.trainer.params.id(name).expect("a matrix");
            let measured = small.trainer.measure(2, |tape, i| {
                let loss = small.model.loss(tape, &inputs, &targets, SEQ)?;
                let w = tape.param(id);
                // A finite gradient whose square overflows.
                if i == 1 { loss.add(&w.mul(&w)?.sum()?.scale(1e30)?) } else { Ok(loss) }
            });
            let outcome = measured.expect("gradients").outcome;
            let (loss, norm) = outcome.read().expect("numbers");
            assert!(loss.is_finite() && !norm.is_finite(), "{name}: {loss}, {norm}");
            assert_eq!(outcome.first_non_finite().expect("read-back"), Some(id), "{name}, {} kernels", gpu.kernels());
        }
    }
}
