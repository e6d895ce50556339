//! Steps of AdamW and Muon against the golden numbers and the float64 rules.

use polytape::gpu::KernelTier;
use polytape::optim::{self, Clip, Muon, MuonConfig, WeightDecayScope};
use polytape::{Gpu, GpuOptions, Role};

use super::{Parameter, Rule, gradients_of, params_of, step, values};
use crate::device;
use crate::golden::{self, OptimizerCase};
use crate::reference::Array;
use crate::reference::array::seeded;
use crate::reference::newton_schulz::Coefficients;
use crate::reference::optimizer::{Adam, LrScale};
use crate::tolerance::{ELEMENTWISE, Tolerance, assert_close, newton_schulz};

const MUONS: [(Coefficients, LrScale); 4] = [
    (Coefficients::Simple, LrScale::Moonlight),
    (Coefficients::PolarExpress, LrScale::SpectralMup),
    (Coefficients::Quintic, LrScale::KellerJordan),
    (Coefficients::Aol, LrScale::Moonlight),
];

fn rule_of(case: &OptimizerCase) -> (Rule, Role) {
    let (muon, role) = match case.rule.as_str() {
        "adamw" => (None, Role::Matrix),
        "muon_auxiliary_adamw" => (Some(MUONS[0]), Role::Embedding),
        "muon_simple_moonlight" => (Some(MUONS[0]), Role::Matrix),
        "muon_polar_express_spectral_mup" => (Some(MUONS[1]), Role::Matrix),
        "muon_quintic_keller_jordan" => (Some(MUONS[2]), Role::Matrix),
        rule => panic!("unknown rule {rule}"),
    };
    let adam = Adam { beta1: case.betas[0], beta2: case.betas[1], eps: case.eps };
    (Rule { adam, momentum: case.momentum, weight_decay: case.weight_decay, ..Rule::new(muon) }, role)
}

/// Of a parameter after `steps` steps, each of the size `lr` times that of the update, whose error is Newton–Schulz's.
fn tolerance(rule: &Rule, parameter: &Parameter, lr: f64, steps: f64) -> Tolerance {
    let Some((coefficients, lr_scale)) = rule.muon.filter(|_| parameter.role == Role::Matrix) else {
        return ELEMENTWISE;
    };
    let &[rows, columns] = &parameter.w.shape[..] else { panic!("a matrix") };
    let of_update = newton_schulz(coefficients.default_steps(), rows.min(columns), rows.max(columns));
    let rms = parameter.w.norm() / (parameter.w.len() as f64).sqrt();
    // An orthogonal matrix has elements of the rms 1/√max(rows, columns).
    let size = lr * lr_scale.of(rows, columns) / (rows.max(columns) as f64).sqrt();
    ELEMENTWISE.and(of_update.times(steps * size / rms))
}

#[test]
fn golden_steps_are_reproduced() {
    for gpu in device::all() {
        for case in golden::optimizers() {
            let (rule, role) = rule_of(&case);
            let mut parameter = Parameter::new("w", role, golden::f32_array(&case.shape, &case.p0));
            let mut params = params_of(gpu, &[parameter.clone()]).expect("parameters");
            let mut optimizer = rule.optimizer();
            for (t, (g, want)) in case.grads.iter().zip(&case.p).enumerate() {
                let g = golden::f32_array(&case.shape, g);
                step(&mut params, &mut *optimizer, &[g], case.lr_at(t)).expect("a step");
                parameter.w = Array::new(&case.shape, want.clone());
                let limits = tolerance(&rule, &parameter, case.lr, (t + 1) as f64);
                assert_close(&format!("{} step {t}", case.rule), &values(&params)[0], &parameter.w, limits);
            }
            assert_eq!(optimizer.state().steps(), case.grads.len() as u64);
        }
    }
}

/// Parameters of every role, with shapes around a workgroup's size; tall, wide and square matrices.
fn parameters(seed: u64) -> Vec<Parameter> {
    let mut rng = seeded(seed);
    let mut random = |name, role, shape: &[usize]| Parameter::new(name, role, Array::random(shape, &mut rng));
    vec![
        random("embedding", Role::Embedding, &[37, 20]),
        random("tall", Role::Matrix, &[65, 33]),
        random("wide", Role::Matrix, &[20, 130]),
        random("square", Role::Matrix, &[24, 24]),
        random("norm", Role::Vector, &[257]),
        random("scalar", Role::Vector, &[1]),
        random("head", Role::Head, &[20, 37]),
    ]
}

fn follow(rule: &Rule, seed: u64) {
    let (start, lr) = (parameters(seed), 0.02f32);
    let mut rng = seeded(seed + 1);
    let gradients: Vec<Vec<Array>> =
        (0..5).map(|_| start.iter().map(|parameter| Array::random(&parameter.w.shape, &mut rng)).collect()).collect();
    for gpu in device::all() {
        let mut want = start.clone();
        let mut params = params_of(gpu, &start).expect("parameters");
        let mut optimizer = rule.optimizer();
        for (t, gradients) in gradients.iter().enumerate() {
            step(&mut params, &mut *optimizer, gradients, f64::from(lr)).expect("a step");
            let found = values(&params);
            for ((parameter, g), found) in want.iter_mut().zip(gradients).zip(&found) {
                parameter.step(rule, g, f64::from(lr));
                let limits = tolerance(rule, parameter, f64::from(lr), (t + 1) as f64);
                let name = format!("{rule:?}: `{}` after step {t}, {} kernels", parameter.name, gpu.kernels());
                assert_close(&name, found, &parameter.w, limits);
            }
        }
    }
}

#[test]
fn adamw_follows_the_reference() {
    follow(&Rule::new(None), 3001);
    follow(&Rule { weight_decay: 0.0, ..Rule::new(None) }, 3003);
    follow(&Rule { decay: WeightDecayScope::Matrices, ..Rule::new(None) }, 3005);
}

#[test]
fn muon_follows_the_reference_by_role() {
    for (seed, muon) in (3011..).step_by(2).zip(MUONS) {
        follow(&Rule::new(Some(muon)), seed);
    }
    follow(&Rule { decay: WeightDecayScope::Matrices, momentum: 0.8, ..Rule::new(Some(MUONS[0])) }, 3021);
}

#[test]
fn normuon_follows_the_reference_by_role() {
    for (seed, muon) in (3061..).step_by(2).zip(MUONS) {
        follow(&Rule { row_moments: true, ..Rule::new(Some(muon)) }, seed);
    }
    let adam = Adam { beta2: 0.999, eps: 1e-3, ..Adam::default() };
    follow(&Rule { row_moments: true, adam, decay: WeightDecayScope::Matrices, ..Rule::new(Some(MUONS[0])) }, 3071);
}

#[test]
fn small_parameters_share_dispatches_and_keep_the_bits_they_have_alone() {
    const SIZES: [usize; 11] = [1, 5, 64, 257, 1 << 18, (1 << 18) + 1, 4099, 3, 1000, 20_011, 2];
    let mut rng = seeded(3025);
    let role = |index| if index % 3 == 0 { Role::Vector } else { Role::Matrix };
    let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k"];
    let parameter = |index| Parameter::new(names[index], role(index), Array::random(&[SIZES[index]], &mut rng));
    let all: Vec<Parameter> = (0..SIZES.len()).map(parameter).collect();
    let rule = Rule { decay: WeightDecayScope::Matrices, ..Rule::new(None) };
    // Two steps, and the dispatches of the last beside those of its clipping.
    let run = |gpu: &Gpu, parameters: &[Parameter]| {
        let (mut params, mut optimizer) = (params_of(gpu, parameters).expect("parameters"), rule.optimizer());
        let mut dispatches = 0;
        for _ in 0..2 {
            let gradients: Vec<Array> = parameters.iter().map(|parameter| parameter.w.map(f64::sin)).collect();
            let gradients = gradients_of(&params, &gradients).expect("gradients");
            let clip = Clip::new(gpu, &gradients, f32::INFINITY).expect("a clip");
            let before = gpu.counters().dispatches;
            optimizer.step(&mut params, gradients, &clip, 0.02).expect("a step");
            dispatches = gpu.counters().dispatches - before;
        }
        (values(&params), dispatches)
    };
    for shared in device::all() {
        for binding_limit in [None, Some(64 << 10)] {
            let options = GpuOptions { kernels: Some(shared.kernels()), binding_limit, ..Default::default() };
            let gpu = device::open(&options).expect("a device whose dispatches nothing else adds to");
            let (together, dispatches) = run(&gpu, &all);
            let alone: Vec<Vec<f32>> = all.iter().flat_map(|one| run(&gpu, std::slice::from_ref(one)).0).collect();
            assert!(together == alone, "other bits with {} kernels", gpu.kernels());
            // Small parameters share a dispatch, seven or as many as the adapter binds.
            let bindings = gpu.adapter().limits.max_storage_buffers_per_shader_stage;
            let joined = match gpu.kernels() {
                KernelTier::Host | KernelTier::Fallback => 1,
                _ => u64::from((bindings - 1) / 4).clamp(1, 7),
            };
            // Ten small ones and the large one; or eight, and three in windows of 16,384 values.
            let want = match binding_limit {
                None => 10u64.div_ceil(joined) + 1,
                Some(_) => 8u64.div_ceil(joined) + 16 + 17 + 2,
            };
            assert_eq!(dispatches, want, "{} kernels, binding limit {binding_limit:?}", gpu.kernels());
        }
    }
}

#[test]
fn moments_keep_their_digits_where_beta_is_close_to_1() {
    // 1 - 0.999 in float32 has a relative error of 1e-5.
    let adam = Adam { beta1: 0.99, beta2: 0.999, eps: 1e-8 };
    let rule = Rule { adam, ..Rule::new(None) };
    for gpu in device::all() {
        let start = parameters(3031);
        let mut params = params_of(gpu, &start).expect("parameters");
        let gradients: Vec<Array> = start.iter().map(|parameter| parameter.w.clone()).collect();
        let mut optimizer = rule.optimizer();
        step(&mut params, &mut *optimizer, &gradients, 1e-3).expect("a step");
        for (name, tensor) in optimizer.state_tensors(&params).expect("a state") {
            let (parameter, moment) = name.split_once('.').expect("a parameter and its moment");
            let g = &start.iter().find(|start| start.name == parameter).expect("a parameter").w;
            let want = if moment == "m" { g.times(1.0 - adam.beta1) } else { g.map(|g| (1.0 - adam.beta2) * g * g) };
            assert_close(&name, &tensor.to_vec().expect("read-back"), &want, ELEMENTWISE);
        }
    }
}

#[test]
fn gradients_are_scaled_by_the_clip() {
    for gpu in device::all() {
        for muon in [None, Some(MUONS[0])] {
            // Adam's step hardly sees the scale, but its moments do.
            let rule = Rule::new(muon);
            let start = parameters(3041);
            let gradients: Vec<Array> = start.iter().map(|parameter| parameter.w.clone()).collect();
            let mut params = params_of(gpu, &start).expect("parameters");
            let mut optimizer = rule.optimizer();
            let on_device = gradients_of(&params, &gradients).expect("gradients");
            let clip = Clip::new(gpu, &on_device, 0.5).expect("a clip");
            optimizer.step(&mut params, on_device, &clip, 1e-3).expect("a step");
            let norm = gradients.iter().map(|g| g.dot(g)).sum::<f64>().sqrt();
            for (name, tensor) in
                optimizer.state_tensors(&params).expect("a state").into_iter().filter(|(name, _)| name.ends_with(".m"))
            {
                let parameter = start.iter().find(|start| name.starts_with(start.name)).expect("a parameter");
                let is_muon = muon.is_some() && parameter.role == Role::Matrix;
                let share = if is_muon { 1.0 } else { 1.0 - rule.adam.beta1 };
                let want = parameter.w.times(share * 0.5 / (norm + 1e-6));
                assert_close(&name, &tensor.to_vec().expect("read-back"), &want, ELEMENTWISE.times(2.0)); // the norm has an error, too
            }
        }
    }
}

#[test]
fn the_number_of_newton_schulz_steps_can_be_set() {
    let gpu = device::default();
    let start = &parameters(3051)[3..4];
    let after = |newton_schulz_steps| {
        let config = MuonConfig { newton_schulz_steps, lr_scale: optim::LrScale::KellerJordan, ..Default::default() };
        let mut params = params_of(gpu, start).expect("parameters");
        step(&mut params, &mut Muon::new(config), &[start[0].w.clone()], 0.1).expect("a step");
        values(&params)
    };
    assert_eq!(after(None), after(Some(5)));
    assert_ne!(after(None), after(Some(2)));
}

#[test]
fn a_matrix_that_is_none_is_refused() {
    let gpu = device::default();
    let start = [Parameter::new("w", Role::Matrix, Array::zeros(&[2, 3, 4]))];
    let mut params = params_of(gpu, &start).expect("parameters");
    let mut muon = Muon::new(MuonConfig::default());
    let error = step(&mut params, &mut muon, &[Array::zeros(&[2, 3, 4])], 0.1).expect_err("three dimensions");
    assert_eq!(error.to_string(), "muon: shape [2, 3, 4]: 2 dimensions expected");
}

#[test]
fn a_gradient_of_another_shape_is_refused() {
    let gpu = device::default();
    let start = [Parameter::new("w", Role::Matrix, Array::zeros(&[4, 3]))];
    for muon in [None, Some(MUONS[0])] {
        let mut params = params_of(gpu, &start).expect("parameters");
        let mut optimizer = Rule::new(muon).optimizer();
        let error = step(&mut params, &mut *optimizer, &[Array::zeros(&[3, 4])], 0.1).expect_err("another shape");
        assert_eq!(error.to_string(), "optimizer: the gradient of `w` has shape [3, 4], [4, 3] expected");
        assert_eq!(optimizer.state().steps(), 0, "nothing was done");
    }
}
