//! PC layers and Newton–Schulz on every device, against golden numbers, the float64 reference and their own identities.

mod extremes;
mod golden_layers;
mod identities;
mod newton_schulz;
mod parameters;
mod random_layers;
mod stacks;

use polytape::spectral::{PcConfig, Preconditioner};
use polytape::{Gpu, Gradients, ParamId, Params, Result, Role, Tensor};

use crate::check::upload;
use crate::reference::Array;
use crate::reference::array::seeded;
use crate::reference::pc::{self, Norm, Pc, PowerVectors};

/// A PC layer as the reference sees it: one block of rows, one u, v and γ per head.
#[derive(Clone)]
pub struct Layer {
    pub w: Array,
    pub vectors: Vec<PowerVectors>,
    pub gamma: Vec<f64>,
    pub pc: Pc,
    pub learnable_gamma: bool,
}

impl Layer {
    /// A random matrix, with u and v as after a refresh and rounded to what the device can hold.
    pub fn random(seed: u64, shape: [usize; 2], heads: usize, pc: Pc) -> Self {
        let mut rng = seeded(seed);
        let w = Array::random(&shape, &mut rng);
        let vectors = (0..heads).map(|_| PowerVectors::random(shape[0] / heads, shape[1], &mut rng)).collect();
        let gamma = (0..heads).map(|head| f64::from(1.3f32 - 0.4 * head as f32)).collect();
        let mut layer = Self { w, vectors, gamma, pc, learnable_gamma: true };
        layer.refresh();
        layer
    }

    /// The same layer around another matrix.
    pub fn with_weight(self, w: Array) -> Self {
        let mut layer = Self { w: round(&w), ..self };
        layer.refresh();
        layer
    }

    /// The reference's refresh.
    pub fn refresh(&mut self) {
        pc::refresh_per_head(&self.w, &mut self.vectors, &self.pc);
        for vectors in &mut self.vectors {
            *vectors = PowerVectors { u: round(&vectors.u), v: round(&vectors.v) };
        }
    }

    pub fn forward(&self) -> Array {
        pc::forward_per_head(&self.w, &self.gamma, &self.vectors, &self.pc)
    }

    /// dw and dgamma [heads].
    pub fn vjp(&self, dy: &Array) -> [Array; 2] {
        pc::vjp_per_head(&self.w, &self.gamma, &self.vectors, &self.pc, dy)
    }

    /// A random gradient of the effective weight.
    pub fn cotangent(&self) -> Array {
        Array::random(&self.w.shape, &mut seeded(978))
    }

    pub fn config(&self) -> PcConfig {
        PcConfig {
            coefficients: self.pc.coefficients.iter().map(|&a| a as f32).collect(),
            norm: match self.pc.norm {
                Norm::Spectral => polytape::spectral::Norm::Spectral,
                Norm::Frobenius => polytape::spectral::Norm::Frobenius,
                Norm::None => polytape::spectral::Norm::None,
            },
            power_iterations: self.pc.power_iterations,
            eps: self.pc.eps as f32,
            recover_norm: self.pc.recover_norm,
            learnable_gamma: self.learnable_gamma,
            gamma_init: self.gamma[0] as f32,
        }
    }

    /// The layer on a device, with u, v and γ already present, as after loading a checkpoint.
    pub fn on(&self, gpu: &Gpu) -> Result<OnDevice> {
        let heads = self.vectors.len();
        let stacked = |part: fn(&PowerVectors) -> &Array| {
            let values: Vec<f32> = self.vectors.iter().flat_map(|vectors| part(vectors).to_f32()).collect();
            let length = values.len() / heads;
            let shape = [heads, length];
            Tensor::from_slice(gpu, &values, if heads == 1 { &shape[1..] } else { &shape })
        };
        let mut params = Params::new(gpu);
        let weight = params.add("layer.weight", Role::Matrix, upload(gpu, &self.w)?)?;
        params.add("layer.pc_u", Role::State, stacked(|vectors| &vectors.u)?)?;
        params.add("layer.pc_v", Role::State, stacked(|vectors| &vectors.v)?)?;
        if self.learnable_gamma {
            let gamma: Vec<f32> = self.gamma.iter().map(|&gamma| gamma as f32).collect();
            params.add("layer.pc_gamma", Role::Vector, Tensor::from_slice(gpu, &gamma, &[heads])?)?;
        }
        let preconditioner = Preconditioner::attach(&mut params, self.config(), &[(weight, heads)], 0)?;
        Ok(OnDevice { params, preconditioner, weight })
    }
}

/// A preconditioned matrix on a device, and its layer's results.
pub struct OnDevice {
    pub params: Params,
    pub preconditioner: Preconditioner,
    pub weight: ParamId,
}

/// W_eff, dW, and dγ where γ is trained.
pub struct Results {
    pub effective: Vec<f32>,
    pub dw: Vec<f32>,
    pub dgamma: Option<Vec<f32>>,
}

impl OnDevice {
    pub fn run(&self, dy: &Array) -> Result<Results> {
        let effective = self.preconditioner.effective(&self.params)?;
        let mut gradients = Gradients::new();
        gradients.add(self.weight, upload(self.params.gpu(), dy)?)?;
        let gradients = self.preconditioner.backward(&self.params, &effective, gradients)?;
        let dgamma = self.params.find("layer.pc_gamma").and_then(|id| gradients.get(id));
        Ok(Results {
            effective: effective.params.get(self.weight).expect("a parameter").tensor.to_vec()?,
            dw: gradients.get(self.weight).expect("a gradient of the weight").to_vec()?,
            dgamma: dgamma.map(Tensor::to_vec).transpose()?,
        })
    }

    pub fn values(&self, name: &str) -> Result<Vec<f32>> {
        self.params.get(self.params.id(name)?).expect("a parameter").tensor.to_vec()
    }

    /// u and v after a refresh on the device, heads one after another.
    pub fn refresh(&mut self) -> Result<[Vec<f32>; 2]> {
        self.preconditioner.refresh(&mut self.params)?;
        Ok([self.values("layer.pc_u")?, self.values("layer.pc_v")?])
    }
}

/// An array after rounding to the device's f32.
pub fn round(x: &Array) -> Array {
    x.map(|x| f64::from(x as f32))
}
