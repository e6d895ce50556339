//! The PC layers of a step of the 20M preset alone, forward and backward: as this crate computes them, and as published, by Horner's
//! rule with full products on the tape.

use polytape::spectral::{PcConfig, Preconditioner, level_coefficients};
use polytape::{Gpu, Gradients, ParamId, Params, Result, Role, Tape, Tensor, Var};

use crate::fastest;

/// Shapes of o, gate, up and down, and how many blocks have them.
const SHAPES: [[usize; 2]; 4] = [[256, 256], [768, 256], [768, 256], [256, 768]];
/// The smaller side of each.
const SMALL: usize = 256;
const BLOCKS: usize = 4;
const MICRO_BATCHES: usize = 8;

struct Layers {
    params: Params,
    preconditioner: Preconditioner,
    cotangents: Vec<(ParamId, Tensor)>,
    /// a₀·I to a₃·I.
    identities: Vec<Tensor>,
}

impl Layers {
    fn new(gpu: &Gpu) -> Result<Self> {
        let mut params = Params::new(gpu);
        let mut cotangents = Vec::new();
        for (number, shape) in SHAPES.iter().cycle().take(SHAPES.len() * BLOCKS).enumerate() {
            let weight = Tensor::normal(gpu, shape, 0.02, number as u64)?;
            let id = params.add(format!("{number}.weight"), Role::Matrix, weight)?;
            cotangents.push((id, Tensor::normal(gpu, shape, 1.0, 1000 + number as u64)?));
        }
        let targets: Vec<_> = cotangents.iter().map(|(id, _)| (*id, 1)).collect();
        let preconditioner = Preconditioner::attach(&mut params, PcConfig::default(), &targets, 7)?;
        preconditioner.refresh(&mut params)?;
        let identity = |factor: f32| {
            let values: Vec<f32> = (0..SMALL * SMALL).map(|i| if i % (SMALL + 1) == 0 { factor } else { 0.0 }).collect();
            Tensor::from_slice(gpu, &values, &[SMALL, SMALL])
        };
        let identities = level_coefficients(4)?[..4].iter().map(|&a| identity(a)).collect::<Result<_>>()?;
        Ok(Self { params, preconditioner, cotangents, identities })
    }

    /// W_eff and the gradients of W and γ.
    fn fused(&self) -> Result<(Params, Gradients)> {
        let effective = self.preconditioner.effective(&self.params)?;
        let mut gradients = Gradients::new();
        for (id, cotangent) in &self.cotangents {
            gradients.add(*id, cotangent.clone())?;
        }
        let gradients = self.preconditioner.backward(&self.params, &effective, gradients)?;
        Ok((effective.params, gradients))
    }

    /// The published way: P by Horner's rule with full products and a stored identity. Omits the gradients of γ and of the norm,
    /// where the published code is not slower.
    fn horner(&self, divisors: &[f32]) -> Result<(Vec<Tensor>, Gradients)> {
        let (mut values, mut gradients) = (Vec::new(), Gradients::new());
        for ((id, cotangent), &s) in self.cotangents.iter().zip(divisors) {
            let tape = Tape::new(&self.params);
            let w = tape.param(*id)?;
            let [rows, columns] = w.value().dims("bench")?;
            let n = w.scale(1.0 / s)?;
            let gram = if rows >= columns { n.matmul_tn(&n)? } else { n.matmul_nt(&n)? };
            let p = horner(&tape, &gram, &self.identities)?;
            let product = if rows >= columns { n.matmul(&p)? } else { p.matmul(&n)? };
            let effective = product.scale(s)?;
            tape.backward_from(&[(&effective, cotangent.clone())], &mut gradients)?;
            values.push(effective.value().clone());
        }
        Ok((values, gradients))
    }

    /// s of each matrix.
    fn divisors(&self) -> Result<Vec<f32>> {
        let divisor = |number: usize| {
            let vector = |name: &str| -> Result<Tensor> {
                let id = self.params.find(&format!("{number}.{name}")).expect("attached");
                Ok(self.params.get(id)?.tensor.clone())
            };
            let w = &self.params.get(self.cotangents[number].0)?.tensor;
            let ([rows, columns], u, v) = (w.dims("bench")?, vector("pc_u")?.to_vec()?, vector("pc_v")?.to_vec()?);
            let w = w.to_vec()?;
            let row = |r: usize| (0..columns).map(|c| f64::from(w[r * columns + c]) * f64::from(v[c])).sum::<f64>();
            Ok((0..rows).map(|r| f64::from(u[r]) * row(r)).sum::<f64>() as f32 + 1e-7)
        };
        (0..self.cotangents.len()).map(divisor).collect()
    }
}

/// G·(G·(G·(a₄·G + a₃·I) + a₂·I) + a₁·I) + a₀·I
fn horner<'t>(tape: &'t Tape<'t>, gram: &Var<'t>, identities: &[Tensor]) -> Result<Var<'t>> {
    let last = identities.len() - 1;
    let leading = gram.scale(level_coefficients(last + 1)?[last + 1])?;
    let mut p = leading.add(&tape.constant(identities[last].clone()))?;
    for identity in identities[..last].iter().rev() {
        p = gram.matmul(&p)?.add(&tape.constant(identity.clone()))?;
    }
    Ok(p)
}

pub fn run(gpu: &Gpu) -> Result<()> {
    let layers = Layers::new(gpu)?;
    let divisors = layers.divisors()?;
    check(&layers, &divisors)?;
    let fused = fastest(gpu, || layers.fused().map(drop))?;
    let horner = fastest(gpu, || layers.horner(&divisors).map(drop))?;
    println!(
        "\n| 16 PC layers of level 4, forward and backward | ms per step of {MICRO_BATCHES} micro-batches | vs once per step |\n|---|---:|---:|"
    );
    let all = MICRO_BATCHES as f64;
    for (name, seconds) in [
        ("once per step", fused),
        ("per micro-batch", all * fused),
        ("Horner's rule, once per step", horner),
        ("Horner's rule, per micro-batch (as published)", all * horner),
    ] {
        println!("| {name} | {:.0} | {:.2} |", 1e3 * seconds, seconds / fused);
    }
    Ok(())
}

/// Checks that both give the same effective weights.
fn check(layers: &Layers, divisors: &[f32]) -> Result<()> {
    let (fused, horner) = (layers.fused()?.0, layers.horner(divisors)?.0);
    for ((id, _), other) in layers.cotangents.iter().zip(&horner) {
        let (a, b) = (fused.get(*id)?.tensor.to_vec()?, other.to_vec()?);
        let difference: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let size: f64 = b.iter().map(|b| f64::from(*b).powi(2)).sum();
        assert!(difference <= 1e-10 * size, "matrix {}: {difference:e} of {size:e}", fused.get(*id)?.name);
    }
    Ok(())
}
