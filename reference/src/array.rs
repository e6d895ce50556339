//! A row-major float64 array of any rank, and the few helpers the reference is written with.

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    pub shape: Vec<usize>,
    pub data: Vec<f64>,
}

/// The generator of every test: same seed, same numbers, on every machine.
pub fn seeded(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

impl Array {
    pub fn new(shape: &[usize], data: Vec<f64>) -> Self {
        let numel: usize = shape.iter().product();
        assert_eq!(data.len(), numel, "shape {shape:?} holds {numel} elements");
        Self { shape: shape.to_vec(), data }
    }

    pub fn zeros(shape: &[usize]) -> Self {
        Self::full(shape, 0.0)
    }

    pub fn full(shape: &[usize], value: f64) -> Self {
        Self::new(shape, vec![value; shape.iter().product()])
    }

    pub fn scalar(value: f64) -> Self {
        Self::new(&[1], vec![value])
    }

    pub fn identity(n: usize) -> Self {
        Self::from_fn(&[n, n], |index| if index / n == index % n { 1.0 } else { 0.0 })
    }

    pub fn from_fn(shape: &[usize], f: impl FnMut(usize) -> f64) -> Self {
        Self::new(shape, (0..shape.iter().product()).map(f).collect())
    }

    pub fn from_f32(shape: &[usize], data: &[f32]) -> Self {
        Self::new(shape, data.iter().map(|&x| f64::from(x)).collect())
    }

    pub fn to_f32(&self) -> Vec<f32> {
        self.data.iter().map(|&x| x as f32).collect()
    }

    /// Standard normal (Box–Muller), rounded to f32, so that the device and the reference see the same input.
    pub fn random(shape: &[usize], rng: &mut ChaCha8Rng) -> Self {
        Self::from_fn(shape, |_| {
            let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
            let angle = std::f64::consts::TAU * rng.random::<f64>();
            f64::from((radius * angle.cos()) as f32)
        })
    }

    pub fn len(&self) -> usize {
        self.data.len()
    }

    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// The one element of a scalar.
    pub fn item(&self) -> f64 {
        assert_eq!(self.len(), 1, "item of shape {:?}", self.shape);
        self.data[0]
    }

    /// `[rows, cols]` with every leading dimension folded into the rows.
    pub fn rows_and_cols(&self) -> (usize, usize) {
        let cols = *self.shape.last().expect("an array has a last dimension");
        (self.len() / cols, cols)
    }

    pub fn row(&self, row: usize) -> &[f64] {
        let (_, cols) = self.rows_and_cols();
        &self.data[row * cols..][..cols]
    }

    pub fn row_mut(&mut self, row: usize) -> &mut [f64] {
        let (_, cols) = self.rows_and_cols();
        &mut self.data[row * cols..][..cols]
    }

    pub fn map(&self, f: impl Fn(f64) -> f64) -> Self {
        Self::new(&self.shape, self.data.iter().map(|&x| f(x)).collect())
    }

    pub fn zip(&self, other: &Self, f: impl Fn(f64, f64) -> f64) -> Self {
        assert_eq!(self.shape, other.shape);
        let pairs = self.data.iter().zip(&other.data);
        Self::new(&self.shape, pairs.map(|(&x, &y)| f(x, y)).collect())
    }

    pub fn plus(&self, other: &Self) -> Self {
        self.zip(other, |x, y| x + y)
    }

    pub fn minus(&self, other: &Self) -> Self {
        self.zip(other, |x, y| x - y)
    }

    pub fn times(&self, factor: f64) -> Self {
        self.map(|x| factor * x)
    }

    pub fn reshape(&self, shape: &[usize]) -> Self {
        Self::new(shape, self.data.clone())
    }

    /// ⟨self, other⟩, over all elements.
    pub fn dot(&self, other: &Self) -> f64 {
        assert_eq!(self.shape, other.shape);
        dot(&self.data, &other.data)
    }

    /// The Frobenius norm.
    pub fn norm(&self) -> f64 {
        dot(&self.data, &self.data).sqrt()
    }

    /// `[m, k]` × `[k, n]` → `[m, n]`
    pub fn matmul(&self, other: &Self) -> Self {
        let (&[m, k], &[other_k, n]) = (&self.shape[..], &other.shape[..]) else {
            panic!("matmul of {:?} and {:?}: both must be matrices", self.shape, other.shape)
        };
        assert_eq!(k, other_k, "matmul of {:?} and {:?}", self.shape, other.shape);
        let mut y = Self::zeros(&[m, n]);
        for i in 0..m {
            for l in 0..k {
                add_scaled(&mut y.data[i * n..][..n], self.data[i * k + l], &other.data[l * n..][..n]);
            }
        }
        y
    }

    /// The last two dimensions exchanged, at any rank from 2.
    pub fn transpose(&self) -> Self {
        let rank = self.shape.len();
        let (rows, cols) = (self.shape[rank - 2], self.shape[rank - 1]);
        let mut shape = self.shape.clone();
        shape.swap(rank - 2, rank - 1);
        Self::from_fn(&shape, |index| {
            let (matrix, within) = (index / (rows * cols), index % (rows * cols));
            self.data[matrix * rows * cols + within % rows * cols + within / rows]
        })
    }
}

pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// y += factor·x
pub fn add_scaled(y: &mut [f64], factor: f64, x: &[f64]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += factor * x;
    }
}
