//! [`Preconditioner`]: raw parameters → effective weights, once per optimizer step, and their gradients back.
//!
//! The optimizer sees raw parameters only, the model sees effective weights only, and neither knows of the other.

use rand::SeedableRng;
use rand::rngs::ChaCha12Rng;

use super::pc::{Layer, PcConfig};
use crate::error::{Error, Result};
use crate::params::{Gradients, ParamId, Params, Role};
use crate::tensor::Tensor;

/// Last part of the name of a PC layer's left vector u: `<name>.pc_u` stands beside the matrix `<name>.weight`.
pub const PC_U: &str = "pc_u";
/// Last part of the name of its right vector v.
pub const PC_V: &str = "pc_v";
/// Last part of the name of its scale γ.
pub const PC_GAMMA: &str = "pc_gamma";

/// Where the pieces of one preconditioned matrix are.
#[derive(Debug, Clone)]
struct Entry {
    weight: ParamId,
    heads: usize,
    u: ParamId,
    v: ParamId,
    /// Absent where γ is not trained.
    gamma: Option<ParamId>,
}

/// The PC layers of a set of parameters. u, v and γ stand beside the matrix `<name>.weight` as `<name>.pc_u`, `<name>.pc_v` and
/// `<name>.pc_gamma`.
#[derive(Debug, Clone)]
pub struct Preconditioner {
    config: PcConfig,
    entries: Vec<Entry>,
}

/// The effective weights of one step; see [`Preconditioner::effective`].
#[derive(Debug)]
pub struct Effective {
    /// A copy of the raw parameters, under the same ids, in which the preconditioned matrices are replaced.
    pub params: Params,
    /// The scalars of each matrix, for the backward.
    scalars: Vec<Tensor>,
}

impl Preconditioner {
    /// Preconditions the matrices named `targets`, each in `heads` blocks of rows. Adds the u, v and γ that `params` lacks: u and
    /// v drawn from `seed` and normalised. Call [`Preconditioner::refresh`] before the first step of a fresh run.
    pub fn attach(params: &mut Params, config: PcConfig, targets: &[(ParamId, usize)], seed: u64) -> Result<Self> {
        if config.coefficients.is_empty() {
            return Err(Error::Value("PC layer: one coefficient or more expected, found none".into()));
        }
        let entries = targets
            .iter()
            .enumerate()
            .map(|(number, &(weight, heads))| Entry::attach(params, &config, weight, heads, seed.wrapping_add(number as u64)))
            .collect::<Result<_>>()?;
        Ok(Self { config, entries })
    }

    /// The settings.
    pub fn config(&self) -> &PcConfig {
        &self.config
    }

    /// The preconditioned matrices.
    pub fn weights(&self) -> impl Iterator<Item = ParamId> {
        self.entries.iter().map(|entry| entry.weight)
    }

    /// Power iteration on u and v: before the first step of a fresh run and after every optimizer step, never on resume.
    pub fn refresh(&self, params: &mut Params) -> Result<()> {
        for entry in &self.entries {
            let (u, v) = entry.layer(params, &self.config)?.refresh(&self.config)?;
            params.set(entry.u, u.reshape(params.get(entry.u)?.tensor.shape())?)?;
            params.set(entry.v, v.reshape(params.get(entry.v)?.tensor.shape())?)?;
        }
        Ok(())
    }

    /// Computes the effective weights, for all micro-batches of a step or for evaluation.
    pub fn effective(&self, params: &Params) -> Result<Effective> {
        let mut effective = Effective { params: params.clone(), scalars: Vec::with_capacity(self.entries.len()) };
        for entry in &self.entries {
            let (weight, scalars) = entry.layer(params, &self.config)?.forward(&self.config)?;
            effective.params.set(entry.weight, weight.reshape(params.get(entry.weight)?.tensor.shape())?)?;
            effective.scalars.push(scalars);
        }
        Ok(effective)
    }

    /// Turns the gradients of the effective weights into those of the raw parameters, γ included.
    pub fn backward(&self, params: &Params, effective: &Effective, mut gradients: Gradients) -> Result<Gradients> {
        for (entry, scalars) in self.entries.iter().zip(&effective.scalars) {
            let Some(e) = gradients.take(entry.weight) else { continue };
            let layer = entry.layer(params, &self.config)?;
            let (dw, dgamma) = layer.backward(scalars, &e.reshape(layer.w.shape())?, &self.config)?;
            gradients.add(entry.weight, dw.reshape(e.shape())?)?;
            if let Some(gamma) = entry.gamma {
                gradients.add(gamma, dgamma)?;
            }
        }
        Ok(gradients)
    }

    /// The parameters of an ordinary model with the same outputs: W_eff under the plain weight's name, without u, v and γ.
    pub fn merge(&self, params: &Params) -> Result<Params> {
        let effective = self.effective(params)?.params;
        let extra =
            |id: ParamId| self.entries.iter().any(|entry| [Some(entry.u), Some(entry.v), entry.gamma].contains(&Some(id)));
        let mut merged = Params::new(params.gpu());
        for (id, param) in effective.iter().filter(|(id, _)| !extra(*id)) {
            debug_assert_eq!(effective.get(id)?.name, param.name);
            merged.add(param.name.clone(), param.role, param.tensor.clone())?;
        }
        Ok(merged)
    }
}

impl Entry {
    fn attach(params: &mut Params, config: &PcConfig, weight: ParamId, heads: usize, seed: u64) -> Result<Self> {
        let param = params.get(weight)?.clone();
        let [rows, columns] = param.tensor.dims("pc")?;
        if heads == 0 || !rows.is_multiple_of(heads) {
            let problem = format!("`{}` {:?}: {heads} blocks of rows expected", param.name, param.tensor.shape());
            return Err(Error::shape("pc", problem));
        }
        let stem = param.name.strip_suffix(".weight").unwrap_or(&param.name).to_string();
        let mut rng = ChaCha12Rng::seed_from_u64(seed);
        let mut vector = |name: &str, length: usize| {
            let values: Vec<f32> = (0..heads).flat_map(|_| unit_vector(length, &mut rng)).collect();
            let shape: &[usize] = if heads == 1 { &[length] } else { &[heads, length] };
            find_or_add(params, format!("{stem}.{name}"), Role::State, &values, shape)
        };
        let u = vector(PC_U, rows / heads)?;
        let v = vector(PC_V, columns)?;
        let gamma = config.learnable_gamma.then(|| {
            let values = vec![config.gamma_init; heads];
            find_or_add(params, format!("{stem}.{PC_GAMMA}"), Role::Vector, &values, &[heads])
        });
        Ok(Self { weight, heads, u, v, gamma: gamma.transpose()? })
    }

    fn layer(&self, params: &Params, config: &PcConfig) -> Result<Layer> {
        let w = &params.get(self.weight)?.tensor;
        let [rows, columns] = w.dims("pc")?;
        let (heads, rows) = (self.heads, rows / self.heads);
        let gamma = match self.gamma {
            Some(id) => params.get(id)?.tensor.clone(),
            None => Tensor::from_slice(w.gpu(), &vec![config.gamma_init; heads], &[heads])?,
        };
        Ok(Layer {
            w: w.reshape(&[heads, rows, columns])?,
            u: params.get(self.u)?.tensor.reshape(&[heads, rows])?,
            v: params.get(self.v)?.tensor.reshape(&[heads, columns])?,
            gamma,
        })
    }
}

/// The parameter of that name, which then has that shape, or a new one with these values.
fn find_or_add(params: &mut Params, name: String, role: Role, values: &[f32], shape: &[usize]) -> Result<ParamId> {
    match params.find(&name) {
        Some(id) if params.get(id)?.tensor.shape() == shape => Ok(id),
        Some(id) => {
            let problem = format!("`{name}` has shape {:?}, {shape:?} expected", params.get(id)?.tensor.shape());
            Err(Error::shape("pc", problem))
        }
        None => {
            let tensor = Tensor::from_slice(params.gpu(), values, shape)?;
            params.add(name, role, tensor)
        }
    }
}

fn unit_vector(length: usize, rng: &mut ChaCha12Rng) -> Vec<f32> {
    let values: Vec<f64> = (0..length).map(|_| crate::random::normal(rng)).collect();
    let norm = values.iter().map(|value| value * value).sum::<f64>().sqrt();
    values.iter().map(|value| (value / norm) as f32).collect()
}
