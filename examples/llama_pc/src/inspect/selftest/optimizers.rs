//! Steps of AdamW and Muon, and clipping to a global norm.

use polytape::optim::{AdamConfig, AdamW, Clip, Muon, MuonConfig, Optimizer};
use polytape::{Gpu, Gradients, Params, Result, Role};
use polytape_reference::Array;
use polytape_reference::array::seeded;
use polytape_reference::newton_schulz::Coefficients;
use polytape_reference::optimizer::{self as host, Adam, LrScale, Moments, adamw, auxiliary_adam};
use polytape_reference::tolerance::{self, ELEMENTWISE, Tolerance, reduction};

use super::check::{Check, Part, rounded, shape, upload};

const LR: f32 = 0.02;
const DECAY: f64 = 0.1;
const STEPS: usize = 3;

/// Every check of this group.
pub fn checks() -> Vec<Check> {
    let (vector, matrix): (&'static [usize], &'static [usize]) = (&[16_500], &[65, 132]);
    vec![
        Check::new("AdamW, 3 steps", shape(vector), move |gpu| adam(gpu, vector, Role::Vector, false)),
        Check::new("AdamW, 3 steps", shape(matrix), move |gpu| adam(gpu, matrix, Role::Matrix, false)),
        Check::new("auxiliary Adam of Muon, 3 steps", shape(matrix), move |gpu| adam(gpu, matrix, Role::Embedding, true)),
        Check::new("Muon, 3 steps", shape(matrix), |gpu| muon(gpu, [65, 132])),
        Check::new("Muon, 3 steps", shape(&[132, 65]), |gpu| muon(gpu, [132, 65])),
        Check::new("clipping to a norm", "3 tensors", clip),
    ]
}

fn random(sizes: &[usize], seed: u64) -> Array {
    rounded(&Array::random(sizes, &mut seeded(seed)))
}

/// The parameter after each step; `reference` takes the same step with the same gradient.
fn follow(
    gpu: &Gpu,
    role: Role,
    mut w: Array,
    mut optimizer: Box<dyn Optimizer>,
    mut reference: impl FnMut(&mut Array, &Array),
    limit: Tolerance,
) -> Result<Vec<Part>> {
    let mut params = Params::new(gpu);
    let id = params.add("w", role, upload(gpu, &w)?)?;
    let mut parts = Vec::new();
    for step in 0..STEPS {
        let g = random(&w.shape, 81 + step as u64);
        let mut gradients = Gradients::new();
        gradients.add(id, upload(gpu, &g)?)?;
        let clip = Clip::new(gpu, &gradients, f32::INFINITY)?;
        optimizer.step(&mut params, gradients, &clip, LR)?;
        reference(&mut w, &g);
        parts.push(Part::of(&params.get(id)?.tensor, &w, limit)?);
    }
    Ok(parts)
}

fn adam(gpu: &Gpu, sizes: &[usize], role: Role, is_auxiliary: bool) -> Result<Vec<Part>> {
    let settings = AdamConfig { weight_decay: DECAY, ..Default::default() };
    let optimizer: Box<dyn Optimizer> = match is_auxiliary {
        true => Box::new(Muon::new(MuonConfig { adam: settings, ..Default::default() })),
        false => Box::new(AdamW::new(settings)),
    };
    let mut moments = Moments::zeros(sizes);
    let rule = if is_auxiliary { auxiliary_adam } else { adamw };
    let step = |w: &mut Array, g: &Array| rule(w, g, &mut moments, Adam::default(), f64::from(LR), DECAY);
    follow(gpu, role, random(sizes, 80), optimizer, step, ELEMENTWISE)
}

fn muon(gpu: &Gpu, sizes: [usize; 2]) -> Result<Vec<Part>> {
    let adam = AdamConfig { weight_decay: DECAY, ..Default::default() };
    let optimizer = Box::new(Muon::new(MuonConfig { adam, ..Default::default() }));
    let settings = host::Muon::new(Coefficients::Simple, LrScale::Moonlight);
    let mut momentum = Array::zeros(&sizes);
    let step = |w: &mut Array, g: &Array| host::muon(w, g, &mut momentum, settings, f64::from(LR), DECAY);
    // An orthogonal update has elements of the rms 1/√max(rows, columns), times the learning rate and its scale; w has the rms 1.
    let (short, long) = (sizes[0].min(sizes[1]), sizes[0].max(sizes[1]));
    let size = f64::from(LR) * LrScale::Moonlight.of(sizes[0], sizes[1]) / (long as f64).sqrt();
    let limit = ELEMENTWISE.and(tolerance::newton_schulz(5, short, long).times(STEPS as f64 * size));
    follow(gpu, Role::Matrix, random(&sizes, 80), optimizer, step, limit)
}

/// The norm over all gradients and the factor that bounds it.
fn clip(gpu: &Gpu) -> Result<Vec<Part>> {
    let arrays = [random(&[101], 91), random(&[127, 131], 92), random(&[200, 260], 93)];
    let mut params = Params::new(gpu);
    let mut gradients = Gradients::new();
    for (at, array) in arrays.iter().enumerate() {
        let id = params.add(format!("{at}"), Role::Matrix, upload(gpu, array)?)?;
        gradients.add(id, upload(gpu, array)?)?;
    }
    let norm = arrays.iter().map(|g| g.dot(g)).sum::<f64>().sqrt();
    let numel = arrays.iter().map(Array::len).sum();
    let found = Clip::new(gpu, &gradients, 1.0)?.values().to_vec()?;
    let part = |found: f32, wanted: f64| Part::of_values(&[found], &Array::scalar(wanted), reduction(numel));
    Ok(vec![part(found[0], norm), part(found[1], 1.0 / (norm + 1e-6))])
}
