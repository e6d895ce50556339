//! [`Preconditioner`]: maps raw parameters to effective weights once per optimizer step, and pulls their gradients back.
//!
//! The optimizer sees raw parameters only, the model sees effective weights only, and neither knows of the other.
//!
//! Layers of one shape run as stacks: a dispatch for all of them. Each gives the bits that it gives alone, whichever layers are there.

use std::collections::HashMap;

use rand::SeedableRng;
use rand::rngs::ChaCha12Rng;

use super::pass::{Gamma, SCALARS};
use super::pc::{Layer, PcConfig, pc_stack};
use crate::error::{Error, Result};
use crate::params::{Gradients, ParamId, Params, Role};
use crate::tensor::{Stacks, Tensor, same_shape, slot};

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
    /// The scalars of each layer by its weight, for the backward.
    scalars: HashMap<ParamId, Tensor>,
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
        for stack in self.stacks(params, |_| true)? {
            params.put_together(&stack.ids(|entry| Some(entry.weight)))?;
            params.put_together(&stack.ids(|entry| entry.gamma))?;
            let (u, v) = stack.layer(params, &self.config)?.refresh(&self.config)?;
            stack.set(params, |entry| entry.u, u)?;
            stack.set(params, |entry| entry.v, v)?;
        }
        Ok(())
    }

    /// Computes W_eff of every target: once for all micro-batches of a step, or for evaluation. Errors: only the device's.
    pub fn effective(&self, params: &Params) -> Result<Effective> {
        let mut effective = Effective { params: params.clone(), scalars: HashMap::new() };
        for stack in self.stacks(params, |_| true)? {
            let (weights, scalars) = stack.layer(params, &self.config)?.forward(&self.config)?;
            stack.set(&mut effective.params, |entry| entry.weight, weights)?;
            let scalars = stack.parts(scalars, &[stack.shape[0], SCALARS])?;
            effective.scalars.extend(stack.entries.iter().map(|entry| entry.weight).zip(scalars));
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
        for stack in self.stacks(params, |entry| gradients.get(entry.weight).is_some())? {
            let layer = stack.layer(params, &self.config)?;
            let missing = || Error::Value("pc: effective weights of another preconditioner".into());
            let scalars = stack.entries.iter().map(|entry| effective.scalars.get(&entry.weight).ok_or_else(missing));
            let scalars = stack.gather(&scalars.collect::<Result<Vec<_>>>()?, &[layer.w.shape()[0], SCALARS])?;
            let e = stack.take(params, &mut gradients, layer.w.shape())?;
            let (dw, dgamma) = layer.backward(&scalars, &e, &self.config)?;
            drop(e);
            let shape = params.get(stack.entries[0].weight)?.tensor.shape();
            for (entry, dw) in stack.entries.iter().zip(stack.parts(dw, shape)?) {
                gradients.add(entry.weight, dw)?;
            }
            for (entry, dgamma) in stack.entries.iter().zip(stack.parts(dgamma, &stack.shape[..1])?) {
                if let Some(gamma) = entry.gamma {
                    gradients.add(gamma, dgamma)?;
                }
            }
        }
        Ok(gradients)
    }

    /// The wanted layers, those of one shape together as far as a stack goes.
    fn stacks<'a>(&'a self, params: &Params, is_wanted: impl Fn(&Entry) -> bool) -> Result<Vec<Stack<'a>>> {
        let mut shapes: Vec<([usize; 3], Vec<&Entry>)> = Vec::new();
        for entry in self.entries.iter().filter(|entry| is_wanted(entry)) {
            let [rows, columns] = params.get(entry.weight)?.tensor.dims("pc")?;
            let shape = [entry.heads, rows / entry.heads, columns];
            match shapes.iter_mut().find(|(known, _)| *known == shape) {
                Some((_, entries)) => entries.push(entry),
                None => shapes.push((shape, vec![entry])),
            }
        }
        let mut stacks = Vec::new();
        for (shape, entries) in shapes {
            stacks.extend(
                entries
                    .chunks(pc_stack(Stacks::of(params.gpu()), shape))
                    .map(|entries| Stack { shape, entries: entries.to_vec() }),
            );
        }
        Ok(stacks)
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
}

/// Layers of one shape that run at once.
struct Stack<'a> {
    /// [heads, rows, columns] of each.
    shape: [usize; 3],
    entries: Vec<&'a Entry>,
}

impl Stack<'_> {
    fn ids(&self, id: impl Fn(&Entry) -> Option<ParamId>) -> Vec<ParamId> {
        self.entries.iter().filter_map(|entry| id(entry)).collect()
    }

    /// One tensor of each layer as a batch of `shape`.
    fn gather(&self, tensors: &[&Tensor], shape: &[usize]) -> Result<Tensor> {
        match tensors {
            [one] => one.reshape(shape),
            several => Tensor::stacked(several)?.reshape(shape),
        }
    }

    /// [`Stack::gather`] undone, for tensors of `shape`.
    fn parts(&self, batch: Tensor, shape: &[usize]) -> Result<Vec<Tensor>> {
        if self.entries.len() == 1 { Ok(vec![batch.reshape(shape)?]) } else { batch.into_parts(shape) }
    }

    fn set(&self, params: &mut Params, id: impl Fn(&Entry) -> ParamId, batch: Tensor) -> Result<()> {
        let shape = params.get(id(self.entries[0]))?.tensor.shape().to_vec();
        let parts = self.parts(batch, &shape)?;
        self.entries.iter().zip(parts).try_for_each(|(entry, part)| params.set(id(entry), part))
    }

    /// The gradients of the effective weights, taken out.
    fn take(&self, params: &Params, gradients: &mut Gradients, shape: &[usize]) -> Result<Tensor> {
        let taken: Vec<Tensor> = self.entries.iter().filter_map(|entry| gradients.take(entry.weight)).collect();
        for (entry, gradient) in self.entries.iter().zip(&taken) {
            same_shape("pc", gradient, &params.get(entry.weight)?.tensor)?;
        }
        self.gather(&taken.iter().collect::<Vec<_>>(), shape)
    }

    fn layer(&self, params: &Params, config: &PcConfig) -> Result<Layer> {
        let count = self.entries.len();
        let [heads, rows, columns] = self.shape;
        let gather = |id: fn(&Entry) -> ParamId, shape: &[usize]| {
            let tensors = self.entries.iter().map(|entry| Ok(&params.get(id(entry))?.tensor));
            self.gather(&tensors.collect::<Result<Vec<_>>>()?, shape)
        };
        let gamma_stride = if count == 1 { heads } else { slot(heads) };
        let gamma = match self.entries[0].gamma {
            Some(_) => {
                let gammas = self.entries.iter().filter_map(|entry| entry.gamma).map(|id| Ok(&params.get(id)?.tensor));
                self.gather(&gammas.collect::<Result<Vec<_>>>()?, &[count * gamma_stride])?
            }
            None => {
                let gammas = vec![config.gamma_init; count * gamma_stride];
                Tensor::from_slice(params.gpu(), &gammas, &[count * gamma_stride])?
            }
        };
        Ok(Layer {
            w: gather(|entry| entry.weight, &[count * heads, rows, columns])?,
            u: gather(|entry| entry.u, &[count * heads, rows])?,
            v: gather(|entry| entry.v, &[count * heads, columns])?,
            gamma: Gamma { values: gamma, heads, stride: gamma_stride },
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
