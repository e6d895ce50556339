//! AdamW, Muon with its auxiliary Adam rule, and clipping to a global norm. `lr` is the step's learning rate, schedule included.

use std::collections::BTreeMap;

use super::array::Array;
use super::newton_schulz::{Coefficients, newton_schulz};

#[derive(Clone, Copy, Debug)]
pub struct Adam {
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
}

impl Default for Adam {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.95, eps: 1e-8 }
    }
}

/// The running means of one parameter.
#[derive(Clone, Debug)]
pub struct Moments {
    pub m: Array,
    pub v: Array,
    pub steps: i32,
}

impl Moments {
    pub fn zeros(shape: &[usize]) -> Self {
        Self { m: Array::zeros(shape), v: Array::zeros(shape), steps: 0 }
    }

    /// Takes in one gradient and returns the two bias corrections 1 − βᵗ.
    fn update(&mut self, g: &Array, adam: Adam) -> (f64, f64) {
        let Adam { beta1, beta2, .. } = adam;
        self.m = self.m.zip(g, |m, g| m + (1.0 - beta1) * (g - m));
        self.v = self.v.zip(g, |v, g| v + (1.0 - beta2) * (g * g - v));
        self.steps += 1;
        (1.0 - beta1.powi(self.steps), 1.0 - beta2.powi(self.steps))
    }
}

/// w ← w·(1 − lr·decay) − lr·(m/c1)/(√(v/c2) + eps)
pub fn adamw(w: &mut Array, g: &Array, moments: &mut Moments, adam: Adam, lr: f64, decay: f64) {
    let (c1, c2) = moments.update(g, adam);
    let direction = moments.m.zip(&moments.v, |m, v| m / c1 / ((v / c2).sqrt() + adam.eps));
    descend(w, &direction, lr, lr * decay);
}

/// Muon's rule for other parameters, with eps inside the bias correction: w ← w·(1 − lr·decay) − lr·(√c2/c1)·m/(√v + eps)
pub fn auxiliary_adam(w: &mut Array, g: &Array, moments: &mut Moments, adam: Adam, lr: f64, decay: f64) {
    let (c1, c2) = moments.update(g, adam);
    let direction = moments.m.zip(&moments.v, |m, v| c2.sqrt() / c1 * m / (v.sqrt() + adam.eps));
    descend(w, &direction, lr, lr * decay);
}

fn descend(w: &mut Array, direction: &Array, lr: f64, shrink: f64) {
    *w = w.zip(direction, |w, d| w * (1.0 - shrink) - lr * d);
}

/// How the update of a matrix [r, c] scales the learning rate.
#[derive(Clone, Copy, Debug)]
pub enum LrScale {
    /// 0.2·√max(r, c)
    Moonlight,
    /// √(r/c)
    SpectralMup,
    /// √max(1, r/c)
    KellerJordan,
}

impl LrScale {
    pub fn of(self, rows: usize, cols: usize) -> f64 {
        let (r, c) = (rows as f64, cols as f64);
        match self {
            Self::Moonlight => 0.2 * r.max(c).sqrt(),
            Self::SpectralMup => (r / c).sqrt(),
            Self::KellerJordan => (r / c).max(1.0).sqrt(),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Muon {
    pub momentum: f64,
    pub coefficients: Coefficients,
    pub steps: usize,
    pub lr_scale: LrScale,
}

impl Muon {
    pub fn new(coefficients: Coefficients, lr_scale: LrScale) -> Self {
        Self { momentum: 0.95, coefficients, steps: coefficients.default_steps(), lr_scale }
    }
}

/// m ← μ·m + g; d = g + μ·m; w ← w·(1 − lr·decay) − lr·lr_scale·newton_schulz(d). `m` is this parameter's state, zero at first.
pub fn muon(w: &mut Array, g: &Array, m: &mut Array, muon: Muon, lr: f64, decay: f64) {
    *m = m.zip(g, |m, g| muon.momentum * m + g);
    let d = g.zip(m, |g, m| g + muon.momentum * m);
    let x = newton_schulz(&d, muon.coefficients, muon.steps);
    descend(w, &x, lr * muon.lr_scale.of(w.shape[0], w.shape[1]), lr * decay);
}

/// Muon's direction o, its rows divided by the root of their second moment v `[rows]`: v ← β2·v + (1 − β2)·mean_c(o²),
/// ô = o/(√v + eps), w ← w·(1 − lr·decay) − lr·lr_scale·√min(r, c)/‖ô‖·ô (arXiv 2510.05491).
pub fn normuon(w: &mut Array, g: &Array, [m, v]: [&mut Array; 2], muon: Muon, adam: Adam, lr: f64, decay: f64) {
    *m = m.zip(g, |m, g| muon.momentum * m + g);
    let d = g.zip(m, |g, m| g + muon.momentum * m);
    let mut o = newton_schulz(&d, muon.coefficients, muon.steps);
    let columns = w.shape[1];
    for (row, v) in o.data.chunks_mut(columns).zip(&mut v.data) {
        let mean = row.iter().map(|o| o * o).sum::<f64>() / columns as f64;
        *v += (1.0 - adam.beta2) * (mean - *v);
        row.iter_mut().for_each(|o| *o /= v.sqrt() + adam.eps);
    }
    let (rows, norm) = (w.shape[0], o.norm());
    let scale = if norm == 0.0 { 0.0 } else { (rows.min(columns) as f64).sqrt() / norm };
    descend(w, &o, lr * scale * muon.lr_scale.of(rows, columns), lr * decay);
}

pub fn global_norm(gradients: &BTreeMap<String, Array>) -> f64 {
    gradients.values().map(|g| g.dot(g)).sum::<f64>().sqrt()
}

/// g ← g·min(1, max/(‖g‖ + 1e-6)) over all parameters together; returns ‖g‖ before clipping.
pub fn clip(gradients: &mut BTreeMap<String, Array>, max: f64) -> f64 {
    let norm = global_norm(gradients);
    let factor = (max / (norm + 1e-6)).min(1.0);
    gradients.values_mut().for_each(|g| *g = g.times(factor));
    norm
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::differences::{assert_near, random_arrays};
    use crate::golden::{self, OptimizerCase};

    /// One update of the parameter: gradient, learning rate.
    type Update = Box<dyn FnMut(&mut Array, &Array, f64)>;

    fn update_of(case: &OptimizerCase) -> Update {
        let adam = Adam { beta1: case.betas[0], beta2: case.betas[1], eps: case.eps };
        let (decay, mut moments) = (case.weight_decay, Moments::zeros(&case.shape));
        let (coefficients, lr_scale) = match case.rule.as_str() {
            "adamw" => return Box::new(move |w, g, lr| adamw(w, g, &mut moments, adam, lr, decay)),
            "muon_auxiliary_adamw" => {
                return Box::new(move |w, g, lr| auxiliary_adam(w, g, &mut moments, adam, lr, decay));
            }
            "muon_simple_moonlight" => (Coefficients::Simple, LrScale::Moonlight),
            "muon_polar_express_spectral_mup" => (Coefficients::PolarExpress, LrScale::SpectralMup),
            "muon_quintic_keller_jordan" => (Coefficients::Quintic, LrScale::KellerJordan),
            rule => panic!("unknown rule {rule}"),
        };
        let settings = Muon { momentum: case.momentum, ..Muon::new(coefficients, lr_scale) };
        let mut momentum = Array::zeros(&case.shape);
        Box::new(move |w, g, lr| muon(w, g, &mut momentum, settings, lr, decay))
    }

    #[test]
    fn golden_steps_are_reproduced() {
        for case in golden::optimizers() {
            let mut update = update_of(&case);
            let mut w = golden::f32_array(&case.shape, &case.p0);
            for (t, (g, want)) in case.grads.iter().zip(&case.p).enumerate() {
                update(&mut w, &golden::f32_array(&case.shape, g), case.lr_at(t));
                let want = Array::new(&case.shape, want.clone());
                // 12 printed digits
                assert_near(&format!("{} step {t}", case.rule), &w, &want, 1e-11);
            }
        }
    }

    #[test]
    fn normuon_moves_every_row_alike_at_first_and_by_the_rms_of_adam() {
        let [g] = random_arrays(113, [&[6, 4]]);
        let g = Array::new(&[6, 4], g.data.iter().enumerate().map(|(i, x)| x * 10f64.powi((i / 4) as i32)).collect());
        let (mut w, mut m, mut v) = (Array::zeros(&[6, 4]), Array::zeros(&[6, 4]), Array::zeros(&[6]));
        let adam = Adam { eps: 0.0, ..Adam::default() };
        normuon(&mut w, &g, [&mut m, &mut v], Muon::new(Coefficients::Simple, LrScale::Moonlight), adam, 0.1, 0.0);
        let rms = w.data.chunks(4).map(|row| (row.iter().map(|x| x * x).sum::<f64>() / 4.0).sqrt());
        rms.for_each(|rms| assert!((rms - 0.1 * 0.2).abs() < 1e-12, "{rms}"));
    }

    #[test]
    fn clipping_bounds_the_norm_and_leaves_small_gradients_alone() {
        let [a, b] = random_arrays(111, [&[3, 4], &[5]]);
        let gradients = BTreeMap::from([("a".to_string(), a), ("b".to_string(), b)]);
        let norm = global_norm(&gradients);
        let mut clipped = gradients.clone();
        assert_eq!(clip(&mut clipped, 1.0), norm);
        assert!((global_norm(&clipped) - norm / (norm + 1e-6)).abs() < 1e-14);
        let mut untouched = gradients.clone();
        clip(&mut untouched, 2.0 * norm);
        assert_eq!(untouched, gradients);
    }
}
