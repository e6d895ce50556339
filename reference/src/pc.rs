//! The PC layer: W_eff = γ·stop(s)·N·P(NᵀN), N = W/s, for a tall W; a wide W is the transpose of a tall one.
//! s = uᵀWv + eps with u and v constant for the gradient; stop(s) is the same number without gradient.

use rand::rngs::ChaCha8Rng;

use super::array::Array;
use super::layout::{concat, slice};

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Norm {
    /// s = uᵀWv + eps
    Spectral,
    /// s = ‖W‖_F + eps
    Frobenius,
    /// s = 1
    None,
}

#[derive(Clone, Debug)]
pub struct Pc {
    /// a0, a1, … of P(G) = a0·I + a1·G + …
    pub coefficients: Vec<f64>,
    pub norm: Norm,
    /// Multiplies by stop(s) after the polynomial.
    pub recover_norm: bool,
    pub eps: f64,
    pub power_iterations: usize,
}

impl Pc {
    pub fn of_level(level: usize) -> Self {
        Self {
            coefficients: level_coefficients(level).to_vec(),
            norm: Norm::Spectral,
            recover_norm: true,
            eps: 1e-7,
            power_iterations: 10,
        }
    }
}

pub fn level_coefficients(level: usize) -> &'static [f64] {
    match level {
        0 => &[1.0],
        1 => &[1.507, -0.507],
        2 => &[2.083, -1.643, 0.560],
        3 => &[2.909, -4.649, 4.023, -1.283],
        4 => &[3.625, -9.261, 14.097, -10.351, 2.890],
        _ => panic!("levels go from 0 to 4, not {level}"),
    }
}

/// The estimates of the leading singular vectors: u `[rows]`, v `[cols]`.
#[derive(Clone, Debug, PartialEq)]
pub struct PowerVectors {
    pub u: Array,
    pub v: Array,
}

impl PowerVectors {
    pub fn random(rows: usize, cols: usize, rng: &mut ChaCha8Rng) -> Self {
        let unit = |x: Array| x.times(1.0 / x.norm());
        Self { u: unit(Array::random(&[rows], rng)), v: unit(Array::random(&[cols], rng)) }
    }
}

/// Power iteration: v ← Wᵀu/(‖Wᵀu‖ + eps), u ← Wv/(‖Wv‖ + eps).
pub fn refresh(w: &Array, vectors: &mut PowerVectors, pc: &Pc) {
    let normalised = |x: Array| x.times(1.0 / (x.norm() + pc.eps));
    let wt = w.transpose();
    for _ in 0..pc.power_iterations {
        vectors.v = normalised(apply(&wt, &vectors.u));
        vectors.u = normalised(apply(w, &vectors.v));
    }
}

fn apply(w: &Array, x: &Array) -> Array {
    w.matmul(&x.reshape(&[x.len(), 1])).reshape(&[w.shape[0]])
}

/// s, the number that W is divided by.
pub fn divisor(w: &Array, vectors: &PowerVectors, pc: &Pc) -> f64 {
    match pc.norm {
        Norm::Spectral => vectors.u.dot(&apply(w, &vectors.v)) + pc.eps,
        Norm::Frobenius => w.norm() + pc.eps,
        Norm::None => 1.0,
    }
}

/// ds/dW, for norms that have one.
fn divisor_gradient(w: &Array, vectors: &PowerVectors, norm: Norm) -> Option<Array> {
    let PowerVectors { u, v } = vectors;
    match norm {
        Norm::Spectral => Some(u.reshape(&[u.len(), 1]).matmul(&v.reshape(&[1, v.len()]))),
        Norm::Frobenius => Some(w.times(1.0 / w.norm())),
        Norm::None => None,
    }
}

pub fn forward(w: &Array, gamma: f64, vectors: &PowerVectors, pc: &Pc) -> Array {
    forward_recovering(w, gamma, divisor(w, vectors, pc), vectors, pc)
}

/// The forward with stop(s) given as a number: finite differences must hold it fixed.
pub fn forward_recovering(w: &Array, gamma: f64, stopped: f64, vectors: &PowerVectors, pc: &Pc) -> Array {
    let n = w.times(1.0 / divisor(w, vectors, pc));
    odd_polynomial(&n, &pc.coefficients).times(gamma * recovery(stopped, pc))
}

fn recovery(stopped: f64, pc: &Pc) -> f64 {
    if pc.recover_norm { stopped } else { 1.0 }
}

/// With E = dy, H = γ·stop(s)·E, Y = N·P(G), and M the gradient of N: dW = (M − ⟨M, N⟩·ds/dW)/s and dγ = stop(s)·⟨E, Y⟩.
/// Returns dw and dgamma `[1]`.
pub fn vjp(w: &Array, gamma: f64, vectors: &PowerVectors, pc: &Pc, dy: &Array) -> [Array; 2] {
    let s = divisor(w, vectors, pc);
    let recovered = recovery(s, pc);
    let n = w.times(1.0 / s);
    let dgamma = recovered * dy.dot(&odd_polynomial(&n, &pc.coefficients));
    let m = odd_polynomial_vjp(&n, &pc.coefficients, &dy.times(gamma * recovered));
    let through_divisor = match divisor_gradient(w, vectors, pc.norm) {
        Some(ds) => ds.times(m.dot(&n)),
        None => Array::zeros(&w.shape),
    };
    [m.minus(&through_divisor).times(1.0 / s), Array::scalar(dgamma)]
}

/// N·P(NᵀN) if N is tall, P(NNᵀ)·N if it is wide: one and the same matrix.
pub fn odd_polynomial(n: &Array, coefficients: &[f64]) -> Array {
    if n.shape[0] < n.shape[1] {
        return odd_polynomial(&n.transpose(), coefficients).transpose();
    }
    let gram = n.transpose().matmul(n);
    n.matmul(&horner(&gram, coefficients)[0])
}

/// R = NᵀH, D = Σ_{i<L} Gⁱ·R·Q_{i+1}, M = H·P(G) + N·(D + Dᵀ).
pub fn odd_polynomial_vjp(n: &Array, coefficients: &[f64], h: &Array) -> Array {
    if n.shape[0] < n.shape[1] {
        return odd_polynomial_vjp(&n.transpose(), coefficients, &h.transpose()).transpose();
    }
    let gram = n.transpose().matmul(n);
    let q = horner(&gram, coefficients);
    let mut d = Array::zeros(&gram.shape);
    let mut power_times_r = n.transpose().matmul(h); // Gⁱ·R
    for q in &q[1..] {
        d = d.plus(&power_times_r.matmul(q));
        power_times_r = gram.matmul(&power_times_r);
    }
    h.matmul(&q[0]).plus(&n.matmul(&d.plus(&d.transpose())))
}

/// Q_L = a_L·I, Q_i = a_i·I + G·Q_{i+1}; Q_0 = P(G).
fn horner(gram: &Array, coefficients: &[f64]) -> Vec<Array> {
    let identity = Array::identity(gram.shape[0]);
    let mut q: Vec<Array> = Vec::new();
    for a in coefficients.iter().rev() {
        let constant = identity.times(*a);
        q.push(match q.last() {
            Some(inner) => constant.plus(&gram.matmul(inner)),
            None => constant,
        });
    }
    q.reverse();
    q
}

/// Per head: every block of W's rows is a matrix of its own, with its own γ, u and v.
pub fn forward_per_head(w: &Array, gamma: &[f64], vectors: &[PowerVectors], pc: &Pc) -> Array {
    let block = |(head, vectors)| forward(&rows_of_head(w, head, gamma.len()), gamma[head], vectors, pc);
    let blocks: Vec<Array> = vectors.iter().enumerate().map(block).collect();
    concat(&blocks.iter().collect::<Vec<_>>(), 0)
}

/// Returns dw and dgamma `[heads]`.
pub fn vjp_per_head(w: &Array, gamma: &[f64], vectors: &[PowerVectors], pc: &Pc, dy: &Array) -> [Array; 2] {
    let (mut dw, mut dgamma) = (Vec::new(), Vec::new());
    for (head, vectors) in vectors.iter().enumerate() {
        let block = |x| rows_of_head(x, head, gamma.len());
        let [of_w, of_gamma] = vjp(&block(w), gamma[head], vectors, pc, &block(dy));
        dw.push(of_w);
        dgamma.push(of_gamma);
    }
    [dw, dgamma].map(|blocks| concat(&blocks.iter().collect::<Vec<_>>(), 0))
}

pub fn refresh_per_head(w: &Array, vectors: &mut [PowerVectors], pc: &Pc) {
    let heads = vectors.len();
    for (head, vectors) in vectors.iter_mut().enumerate() {
        refresh(&rows_of_head(w, head, heads), vectors, pc);
    }
}

fn rows_of_head(w: &Array, head: usize, heads: usize) -> Array {
    let head_dim = w.shape[0] / heads;
    slice(w, 0, head * head_dim..(head + 1) * head_dim)
}

#[cfg(test)]
#[path = "pc_tests.rs"]
mod tests;
