//! Preconditioners and their parameters: attaching, merging, and pulling accumulated gradients back once per step.

use polytape::llama::{Llama, LlamaConfig};
use polytape::spectral::{PcConfig, Preconditioner, level_coefficients};
use polytape::{Error, Gpu, Gradients, Indices, ParamId, Params, Result, Role, Tape, Tensor};

use super::Layer;
use crate::check::upload;
use crate::device;
use crate::reference::Array;
use crate::reference::array::seeded;
use crate::reference::pc::Pc;
use crate::tolerance::{assert_close, pc, reduction};

/// A small Llama with preconditioned o, gate and down matrices, and q per head.
fn model(gpu: &Gpu) -> Result<(Llama, Params, Preconditioner)> {
    let config = LlamaConfig { kv_heads: 2, intermediate_size: 40, max_seq_len: 16, ..LlamaConfig::new(32, 2, 4, 50) };
    let (model, mut params) = Llama::init(gpu, config, 7)?;
    let mut targets: Vec<(ParamId, usize)> = Vec::new();
    for layer in 0..2 {
        for (name, heads) in [("self_attn.o_proj", 1), ("self_attn.q_proj", 4), ("mlp.gate_proj", 1), ("mlp.down_proj", 1)] {
            targets.push((params.id(&format!("model.layers.{layer}.{name}.weight"))?, heads));
        }
    }
    let pc = Preconditioner::attach(&mut params, PcConfig::default(), &targets, 11)?;
    pc.refresh(&mut params)?;
    Ok((model, params, pc))
}

fn names(params: &Params) -> Vec<String> {
    params.iter().map(|(_, param)| param.name.clone()).collect()
}

#[test]
fn merged_parameters_are_those_of_a_plain_llama_with_the_same_logits() {
    for gpu in device::all() {
        let (model, params, pc) = model(gpu).expect("a model");
        let merged = pc.merge(&params).expect("merged parameters");
        let (plain, of_plain) = Llama::init(gpu, model.config().clone(), 1).expect("a plain model");
        assert_eq!(names(&merged), names(&of_plain));
        for (id, param) in merged.iter() {
            let plain = of_plain.get(id).expect("a parameter");
            assert_eq!((param.role, param.tensor.shape()), (plain.role, plain.tensor.shape()));
        }
        let tokens = Indices::from_slice(gpu, &[3, 1, 4, 1, 5, 9, 2, 6]).expect("tokens");
        let logits = |model: &Llama, params: &Params| {
            let tape = Tape::inference(params);
            model.logits(&tape, &tokens, 8).and_then(|logits| logits.value().to_vec()).expect("logits")
        };
        let effective = pc.effective(&params).expect("effective weights").params;
        assert_eq!(logits(&plain, &merged), logits(&model, &effective));
        assert_ne!(logits(&model, &params), logits(&model, &effective), "the raw parameters are another model");
    }
}

#[test]
fn gradients_sent_back_once_are_the_sum_of_those_sent_back_per_micro_batch() {
    for gpu in device::all() {
        for level in [0, 2, 4] {
            let layer = Layer::random(2401, [48, 80], 2, Pc::of_level(level));
            let device = layer.on(gpu).expect("a layer");
            let mut rng = seeded(2402);
            let batches: Vec<Array> = (0..3).map(|_| Array::random(&[48, 80], &mut rng)).collect();
            let hoisted = || -> Result<(Vec<f32>, Vec<f32>)> {
                let effective = device.preconditioner.effective(&device.params)?;
                let mut gradients = Gradients::new();
                for batch in &batches {
                    gradients.add(device.weight, upload(gpu, batch)?)?;
                }
                let gradients = device.preconditioner.backward(&device.params, &effective, gradients)?;
                let of = |id: ParamId| gradients.get(id).expect("a gradient").to_vec();
                Ok((of(device.weight)?, of(device.params.id("layer.pc_gamma")?)?))
            };
            let (dw, dgamma) = hoisted().expect("gradients");
            let (mut dw_sum, mut dgamma_sum) = (Array::zeros(&[48, 80]), Array::zeros(&[2]));
            for batch in &batches {
                let got = device.run(batch).expect("gradients");
                dw_sum = dw_sum.plus(&Array::from_f32(&[48, 80], &got.dw));
                dgamma_sum = dgamma_sum.plus(&Array::from_f32(&[2], &got.dgamma.expect("γ is trained")));
            }
            // Both sides have errors.
            let tolerance = pc(&layer.pc.coefficients, 24, 80).times(2.0);
            assert_close("dW", &dw, &dw_sum, tolerance);
            // dγ cancels: the tolerance is relative to a sum of its terms with random signs.
            let scale = batches[0].norm() * layer.forward().norm() / (24.0 * 80.0f64).sqrt();
            for (head, got) in dgamma.iter().enumerate() {
                let error = (f64::from(*got) - dgamma_sum.data[head]).abs();
                assert!(error < tolerance.relative * scale.max(dgamma_sum.data[head].abs()), "dγ of head {head}: off by {error}");
            }
        }
    }
}

#[test]
fn attaching_adds_what_is_missing_and_keeps_what_is_there() {
    let gpu = device::default();
    let (_, params, _) = model(gpu).expect("a model");
    let added: Vec<String> = names(&params).into_iter().filter(|name| name.contains("pc_")).collect();
    assert_eq!(added.len(), 24);
    for (_, param) in params.iter().filter(|(_, param)| param.name.contains("pc_")) {
        let values = param.tensor.to_vec().expect("read-back");
        if param.name.ends_with("pc_gamma") {
            assert_eq!(param.role, Role::Vector);
            assert!(values.iter().all(|&gamma| gamma == 1.0), "{}", param.name);
        } else {
            assert_eq!(param.role, Role::State);
            let columns = *param.tensor.shape().last().expect("a dimension");
            for vector in values.chunks(columns) {
                assert_close(
                    "‖vector‖",
                    &[vector.iter().map(|x| x * x).sum::<f32>().sqrt()],
                    &Array::scalar(1.0),
                    reduction(columns),
                );
            }
        }
    }
    // Attaching again, as on a resume, changes nothing.
    let mut again = params.clone();
    let target = again.id("model.layers.0.self_attn.q_proj.weight").expect("q");
    Preconditioner::attach(&mut again, PcConfig::default(), &[(target, 4)], 99).expect("attached again");
    assert_eq!(names(&again), names(&params));
    let u = again.id("model.layers.0.self_attn.q_proj.pc_u").expect("u");
    assert_eq!(
        again.get(u).expect("a parameter").tensor.to_vec().expect("u"),
        params.get(u).expect("a parameter").tensor.to_vec().expect("u")
    );
}

#[test]
fn the_same_seed_draws_the_same_vectors_and_each_matrix_its_own() {
    let gpu = device::default();
    let draw = |seed| -> Result<[Vec<f32>; 2]> {
        let mut params = Params::new(gpu);
        let first = params.add("a.weight", Role::Matrix, Tensor::zeros(gpu, &[4, 6])?)?;
        let second = params.add("b.weight", Role::Matrix, Tensor::zeros(gpu, &[4, 6])?)?;
        Preconditioner::attach(&mut params, PcConfig::default(), &[(first, 1), (second, 1)], seed)?;
        let [a, b] = ["a.pc_u", "b.pc_u"].map(|name| params.id(name));
        polytape::read_all([&params.get(a?).expect("a parameter").tensor, &params.get(b?).expect("a parameter").tensor])
    };
    let [first, again, other] = [5, 5, 6].map(|seed| draw(seed).expect("vectors"));
    assert_eq!(first, again);
    assert_ne!(first[0], first[1]);
    assert_ne!(first, other);
}

#[test]
fn what_cannot_be_preconditioned_is_refused_by_name() {
    let gpu = device::default();
    let attach = |shape: &[usize], heads: usize, coefficients: &[f32], u: Option<usize>| -> Result<Preconditioner> {
        let mut params = Params::new(gpu);
        let weight = params.add("q.weight", Role::Matrix, Tensor::zeros(gpu, shape)?)?;
        if let Some(length) = u {
            params.add("q.pc_u", Role::State, Tensor::zeros(gpu, &[length])?)?;
        }
        let config = PcConfig { coefficients: coefficients.to_vec(), ..Default::default() };
        Preconditioner::attach(&mut params, config, &[(weight, heads)], 0)
    };
    let text = |result: Result<Preconditioner>| result.map(|_| ()).expect_err("an error").to_string();
    assert_eq!(text(attach(&[6, 4], 4, &[1.0], None)), "pc: `q.weight` [6, 4]: 4 blocks of rows expected");
    assert_eq!(text(attach(&[6, 4], 0, &[1.0], None)), "pc: `q.weight` [6, 4]: 0 blocks of rows expected");
    assert_eq!(text(attach(&[6], 1, &[1.0], None)), "pc: shape [6]: 2 dimensions expected");
    assert_eq!(text(attach(&[6, 4], 1, &[1.0], Some(5))), "pc: `q.pc_u` has shape [5], [6] expected");
    assert_eq!(text(attach(&[6, 4], 1, &[], None)), "PC layer: no coefficients, at least one expected");
    assert!(matches!(level_coefficients(5), Err(Error::Value(text)) if text == "PC level 5: 0 to 4 expected"));
}

#[test]
fn a_matrix_without_a_gradient_is_left_out_of_the_backward() {
    let layer = Layer::random(2411, [8, 6], 1, Pc::of_level(2));
    let device = layer.on(device::default()).expect("a layer");
    let effective = device.preconditioner.effective(&device.params).expect("effective weights");
    let gradients = device.preconditioner.backward(&device.params, &effective, Gradients::new()).expect("no gradients");
    assert_eq!(gradients.iter().count(), 0);
}
