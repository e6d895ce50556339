//! Layers of one shape run at once: each gives the bits that it gives alone, wherever its parameters are.

use polytape::optim::{AdamConfig, AdamW, Clip, Optimizer};
use polytape::spectral::{PcConfig, Preconditioner, level_coefficients};
use polytape::{Gpu, GpuOptions, Gradients, ParamId, Params, Result, Role, Tensor};

use crate::device;

/// (shape, heads, how many). Of several stacks; a shape whose vectors do not fill their places; one that stands alone; one whose products
/// have few results and long sums.
const LAYERS: [([usize; 2], usize, usize); 6] =
    [([64, 128], 1, 3), ([128, 64], 1, 2), ([128, 64], 2, 2), ([40, 24], 1, 2), ([64, 64], 1, 1), ([64, 1088], 1, 3)];

type Target = (ParamId, usize);

/// Some of the layers, by their number over all. Every weight and cotangent depends on its number alone.
fn layers(gpu: &Gpu, config: &PcConfig, is_wanted: impl Fn(usize) -> bool) -> Result<(Params, Preconditioner, Gradients)> {
    let mut params = Params::new(gpu);
    let all: Vec<_> = LAYERS.iter().flat_map(|&(shape, heads, count)| std::iter::repeat_n((shape, heads), count)).collect();
    let mut targets: Vec<Target> = Vec::new();
    let mut gradients = Gradients::new();
    // Not in the order of their shapes.
    let order = (0..all.len()).map(|at| at * 5 % all.len());
    for number in order.filter(|&number| is_wanted(number)) {
        let (shape, heads) = all[number];
        let weight = Tensor::normal(gpu, &shape, 0.1, number as u64)?;
        let id = params.add(format!("{number}.weight"), Role::Matrix, weight)?;
        let vector = |length: usize, seed: usize| {
            let shape: &[usize] = if heads == 1 { &[length] } else { &[heads, length] };
            Tensor::normal(gpu, shape, 1.0, (seed * 100 + number) as u64)
        };
        params.add(format!("{number}.pc_u"), Role::State, vector(shape[0] / heads, 1)?)?;
        params.add(format!("{number}.pc_v"), Role::State, vector(shape[1], 2)?)?;
        gradients.add(id, Tensor::normal(gpu, &shape, 1.0, 300 + number as u64)?)?;
        targets.push((id, heads));
    }
    let preconditioner = Preconditioner::attach(&mut params, config.clone(), &targets, 7)?;
    Ok((params, preconditioner, gradients))
}

/// Names and bits of all parameters after a refresh, of the effective weights, and of the gradients.
fn run(gpu: &Gpu, config: &PcConfig, is_wanted: impl Fn(usize) -> bool) -> Result<Vec<(String, Vec<u32>)>> {
    let (mut params, preconditioner, gradients) = layers(gpu, config, is_wanted)?;
    preconditioner.refresh(&mut params)?;
    let effective = preconditioner.effective(&params)?;
    let gradients = preconditioner.backward(&params, &effective, gradients)?;
    let mut results = Vec::new();
    let mut push = |kind: &str, name: &str, tensor: &Tensor| -> Result<()> {
        results.push((format!("{name}, {kind}"), tensor.to_vec()?.iter().map(|value| value.to_bits()).collect()));
        Ok(())
    };
    for (id, param) in params.iter() {
        push("refreshed", &param.name, &param.tensor)?;
        push("effective", &param.name, &effective.params.get(id)?.tensor)?;
        if let Some(gradient) = gradients.get(id) {
            push("gradient", &param.name, gradient)?;
        }
    }
    results.sort();
    Ok(results)
}

fn configs() -> Vec<PcConfig> {
    let level = |level| level_coefficients(level).expect("a level");
    vec![
        PcConfig { power_iterations: 3, ..Default::default() },
        PcConfig { coefficients: level(0), power_iterations: 1, ..Default::default() },
        PcConfig { coefficients: level(2), norm: polytape::spectral::Norm::Frobenius, recover_norm: false, ..Default::default() },
        PcConfig { coefficients: level(3), learnable_gamma: false, gamma_init: 0.75, power_iterations: 0, ..Default::default() },
    ]
}

#[test]
fn a_layer_of_a_stack_gives_the_bits_that_it_gives_alone() {
    let count: usize = LAYERS.iter().map(|(.., count)| count).sum();
    for gpu in device::all() {
        for config in configs() {
            let together = run(gpu, &config, |_| true).expect("all layers");
            let mut alone: Vec<_> =
                (0..count).flat_map(|own| run(gpu, &config, |number| number == own).expect("a layer")).collect();
            alone.sort();
            assert_eq!(together.len(), alone.len());
            for ((name, bits), (other, expected)) in together.iter().zip(&alone) {
                assert_eq!(name, other);
                assert!(bits == expected, "{name} with {} kernels, {config:?}: other bits than alone", gpu.kernels());
            }
            // Any of the layers, as of a rank that owns some of them.
            let some = run(gpu, &config, |number| number % 3 != 1).expect("some layers");
            assert!(some.iter().all(|result| together.binary_search(result).is_ok()), "some of the layers: other bits than all");
        }
    }
}

#[test]
fn gradients_of_some_layers_are_pulled_back_as_those_of_all() {
    for gpu in device::all() {
        let (mut params, preconditioner, all) = layers(gpu, &PcConfig::default(), |_| true).expect("layers");
        preconditioner.refresh(&mut params).expect("a refresh");
        let effective = preconditioner.effective(&params).expect("effective weights");
        let mut some = Gradients::new();
        for (id, gradient) in all.iter().filter(|(id, _)| params.get(*id).expect("a weight").name != "1.weight") {
            some.add(id, gradient.duplicate().expect("a copy")).expect("a gradient");
        }
        let back = |gradients| preconditioner.backward(&params, &effective, gradients).expect("gradients");
        let (all, some) = (back(all), back(some));
        assert_eq!(some.iter().count() + 2, all.iter().count());
        for (id, gradient) in some.iter() {
            let expected = all.get(id).expect("a gradient").to_vec().expect("values");
            assert_eq!(gradient.to_vec().expect("values"), expected, "{}", params.get(id).expect("a parameter").name);
        }
    }
}

#[test]
fn a_snapshot_of_stacked_parameters_keeps_its_values_while_they_are_trained() {
    for gpu in device::all() {
        let (mut params, preconditioner, gradients) = layers(gpu, &PcConfig::default(), |_| true).expect("layers");
        preconditioner.refresh(&mut params).expect("a refresh");
        let values = |params: &Params| params.iter().map(|(_, param)| param.tensor.to_vec().expect("values")).collect::<Vec<_>>();
        let (snapshot, before) = (params.clone(), values(&params));
        let mut adam = AdamW::new(AdamConfig::default());
        let effective = preconditioner.effective(&params).expect("effective weights");
        let gradients = preconditioner.backward(&params, &effective, gradients).expect("gradients");
        let clip = Clip::new(gpu, &gradients, 1.0).expect("a norm");
        adam.step(&mut params, gradients, &clip, 0.1).expect("a step");
        preconditioner.refresh(&mut params).expect("a refresh");
        assert_eq!(values(&snapshot), before, "{} kernels", gpu.kernels());
        let changed = values(&params).iter().zip(&before).filter(|(now, then)| now != then).count();
        assert_eq!(changed, before.len(), "weights, vectors and gains have moved");
    }
}

#[test]
fn the_dispatches_of_a_step_do_not_grow_with_the_number_of_layers() {
    for shared in device::all().iter().filter(|gpu| gpu.kernels() != polytape::gpu::KernelTier::Host) {
        // A device whose dispatches are this test's alone.
        let gpu = &device::open(&GpuOptions { kernels: Some(shared.kernels()), ..Default::default() }).expect("a device");
        let dispatches = |count: usize| -> Result<u64> {
            let mut params = Params::new(gpu);
            let mut targets: Vec<Target> = Vec::new();
            for number in 0..count {
                let weight = Tensor::normal(gpu, &[64, 128], 0.1, number as u64)?;
                targets.push((params.add(format!("{number}.weight"), Role::Matrix, weight)?, 1));
            }
            let preconditioner = Preconditioner::attach(&mut params, PcConfig::default(), &targets, 7)?;
            preconditioner.refresh(&mut params)?;
            let before = gpu.counters().dispatches;
            let effective = preconditioner.effective(&params)?;
            let mut gradients = Gradients::new();
            for (number, (id, _)) in targets.iter().enumerate() {
                gradients.add(*id, Tensor::normal(gpu, &[64, 128], 1.0, number as u64)?)?;
            }
            preconditioner.backward(&params, &effective, gradients)?;
            preconditioner.refresh(&mut params)?;
            Ok(gpu.counters().dispatches - before)
        };
        let [two, nine] = [2, 9].map(|count| dispatches(count).expect("a step"));
        assert_eq!(two, nine, "{} kernels", gpu.kernels());
        let most = if gpu.kernels() == polytape::gpu::KernelTier::Fallback { 48 } else { 20 };
        assert!(two <= most, "{two} dispatches for the layers of one shape with {} kernels", gpu.kernels());
    }
}
