//! Properties of the tape, independent of operations: gradient accumulation, checkpoints, errors, lifetimes of buffers.

use std::rc::Rc;

use polytape::{AttentionShape, Error, Gpu, Gradients, ParamId, Params, Result, Role, Tape, Tensor, Var};

use crate::device;

fn vector(gpu: &Gpu, values: &[f32]) -> Result<Tensor> {
    Tensor::from_slice(gpu, values, &[values.len()])
}

/// One parameter `w` with these values.
fn one_parameter(gpu: &Gpu, values: &[f32]) -> Result<(Params, ParamId)> {
    let mut params = Params::new(gpu);
    let w = params.add("w", Role::Vector, vector(gpu, values)?)?;
    Ok((params, w))
}

fn values(tensor: Option<&Tensor>) -> Result<Vec<f32>> {
    tensor.expect("a gradient").to_vec()
}

/// The error text of a call that must fail.
#[track_caller]
fn refusal<T>(result: Result<T>) -> String {
    match result {
        Ok(_) => panic!("an error expected"),
        Err(error) => error.to_string(),
    }
}

/// The gradient of the sum of `f` at `x`.
fn gradient_at(x: &[f32], f: impl for<'t> Fn(&Var<'t>) -> Result<Var<'t>>) -> Result<Option<Vec<f32>>> {
    let params = Params::new(device::default());
    let tape = Tape::new(&params);
    let x = tape.leaf(vector(device::default(), x)?);
    let leaves = tape.backward(&f(&x)?.sum()?, &mut Gradients::new())?;
    leaves.get(&x).map(Tensor::to_vec).transpose()
}

#[test]
fn every_use_of_a_variable_adds_to_its_gradient() -> Result<()> {
    let x = [1.0, -2.0, 3.0];
    assert_eq!(gradient_at(&x, |x| x.mul(x))?, Some(vec![2.0, -4.0, 6.0]), "x·x");
    assert_eq!(gradient_at(&x, |x| x.add(x))?, Some(vec![2.0; 3]), "x + x");
    assert_eq!(gradient_at(&x, |x| x.sub(x))?, Some(vec![0.0; 3]), "x - x");
    assert_eq!(gradient_at(&x, |x| x.mul(x)?.add(x)?.add(&x.scale(5.0)?))?, Some(vec![8.0, 2.0, 12.0]), "x·x + x + 5·x");
    Ok(())
}

/// A constant of this shape on the tape of another variable.
fn constant<'t>(like: &Var<'t>, shape: &[usize]) -> Result<Var<'t>> {
    Ok(like.tape().constant(Tensor::normal(like.value().gpu(), shape, 1.0, 5)?))
}

/// The backward of these operations writes the gradients of its inputs to one buffer, which no kernel may both read and write.
#[test]
fn inputs_that_meet_in_one_variable_give_it_the_sum_of_their_gradients() -> Result<()> {
    type Operation = for<'t> fn([&Var<'t>; 3]) -> Result<Var<'t>>;
    const SHAPE: AttentionShape = AttentionShape { batch: 1, heads: 3, kv_heads: 3, head_dim: 4 };
    let operations: [(&str, Operation); 4] = [
        ("swiglu", |[x, y, _]| x.swiglu(y)),
        ("attention", |[x, y, z]| x.attention(y, z, SHAPE)),
        ("swiglu of a product", |[x, y, _]| x.matmul_nt(&constant(x, &[12, 12])?)?.swiglu(y)),
        ("swiglu of a norm", |[x, y, _]| x.rms_norm(&constant(x, &[12])?, 1e-5)?.swiglu(y)),
    ];
    for gpu in device::all() {
        for (name, operation) in operations {
            let params = Params::new(gpu);
            // The sum of the gradients of as many leaves of one value.
            let gradient = |count: usize| -> Result<Vec<f32>> {
                let tape = Tape::new(&params);
                let value = Tensor::normal(gpu, &[3, 12], 1.0, 3)?;
                let leaves: Vec<Var<'_>> = (0..count).map(|_| tape.leaf(value.clone())).collect();
                let y = operation([0, 1, 2].map(|input| &leaves[input % count]))?;
                let dy = Tensor::normal(gpu, y.shape(), 1.0, 4)?;
                let found = tape.backward_from(&[(&y, dy)], &mut Gradients::new())?;
                let mut sum = vec![0.0f32; value.len()];
                for gradient in leaves.iter().filter_map(|leaf| found.get(leaf)) {
                    sum.iter_mut().zip(gradient.to_vec()?).for_each(|(sum, term)| *sum += term);
                }
                Ok(sum)
            };
            let (one, several) = (gradient(1)?, gradient(3)?);
            let is_close = one.iter().zip(&several).all(|(a, b)| (a - b).abs() <= 1e-5 * (1.0 + b.abs()));
            assert!(is_close, "{name} with {} kernels: {one:?}, {several:?} expected", gpu.kernels());
        }
    }
    Ok(())
}

/// Two gradients in one buffer: those of a SwiGLU.
fn neighbours(gpu: &Gpu, x: &[f32]) -> Result<[Tensor; 2]> {
    let params = Params::new(gpu);
    let tape = Tape::new(&params);
    let [gate, up] = [tape.leaf(vector(gpu, x)?), tape.leaf(vector(gpu, x)?)];
    let leaves = tape.backward(&gate.swiglu(&up)?.sum()?, &mut Gradients::new())?;
    Ok([&gate, &up].map(|leaf| leaves.get(leaf).expect("a gradient").clone()))
}

#[test]
fn a_gradient_with_neighbours_in_its_buffer_is_added_to_in_place() -> Result<()> {
    let gpu = device::open(&Default::default())?;
    let (_, w) = one_parameter(&gpu, &[0.0; 1000])?;
    let ([a, _neighbour], [b, _other]) = (neighbours(&gpu, &[1.0; 1000])?, neighbours(&gpu, &[2.0; 1000])?);
    let want: Vec<f32> = a.to_vec()?.iter().zip(b.to_vec()?).map(|(a, b)| a + b).collect();
    let mut gradients = Gradients::new();
    gradients.add(w, a)?;
    gpu.reset_peak();
    let before = gpu.memory().live;
    gradients.add(w, b)?;
    assert_eq!(gpu.memory().peak, before, "no buffer was made");
    assert_eq!(values(gradients.get(w))?, want);
    Ok(())
}

#[test]
fn nothing_flows_through_a_stopped_gradient() -> Result<()> {
    let x = [1.0, -2.0, 3.0];
    assert_eq!(gradient_at(&x, |x| x.mul(&x.stop_gradient()))?, Some(x.to_vec()));
    assert_eq!(gradient_at(&x, |x| Ok(x.stop_gradient()))?, None);
    Ok(())
}

#[test]
fn state_among_the_parameters_gets_no_gradient() -> Result<()> {
    let (mut params, w) = one_parameter(device::default(), &[2.0, 3.0])?;
    let state = params.add("state", Role::State, vector(device::default(), &[5.0, 7.0])?)?;
    let tape = Tape::new(&params);
    let mut gradients = Gradients::new();
    tape.backward(&tape.param(w)?.mul(&tape.param(state)?)?.sum()?, &mut gradients)?;
    assert_eq!(values(gradients.get(w))?, [5.0, 7.0]);
    assert!(gradients.get(state).is_none());
    Ok(())
}

#[test]
fn an_inference_tape_and_constants_record_nothing() -> Result<()> {
    let (params, w) = one_parameter(device::default(), &[1.0, 2.0])?;
    let tape = Tape::inference(&params);
    let x = tape.leaf(vector(device::default(), &[3.0, 4.0])?);
    let y = tape.checkpoint(&[&x], move |tape, x| x[0].mul(&tape.param(w)?))?;
    let loss = y.add(&x)?.sum()?;
    assert_eq!(loss.value().item()?, 18.0);
    assert!(tape.is_empty() && !loss.wants_gradient());

    let tape = Tape::new(&params);
    let constant = tape.constant(vector(device::default(), &[3.0, 4.0])?);
    assert!(!constant.mul(&constant)?.wants_gradient() && tape.is_empty());
    assert!(tape.param(w)?.mul(&constant)?.wants_gradient() && tape.len() == 2);
    Ok(())
}

#[test]
fn gradients_of_parameters_accumulate_over_tapes() -> Result<()> {
    let (params, w) = one_parameter(device::default(), &[1.0, 2.0])?;
    let mut gradients = Gradients::new();
    assert!(gradients.get(w).is_none());
    for (x, total) in [([3.0, 4.0], [6.0, 8.0]), ([10.0, -20.0], [26.0, -32.0])] {
        let tape = Tape::new(&params);
        let x = tape.constant(vector(device::default(), &x)?);
        // Read twice: two nodes, one gradient.
        let loss = tape.param(w)?.mul(&x)?.add(&x.mul(&tape.param(w)?)?)?.sum()?;
        tape.backward(&loss, &mut gradients)?;
        assert_eq!(values(gradients.get(w))?, total);
    }
    assert_eq!(gradients.iter().count(), 1);
    Ok(())
}

#[test]
fn checkpoints_nest_and_their_parameters_get_their_gradient_once() -> Result<()> {
    for gpu in device::all() {
        let (params, w) = one_parameter(gpu, &[5.0, 7.0])?;
        let tape = Tape::new(&params);
        let x = tape.leaf(vector(gpu, &[2.0, -3.0])?);
        // x·(x·w) inside, + w outside of the inner checkpoint.
        let y = tape.checkpoint(&[&x], move |tape, x| {
            let inner = tape.checkpoint(&[&x[0]], move |tape, x| x[0].mul(&tape.param(w)?))?;
            x[0].mul(&inner)?.add(&tape.param(w)?)
        })?;
        assert_eq!(tape.len(), 2, "a leaf and a checkpoint");
        assert_eq!(y.value().to_vec()?, [25.0, 70.0]);
        let mut gradients = Gradients::new();
        let leaves = tape.backward(&y.sum()?, &mut gradients)?;
        assert_eq!(values(leaves.get(&x))?, [20.0, -42.0], "2·x·w");
        assert_eq!(values(gradients.get(w))?, [5.0, 10.0], "x·x + 1");
    }
    Ok(())
}

#[test]
fn a_checkpoint_of_constants_still_serves_its_parameters() -> Result<()> {
    let (params, w) = one_parameter(device::default(), &[5.0, 7.0])?;
    let tape = Tape::new(&params);
    let x = tape.constant(vector(device::default(), &[2.0, -3.0])?);
    let y = tape.checkpoint(&[&x], move |tape, x| x[0].mul(&tape.param(w)?))?;
    let mut gradients = Gradients::new();
    let leaves = tape.backward(&y.sum()?, &mut gradients)?;
    assert!(leaves.get(&x).is_none());
    assert_eq!(values(gradients.get(w))?, [2.0, -3.0]);
    Ok(())
}

#[test]
fn a_clone_of_parameters_is_a_snapshot() -> Result<()> {
    use polytape::optim::{AdamW, Clip, Optimizer};
    let gpu = device::default();
    let (mut params, w) = one_parameter(gpu, &[1.0, 2.0])?;
    let snapshot = params.clone();
    let mut gradients = Gradients::new();
    gradients.add(w, vector(gpu, &[1.0, -1.0])?)?;
    let clip = Clip::new(gpu, &gradients, f32::INFINITY)?;
    AdamW::new(Default::default()).step(&mut params, gradients, &clip, 0.5)?;
    assert_ne!(params.get(w).expect("a parameter").tensor.to_vec()?, [1.0, 2.0], "a step changes the parameters");
    assert_eq!(snapshot.get(w)?.tensor.to_vec()?, [1.0, 2.0], "and not the snapshot");

    let text = refusal(params.set(w, vector(gpu, &[1.0; 3])?));
    assert_eq!(text, "set parameter: `w` has shape [2], found [3]");
    assert_eq!(refusal(params.add("w", Role::Vector, vector(gpu, &[1.0])?)), "parameter `w` exists already");
    Ok(())
}

#[test]
fn a_tape_is_walked_once() -> Result<()> {
    let params = Params::new(device::default());
    let tape = Tape::new(&params);
    let x = tape.leaf(vector(device::default(), &[1.0, 2.0])?);
    let loss = x.mul(&x)?.sum()?;
    tape.backward(&loss, &mut Gradients::new())?;
    let walked = "backward: it has already run on this tape";
    assert_eq!(refusal(tape.backward(&loss, &mut Gradients::new())), walked);
    // Nor does recording more on variables from before the walk bring it back.
    let more = x.mul(&x)?.add(&x)?.sum()?;
    assert_eq!(refusal(tape.backward(&more, &mut Gradients::new())), walked);
    Ok(())
}

#[test]
fn variables_of_different_tapes_do_not_mix() -> Result<()> {
    let params = Params::new(device::default());
    let (one, other) = (Tape::new(&params), Tape::new(&params));
    let x = one.leaf(vector(device::default(), &[1.0])?);
    let y = other.leaf(vector(device::default(), &[2.0])?);
    assert_eq!(refusal(x.mul(&y)), "mul: its inputs are variables of different tapes");
    let text = refusal(one.checkpoint(&[&x, &y], |_, inputs| inputs[0].mul(&inputs[1])));
    assert_eq!(text, "checkpoint: its inputs are variables of different tapes");
    assert_eq!(refusal(one.backward(&y, &mut Gradients::new())), "backward: a variable of another tape");
    // A failed operation leaves the tape unchanged.
    let leaves = one.backward(&x, &mut Gradients::new())?;
    assert_eq!(values(leaves.get(&x))?, [1.0]);
    assert!(leaves.get(&y).is_none(), "another tape's leaf in the same place");
    Ok(())
}

#[test]
fn a_walk_starts_at_a_scalar_or_from_a_gradient_that_fits() -> Result<()> {
    let params = Params::new(device::default());
    let tape = Tape::new(&params);
    let x = tape.leaf(Tensor::zeros(device::default(), &[2, 3])?);
    let text = refusal(tape.backward(&x, &mut Gradients::new()));
    assert_eq!(text, "backward: shape [2, 3]: a scalar expected; backward_from takes any shape");
    let dy = Tensor::zeros(device::default(), &[3, 2])?;
    let text = refusal(tape.backward_from(&[(&x, dy)], &mut Gradients::new()));
    assert_eq!(text, "backward_from: a variable of shape [2, 3] and a gradient of shape [3, 2]");
    Ok(())
}

#[test]
fn an_error_in_a_backward_comes_out_of_the_walk() -> Result<()> {
    let params = Params::new(device::default());
    let tape = Tape::new(&params);
    let x = tape.leaf(vector(device::default(), &[1.0])?);
    let fails = |_: Tensor, _: [bool; 1]| Err(Error::Value("no gradient today".into()));
    let y = tape.record("custom", x.value().clone(), [&x], fails)?;
    assert_eq!(refusal(tape.backward(&y, &mut Gradients::new())), "no gradient today");
    Ok(())
}

#[test]
fn a_gradient_of_another_shape_or_number_than_the_inputs_is_refused_by_name() -> Result<()> {
    let params = Params::new(device::default());
    let custom = |gradients: fn(Tensor) -> Vec<Option<Tensor>>| -> Result<(String, Vec<Vec<usize>>)> {
        let tape = Tape::new(&params);
        let x = tape.leaf(vector(device::default(), &[1.0, 2.0])?);
        let y = tape.record_many("custom", x.value().clone(), &[&x], move |dy, _| Ok(gradients(dy)))?.sum()?;
        match tape.backward(&y, &mut Gradients::new()) {
            Err(Error::Shape { op, shapes, problem }) => Ok((format!("{op}: {problem}"), shapes)),
            other => panic!("an error of shapes expected, found {:?}", other.map(drop)),
        }
    };
    let (reshaped, shapes) = custom(|dy| vec![Some(dy.reshape(&[2, 1]).expect("two values"))])?;
    assert_eq!(reshaped, "custom: its gradient for input 0 has shape [2, 1], [2] expected");
    assert_eq!(shapes, [vec![2, 1], vec![2]]);
    let (two, shapes) = custom(|dy| vec![Some(dy), None])?;
    assert_eq!(two, "custom: its backward returned 2 gradients, one for each of 1 inputs expected");
    assert_eq!(shapes, [[2]]);
    Ok(())
}

#[test]
fn an_id_of_another_set_is_refused() -> Result<()> {
    let mut params = Params::new(device::default());
    let id = params.add("w", Role::Vector, vector(device::default(), &[1.0])?)?;
    let mut none = Params::new(device::default());
    let text = "parameter 0 of a set of 0: the id of another set";
    assert_eq!(refusal(none.get(id)), text);
    assert_eq!(refusal(Tape::new(&none).param(id)), text);
    assert_eq!(refusal(none.make_mut(id).cloned()), text);
    assert_eq!(refusal(none.set(id, vector(device::default(), &[1.0])?)), text);
    Ok(())
}

#[test]
fn a_duplicate_name_is_refused_and_changes_nothing() -> Result<()> {
    let mut params = Params::new(device::default());
    let first = params.add("w", Role::Vector, vector(device::default(), &[1.0])?)?;
    let text = refusal(params.add("w", Role::Vector, vector(device::default(), &[2.0])?));
    assert_eq!(text, "parameter `w` exists already");
    assert_eq!((params.len(), params.id("w")?), (1, first));
    Ok(())
}

#[test]
fn what_a_closure_captured_is_dropped_as_the_walk_passes_it() -> Result<()> {
    let params = Params::new(device::default());
    let tape = Tape::new(&params);
    let x = tape.leaf(vector(device::default(), &[1.0])?);
    let captured = Rc::new(());
    let watch = Rc::downgrade(&captured);
    let seen = watch.clone();
    let first = tape.record("first", x.value().clone(), [&x], move |dy, _| {
        assert_eq!(seen.strong_count(), 0, "the operation after this one still holds its capture");
        Ok([Some(dy)])
    })?;
    let second = tape.record("second", x.value().clone(), [&first], move |dy, _| {
        assert_eq!(Rc::strong_count(&captured), 1);
        Ok([Some(dy)])
    })?;
    assert_eq!(watch.strong_count(), 1);
    tape.backward(&second, &mut Gradients::new())?;
    Ok(())
}

#[test]
fn device_memory_falls_back_after_a_walk() -> Result<()> {
    let gpu = device::open(&Default::default())?;
    let (params, w) = one_parameter(&gpu, &[0.5; 1000])?;
    let before = gpu.memory().live;
    let tape = Tape::new(&params);
    let loss = {
        let squared = tape.param(w)?.mul(&tape.param(w)?)?;
        squared.mul(&squared)?.scale(2.0)?.sum()?
    };
    assert!(gpu.memory().live >= before + 4000, "the second product keeps its factors");
    let mut gradients = Gradients::new();
    tape.backward(&loss, &mut gradients)?;
    assert_eq!(values(gradients.get(w))?, [1.0; 1000], "8·w³");
    drop((loss, gradients));
    assert_eq!(gpu.memory().live, before, "the tape is still here and keeps nothing");
    assert!(tape.is_empty());
    Ok(())
}
