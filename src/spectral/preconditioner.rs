//! [`Preconditioner`]: maps raw parameters to effective weights once per optimizer step, and pulls their gradients back.
//!
//! The optimizer sees raw parameters only, the model sees effective weights only, and neither knows of the other.

use rand::SeedableRng;
use rand::rngs::ChaCha12Rng;

use super::pc::{Layer, PcConfig};
use crate::error::{Error, Result};
use crate::params::{Gradients, ParamId, Params, Role};
use crate::tensor::Tensor;

/// Name suffix of a PC layer's left vector u: `<name>.pc_u` belongs to `<name>.weight`.
pub const PC_U: &str = "pc_u";
/// Name suffix of its right vector v.
pub const PC_V: &str = "pc_v";
/// Name suffix of its scale γ.
pub const PC_GAMMA: &str = "pc_gamma";

/// The parameters of one preconditioned matrix.
#[derive(Debug, Clone)]
struct Entry {
    weight: ParamId,
    heads: usize,
    u: ParamId,
    v: ParamId,
    /// `None` if γ is constant.
    gamma: Option<ParamId>,
}

/// The PC layers (arXiv 2606.06470) of a set of parameters: raw weight W `[rows, columns]` → `W_eff = γ·stop(s)·N·P(NᵀN)`,
/// `N = W/s`, of the same shape, per block of rows. u, v and γ are stored beside `<name>.weight` as `<name>.pc_u`, `<name>.pc_v`
/// and `<name>.pc_gamma`.
///
/// ```
/// # use polytape::*;
/// # use polytape::spectral::{PcConfig, Preconditioner, level_coefficients};
/// # let gpu = Gpu::open(&Default::default())?;
/// let mut params = Params::new(&gpu);
/// let w = params.add("w.weight", Role::Matrix, Tensor::from_slice(&gpu, &[2.0, 0.0, 0.0, 1.0], &[2, 2])?)?;
/// let config = PcConfig { coefficients: level_coefficients(1)?, ..Default::default() };
/// let pc = Preconditioner::attach(&mut params, config, &[(w, 1)], 0)?;
/// pc.refresh(&mut params)?;
/// let effective = pc.effective(&params)?.params.get(w)?.tensor.to_vec()?;
/// assert!((effective[0] - 2.0).abs() < 1e-3); // the largest singular value stays
/// assert!((effective[3] - 1.38025).abs() < 1e-3); // 2·½·(1.507 - 0.507·½²): the others are raised
/// # Ok::<(), Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Preconditioner {
    config: PcConfig,
    entries: Vec<Entry>,
}

/// The effective weights of one optimizer step; see [`Preconditioner::effective`].
#[derive(Debug)]
pub struct Effective {
    /// A copy of the parameters, with the same ids, that holds W_eff in place of each preconditioned W.
    pub params: Params,
    /// The scalars of each matrix, for the backward.
    scalars: Vec<Tensor>,
}

impl Preconditioner {
    /// Preconditions the matrices `targets`, each split into `heads` equal blocks of rows. Adds the u, v and γ that `params` lacks:
    /// u and v random unit vectors from `seed`, γ = gamma_init. Call [`Preconditioner::refresh`] before the first step of a new run.
    /// Errors: no coefficients, a target that is not a matrix of whole blocks, an existing u, v or γ of another shape.
    pub fn attach(params: &mut Params, config: PcConfig, targets: &[(ParamId, usize)], seed: u64) -> Result<Self> {
        if config.coefficients.is_empty() {
            return Err(Error::Value("PC layer: no coefficients, at least one expected".into()));
        }
        let entries = targets
            .iter()
            .enumerate()
            .map(|(number, &(weight, heads))| Entry::attach(params, &config, weight, heads, seed.wrapping_add(number as u64)))
            .collect::<Result<_>>()?;
        Ok(Self { config, entries })
    }

    /// The configuration.
    pub fn config(&self) -> &PcConfig {
        &self.config
    }

    /// The preconditioned matrices, in the order of `attach`.
    pub fn weights(&self) -> impl Iterator<Item = ParamId> {
        self.entries.iter().map(|entry| entry.weight)
    }

    /// Every preconditioned matrix with its u, v and γ.
    pub(crate) fn companions(&self) -> Vec<(ParamId, Vec<ParamId>)> {
        let of = |entry: &Entry| (entry.weight, [Some(entry.u), Some(entry.v), entry.gamma].into_iter().flatten().collect());
        self.entries.iter().map(of).collect()
    }

    /// The layers whose parameters another set has, too, under the ids that `id` returns.
    pub(crate) fn restricted(&self, id: impl Fn(ParamId) -> Option<ParamId>) -> Self {
        let entry = |entry: &Entry| {
            let gamma = match entry.gamma {
                Some(gamma) => Some(id(gamma)?),
                None => None,
            };
            Some(Entry { weight: id(entry.weight)?, heads: entry.heads, u: id(entry.u)?, v: id(entry.v)?, gamma })
        };
        Self { config: self.config.clone(), entries: self.entries.iter().filter_map(entry).collect() }
    }

    /// Power iteration, `power_iterations` times v ← Wᵀu/‖Wᵀu‖, u ← Wv/‖Wv‖: before the first step of a new run and after every
    /// optimizer step; never on resume, because a checkpoint holds u and v. Errors: only the device's.
    ///
    /// ```
    /// # use polytape::*;
    /// # use polytape::spectral::{PcConfig, Preconditioner};
    /// # let gpu = Gpu::open(&Default::default())?;
    /// # let mut params = Params::new(&gpu);
    /// # let w = params.add("w.weight", Role::Matrix, Tensor::from_slice(&gpu, &[2.0, 0.0, 0.0, 1.0], &[2, 2])?)?;
    /// let pc = Preconditioner::attach(&mut params, PcConfig::default(), &[(w, 1)], 0)?;
    /// pc.refresh(&mut params)?;
    /// let v = params.find("w.pc_v").map(|v| params.get(v)?.tensor.to_vec()).unwrap()?;
    /// assert!((v[0].abs() - 1.0).abs() < 1e-3); // of W = diag(2, 1)
    /// # Ok::<(), Error>(())
    /// ```
    pub fn refresh(&self, params: &mut Params) -> Result<()> {
        for entry in &self.entries {
            let (u, v) = entry.layer(params, &self.config)?.refresh(&self.config)?;
            params.set(entry.u, u.reshape(params.get(entry.u)?.tensor.shape())?)?;
            params.set(entry.v, v.reshape(params.get(entry.v)?.tensor.shape())?)?;
        }
        Ok(())
    }

    /// Computes W_eff of every target: once for all micro-batches of a step, or for evaluation. Errors: only the device's.
    pub fn effective(&self, params: &Params) -> Result<Effective> {
        let mut effective = Effective { params: params.clone(), scalars: Vec::with_capacity(self.entries.len()) };
        for entry in &self.entries {
            let (weight, scalars) = entry.layer(params, &self.config)?.forward(&self.config)?;
            effective.params.set(entry.weight, weight.reshape(params.get(entry.weight)?.tensor.shape())?)?;
            effective.scalars.push(scalars);
        }
        Ok(effective)
    }

    /// Pulls gradients back through the polynomial: E = ∂L/∂W_eff becomes ∂L/∂W and ∂L/∂γ; other gradients pass unchanged. For the
    /// spectral norm, with `R = NᵀE`, D = ∂⟨R, P⟩/∂(NᵀN) and `M = E·P + N·(D + Dᵀ)`: `dγ = stop(s)·⟨P, R⟩`,
    /// `dW = γ·stop(s)/s·(M - ⟨M, N⟩·u·vᵀ)`. `params` and `effective` are those of the forward. An error where a gradient does not
    /// have the shape of its weight.
    ///
    /// ```
    /// # use polytape::*;
    /// # use polytape::spectral::{PcConfig, Preconditioner};
    /// # let gpu = Gpu::open(&Default::default())?;
    /// # let mut params = Params::new(&gpu);
    /// # let w = params.add("w.weight", Role::Matrix, Tensor::from_slice(&gpu, &[2.0, 0.0, 0.0, 1.0], &[2, 2])?)?;
    /// # let config = PcConfig { coefficients: vec![1.0], ..Default::default() };
    /// # let pc = Preconditioner::attach(&mut params, config, &[(w, 1)], 0)?;
    /// # pc.refresh(&mut params)?;
    /// let effective = pc.effective(&params)?; // P = I: W_eff = γ·W
    /// let mut gradients = Gradients::new();
    /// gradients.add(w, Tensor::from_slice(&gpu, &[1.0; 4], &[2, 2])?)?;
    /// let gradients = pc.backward(&params, &effective, gradients)?;
    /// let dgamma = gradients.get(params.find("w.pc_gamma").unwrap()).unwrap();
    /// assert!((dgamma.item()? - 3.0).abs() < 1e-3); // ⟨E, W⟩
    /// # Ok::<(), Error>(())
    /// ```
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

    /// The parameters of a plain model with the same outputs: W_eff under the name of W, without u, v and γ. Errors: only the
    /// device's.
    ///
    /// ```
    /// # use polytape::*;
    /// # use polytape::spectral::{PcConfig, Preconditioner};
    /// # let gpu = Gpu::open(&Default::default())?;
    /// # let mut params = Params::new(&gpu);
    /// # let w = params.add("w.weight", Role::Matrix, Tensor::from_slice(&gpu, &[2.0, 0.0, 0.0, 1.0], &[2, 2])?)?;
    /// let pc = Preconditioner::attach(&mut params, PcConfig::default(), &[(w, 1)], 0)?;
    /// assert_eq!([params.len(), pc.merge(&params)?.len()], [4, 1]);
    /// # Ok::<(), Error>(())
    /// ```
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
            return Err(Error::shape("pc", &[param.tensor.shape()], problem));
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

/// The existing parameter of this name, which must have this shape, or a new one with these values.
fn find_or_add(params: &mut Params, name: String, role: Role, values: &[f32], shape: &[usize]) -> Result<ParamId> {
    match params.find(&name) {
        Some(id) if params.get(id)?.tensor.shape() == shape => Ok(id),
        Some(id) => {
            let problem = format!("`{name}` has shape {:?}, {shape:?} expected", params.get(id)?.tensor.shape());
            Err(Error::shape("pc", &[params.get(id)?.tensor.shape(), shape], problem))
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
