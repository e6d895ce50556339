//! PC layers, the power iteration and Newton–Schulz.

use polytape::spectral::{NewtonSchulz, PC_GAMMA, PC_U, PC_V, PcConfig, Preconditioner, level_coefficients, newton_schulz};
use polytape::{Gpu, Gradients, Params, Result, Role, Tensor};
use polytape_reference::Array;
use polytape_reference::array::seeded;
use polytape_reference::differences::random_arrays;
use polytape_reference::newton_schulz::{self as host, Coefficients};
use polytape_reference::pc::{Pc, PowerVectors, forward, refresh, vjp};
use polytape_reference::tolerance;

use super::check::{Check, Part, rounded, shape, upload};

/// Every check of this group.
pub fn checks() -> Vec<Check> {
    let mut lines = Vec::new();
    for sizes in [[200, 120], [65, 132]] {
        for level in [1, 2, 3, 4] {
            lines.push(Check::new(format!("PC layer, level {level}"), shape(&sizes), move |gpu| pc_layer(gpu, sizes, level)));
        }
        lines.push(Check::new("power iteration", shape(&sizes), move |gpu| power_iteration(gpu, sizes)));
    }
    for sizes in [[96, 64], [60, 130]] {
        lines.push(Check::new("Newton–Schulz, 5 steps", shape(&sizes), move |gpu| orthogonalize(gpu, sizes)));
    }
    lines
}

/// A PC layer on the device and in the reference; u and v as after a refresh, in float32.
struct Layer {
    w: Array,
    vectors: PowerVectors,
    pc: Pc,
    params: Params,
    preconditioner: Preconditioner,
}

const GAMMA: f32 = 1.3;

fn pc_name(part: &str) -> String {
    format!("layer.{part}")
}

impl Layer {
    fn new(gpu: &Gpu, sizes: [usize; 2], level: usize, iterations: usize) -> Result<Self> {
        let mut rng = seeded(71);
        let w = rounded(&Array::random(&sizes, &mut rng));
        let mut vectors = PowerVectors::random(sizes[0], sizes[1], &mut rng);
        let pc = Pc::of_level(level);
        refresh(&w, &mut vectors, &Pc { power_iterations: iterations, ..pc.clone() });
        let vectors = PowerVectors { u: rounded(&vectors.u), v: rounded(&vectors.v) };
        let mut params = Params::new(gpu);
        let weight = params.add("layer.weight", Role::Matrix, upload(gpu, &w)?)?;
        params.add(pc_name(PC_U), Role::State, upload(gpu, &vectors.u)?)?;
        params.add(pc_name(PC_V), Role::State, upload(gpu, &vectors.v)?)?;
        params.add(pc_name(PC_GAMMA), Role::Vector, Tensor::from_slice(gpu, &[GAMMA], &[1])?)?;
        let config = PcConfig { coefficients: level_coefficients(level)?, ..PcConfig::default() };
        let preconditioner = Preconditioner::attach(&mut params, config, &[(weight, 1)], 0)?;
        Ok(Self { w, vectors, pc, params, preconditioner })
    }
}

/// W_eff, dW and dγ.
fn pc_layer(gpu: &Gpu, sizes: [usize; 2], level: usize) -> Result<Vec<Part>> {
    let layer = Layer::new(gpu, sizes, level, 10)?;
    let Layer { w, vectors, pc, params, preconditioner } = &layer;
    let dy = Array::random(&sizes, &mut seeded(72));
    let wanted = forward(w, f64::from(GAMMA), vectors, pc);
    let [dw, dgamma] = vjp(w, f64::from(GAMMA), vectors, pc, &dy);

    let effective = preconditioner.effective(params)?;
    let (weight, gamma) = (params.id("layer.weight")?, params.id(&pc_name(PC_GAMMA))?);
    let mut gradients = Gradients::new();
    gradients.add(weight, upload(gpu, &dy)?)?;
    let gradients = preconditioner.backward(params, &effective, gradients)?;
    let limit = tolerance::pc(&pc.coefficients, sizes[0].min(sizes[1]), sizes[0].max(sizes[1]));
    let gradient = |id| gradients.get(id).ok_or_else(|| polytape::Error::Value("no gradient flows".into()));
    // dγ is a sum over the matrix that cancels: it is compared relative to its magnitude with random signs.
    let scale = dy.norm() * wanted.norm() / f64::from(GAMMA) / (w.len() as f64).sqrt();
    let found_dgamma = f64::from(gradient(gamma)?.item()?);
    let shifted = Array::scalar(dgamma.data[0].abs().max(scale));
    let difference = shifted.data[0] + (found_dgamma - dgamma.data[0]);
    Ok(vec![
        Part::of(&effective.params.get(weight)?.tensor, &wanted, limit)?,
        Part::of(gradient(weight)?, &dw, limit)?,
        Part::of_values(&[difference as f32], &shifted, limit),
    ])
}

/// One iteration from random vectors, where no convergence can hide an error.
fn power_iteration(gpu: &Gpu, sizes: [usize; 2]) -> Result<Vec<Part>> {
    let mut layer = Layer::new(gpu, sizes, 2, 0)?;
    layer.preconditioner.refresh(&mut layer.params)?;
    refresh(&layer.w, &mut layer.vectors, &layer.pc);
    let limit = tolerance::power_iteration(sizes[0], sizes[1]);
    let part = |name: &str, wanted: &Array| Part::of(&layer.params.get(layer.params.id(name)?)?.tensor, wanted, limit);
    Ok(vec![part(&pc_name(PC_U), &layer.vectors.u)?, part(&pc_name(PC_V), &layer.vectors.v)?])
}

fn orthogonalize(gpu: &Gpu, sizes: [usize; 2]) -> Result<Vec<Part>> {
    let [x] = random_arrays(73, [&sizes]);
    let x = rounded(&x.times(1.0 / x.norm()));
    let wanted = host::iterate(&x, Coefficients::Simple, 5);
    let found = newton_schulz(upload(gpu, &x)?, NewtonSchulz::Simple, 5)?;
    let limit = tolerance::newton_schulz(5, sizes[0].min(sizes[1]), sizes[0].max(sizes[1]));
    Ok(vec![Part::of(&found, &wanted, limit)?])
}
