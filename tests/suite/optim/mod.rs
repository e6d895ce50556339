//! Optimizers, clipping and schedules on every device, against golden numbers and the float64 rules.

mod clipping;
mod rules;
mod schedules;
mod stacks;
mod state;

use polytape::optim::{self, AdamConfig, AdamW, Clip, Muon, MuonConfig, NorMuon, Optimizer, WeightDecayScope};
use polytape::spectral::NewtonSchulz;
use polytape::{Gpu, Gradients, Params, Result, Role};

use crate::check::upload;
use crate::reference::Array;
use crate::reference::newton_schulz::Coefficients;
use crate::reference::optimizer::{self, Adam, LrScale, Moments, adamw, auxiliary_adam};

/// An update rule with its settings, for device and reference.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Muon's coefficients and learning-rate scale; `None` is AdamW.
    pub muon: Option<(Coefficients, LrScale)>,
    /// Whether the update is divided by the root of a second moment per row.
    pub row_moments: bool,
    pub adam: Adam,
    pub momentum: f64,
    pub weight_decay: f64,
    pub decay: WeightDecayScope,
}

impl Rule {
    pub fn new(muon: Option<(Coefficients, LrScale)>) -> Self {
        Self { muon, row_moments: false, adam: Adam::default(), momentum: 0.95, weight_decay: 0.1, decay: WeightDecayScope::All }
    }

    pub fn optimizer(&self) -> Box<dyn Optimizer> {
        let Adam { beta1, beta2, eps } = self.adam;
        let adam = AdamConfig { betas: [beta1, beta2], eps, weight_decay: self.weight_decay, weight_decay_scope: self.decay };
        let Some((coefficients, lr_scale)) = self.muon else {
            return Box::new(AdamW::new(adam));
        };
        let config = MuonConfig {
            momentum: self.momentum,
            coefficients: match coefficients {
                Coefficients::Simple => NewtonSchulz::Simple,
                Coefficients::Quintic => NewtonSchulz::Quintic,
                Coefficients::PolarExpress => NewtonSchulz::PolarExpress,
                Coefficients::Aol => NewtonSchulz::Aol,
            },
            newton_schulz_steps: None,
            lr_scale: match lr_scale {
                LrScale::Moonlight => optim::LrScale::Moonlight,
                LrScale::SpectralMup => optim::LrScale::SpectralMup,
                LrScale::KellerJordan => optim::LrScale::KellerJordan,
            },
            adam,
        };
        if self.row_moments { Box::new(NorMuon::new(config)) } else { Box::new(Muon::new(config)) }
    }
}

/// A parameter as the reference updates it.
#[derive(Clone)]
pub struct Parameter {
    pub name: &'static str,
    pub role: Role,
    pub w: Array,
    moments: Moments,
    momentum: Array,
    row_moments: Array,
}

impl Parameter {
    pub fn new(name: &'static str, role: Role, w: Array) -> Self {
        let (moments, momentum, row_moments) = (Moments::zeros(&w.shape), Array::zeros(&w.shape), Array::zeros(&w.shape[..1]));
        Self { name, role, w, moments, momentum, row_moments }
    }

    /// The role alone selects the rule.
    pub fn step(&mut self, rule: &Rule, g: &Array, lr: f64) {
        let decays = rule.decay == WeightDecayScope::All || self.role != Role::Vector;
        let decay = if decays { rule.weight_decay } else { 0.0 };
        match rule.muon {
            None => adamw(&mut self.w, g, &mut self.moments, rule.adam, lr, decay),
            Some((coefficients, lr_scale)) if self.role == Role::Matrix => {
                let settings = optimizer::Muon { momentum: rule.momentum, ..optimizer::Muon::new(coefficients, lr_scale) };
                if rule.row_moments {
                    let state = [&mut self.momentum, &mut self.row_moments];
                    optimizer::normuon(&mut self.w, g, state, settings, rule.adam, lr, decay);
                } else {
                    optimizer::muon(&mut self.w, g, &mut self.momentum, settings, lr, decay);
                }
            }
            Some(_) => auxiliary_adam(&mut self.w, g, &mut self.moments, rule.adam, lr, decay),
        }
    }
}

/// The parameters on a device.
pub fn params_of(gpu: &Gpu, parameters: &[Parameter]) -> Result<Params> {
    let mut params = Params::new(gpu);
    for parameter in parameters {
        params.add(parameter.name, parameter.role, upload(gpu, &parameter.w)?)?;
    }
    Ok(params)
}

/// One device step without clipping; gradients in the order of the parameters.
pub fn step(params: &mut Params, optimizer: &mut dyn Optimizer, gradients: &[Array], lr: f64) -> Result<()> {
    let gradients = gradients_of(params, gradients)?;
    let clip = Clip::new(params.gpu(), &gradients, f32::INFINITY)?;
    optimizer.step(params, gradients, &clip, lr as f32)
}

pub fn gradients_of(params: &Params, arrays: &[Array]) -> Result<Gradients> {
    let mut gradients = Gradients::new();
    for ((id, _), array) in params.iter().zip(arrays) {
        gradients.add(id, upload(params.gpu(), array)?)?;
    }
    Ok(gradients)
}

/// The values of all parameters, in order.
pub fn values(params: &Params) -> Vec<Vec<f32>> {
    params.iter().map(|(_, param)| param.tensor.to_vec().expect("read-back")).collect()
}
