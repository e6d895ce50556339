//! Matrices of one shape are updated together: each gets the bits that it gets alone.

use polytape::optim::Optimizer;
use polytape::spectral::{PcConfig, Preconditioner};
use polytape::{Gpu, Gradients, Params, Result, Role, Tensor};

use super::Rule;
use crate::device;
use crate::reference::newton_schulz::Coefficients;
use crate::reference::optimizer::LrScale;

/// Tall, wide, and of a size without whole vectors of moments.
const SHAPES: [([usize; 2], usize); 3] = [([128, 64], 3), ([64, 192], 4), ([40, 24], 2)];

fn rules() -> [Rule; 2] {
    let muon = Rule::new(Some((Coefficients::Simple, LrScale::Moonlight)));
    [muon, Rule { row_moments: true, ..muon }]
}

fn wanted(is_wanted: impl Fn(usize) -> bool) -> impl Iterator<Item = (usize, [usize; 2])> {
    let all = SHAPES.into_iter().flat_map(|(shape, count)| std::iter::repeat_n(shape, count));
    all.enumerate().filter(move |(number, _)| is_wanted(*number))
}

/// Three steps on some of the matrices; every weight and gradient depends on the matrix's number and the step alone. After the first, a
/// snapshot of parameters and state is taken, and after the second the state is loaded anew, so that nothing lies where it lay.
fn train(gpu: &Gpu, rule: Rule, is_wanted: impl Fn(usize) -> bool + Copy) -> Result<Vec<(String, Vec<u32>)>> {
    let mut params = Params::new(gpu);
    for (number, shape) in wanted(is_wanted) {
        params.add(format!("{number}"), Role::Matrix, Tensor::normal(gpu, &shape, 0.1, number as u64)?)?;
    }
    let mut optimizer = rule.optimizer();
    let mut snapshots = Vec::new();
    for step in 0..3u64 {
        let mut gradients = Gradients::new();
        for ((number, shape), (id, _)) in wanted(is_wanted).zip(params.iter()) {
            gradients.add(id, Tensor::normal(gpu, &shape, 1.0, 100 * (1 + step) + number as u64)?)?;
        }
        let clip = polytape::optim::Clip::new(gpu, &Gradients::new(), f32::INFINITY)?;
        optimizer.step(&mut params, gradients, &clip, 0.02)?;
        if step == 0 {
            snapshots.push((params.clone(), optimizer.state_tensors(&params)?, bits(&params, &*optimizer)?));
        }
        if step == 1 {
            let saved: Vec<(String, Tensor)> = optimizer.state_tensors(&params)?;
            let mut again = rule.optimizer();
            again.load_state(&params, 2, &mut |name| {
                saved.iter().find(|(other, _)| other == name).expect("a tensor of the state").1.duplicate()
            })?;
            optimizer = again;
        }
    }
    let result = bits(&params, &*optimizer)?;
    for (params, state, then) in snapshots {
        let kept = params.iter().map(|(_, param)| (param.name.clone(), param.tensor.clone())).chain(state);
        let now: Vec<_> = kept.map(|(name, tensor)| Ok((name, bits_of(&tensor)?))).collect::<Result<_>>()?;
        assert_eq!(now, then, "{rule:?}: a snapshot has changed");
    }
    Ok(result)
}

fn bits_of(tensor: &Tensor) -> Result<Vec<u32>> {
    Ok(tensor.to_vec()?.into_iter().map(f32::to_bits).collect())
}

fn bits(params: &Params, optimizer: &dyn Optimizer) -> Result<Vec<(String, Vec<u32>)>> {
    let tensors = params.iter().map(|(_, param)| (param.name.clone(), param.tensor.clone()));
    tensors.chain(optimizer.state_tensors(params)?).map(|(name, tensor)| Ok((name, bits_of(&tensor)?))).collect()
}

#[test]
fn a_matrix_of_many_gets_the_bits_that_it_gets_alone() {
    for gpu in device::all() {
        for rule in rules() {
            let mut together = train(gpu, rule, |_| true).expect("three steps");
            let count = wanted(|_| true).count();
            let alone = |own| train(gpu, rule, move |number| number == own).expect("three steps");
            let mut alone: Vec<_> = (0..count).flat_map(alone).collect();
            together.sort();
            alone.sort();
            for ((name, bits), (other, expected)) in together.iter().zip(&alone) {
                assert_eq!(name, other);
                assert!(bits == expected, "{name} with {} kernels, {rule:?}: other bits than alone", gpu.kernels());
            }
        }
    }
}

#[test]
fn preconditioned_matrices_are_trained_as_stacks_of_their_own() {
    for gpu in device::all() {
        for rule in rules() {
            let run = |all: bool| -> Result<Vec<Vec<f32>>> {
                let mut params = Params::new(gpu);
                let mut targets = Vec::new();
                for number in (0..5).filter(|number| all || *number == 3) {
                    let weight = Tensor::normal(gpu, &[64, 128], 0.1, number)?;
                    let id = params.add(format!("{number}.weight"), Role::Matrix, weight)?;
                    if number != 2 {
                        targets.push((id, 1));
                    }
                    let shape = [64, 128];
                    for (name, length, seed) in [("pc_u", shape[0], 50), ("pc_v", shape[1], 60)] {
                        params.add(
                            format!("{number}.{name}"),
                            Role::State,
                            Tensor::normal(gpu, &[length], 1.0, seed + number)?,
                        )?;
                    }
                }
                let pc = Preconditioner::attach(&mut params, PcConfig::default(), &targets, 1)?;
                pc.refresh(&mut params)?;
                let mut optimizer = rule.optimizer();
                for step in 1..3u64 {
                    let effective = pc.effective(&params)?;
                    let mut gradients = Gradients::new();
                    for (id, param) in params.iter().filter(|(_, param)| param.role == Role::Matrix) {
                        let number: u64 = param.name.split('.').next().and_then(|number| number.parse().ok()).expect("a number");
                        gradients.add(id, Tensor::normal(gpu, &[64, 128], 1.0, 100 * step + number)?)?;
                    }
                    let gradients = pc.backward(&params, &effective, gradients)?;
                    let clip = polytape::optim::Clip::new(gpu, &Gradients::new(), f32::INFINITY)?;
                    optimizer.step(&mut params, gradients, &clip, 0.02)?;
                    pc.refresh(&mut params)?;
                }
                let of_three = params.iter().filter(|(_, param)| param.name.starts_with('3'));
                of_three.map(|(_, param)| param.tensor.to_vec()).collect()
            };
            assert_eq!(run(true).expect("five"), run(false).expect("one"), "{} kernels, {rule:?}", gpu.kernels());
        }
    }
}
