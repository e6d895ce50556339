//! add, sub, mul, scale. Same shapes on both sides; mul saves both, the others nothing.

use crate::error::Result;
use crate::gpu::{Access, Kernel};
use crate::tape::Var;
use crate::tensor::{Tensor, map, same_shape};

const SOURCE: &str = include_str!("../../shaders/elementwise.wgsl");
const ONE: &[Access] = &[Access::Read, Access::ReadWrite];
const TWO: &[Access] = &[Access::Read, Access::Read, Access::ReadWrite];

static PRODUCT: Kernel = Kernel::trusted("product", SOURCE, "product", TWO);
static SCALED: Kernel = Kernel::trusted("scaled", SOURCE, "scaled", ONE);
static SCALED_BY: Kernel = Kernel::trusted("scaled_by", SOURCE, "scaled_by", TWO);
static ACCUMULATE_SCALED: Kernel = Kernel::trusted("accumulate scaled", SOURCE, "accumulate_scaled", TWO);
static FILLED_BY: Kernel = Kernel::trusted("filled_by", SOURCE, "filled_by", ONE);

impl Tensor {
    /// self·rhs, element by element.
    pub fn hadamard(&self, rhs: &Tensor) -> Result<Tensor> {
        same_shape("mul", self, rhs)?;
        let y = Tensor::uninitialized(self.gpu(), self.shape())?;
        map(&PRODUCT, &[], &[self, rhs, &y], None, &[1.0, 1.0])?;
        Ok(y)
    }

    /// factor·self.
    pub fn scaled(&self, factor: f32) -> Result<Tensor> {
        let y = Tensor::uninitialized(self.gpu(), self.shape())?;
        map(&SCALED, &[], &[self, &y], None, &[factor, 0.0])?;
        Ok(y)
    }

    /// `alpha·factor[0]·self`, where factor stays on the device.
    pub fn scaled_by(&self, factor: &Tensor, alpha: f32) -> Result<Tensor> {
        let y = Tensor::uninitialized(self.gpu(), self.shape())?;
        map(&SCALED_BY, &[], &[self, factor, &y], Some(1), &[alpha, 0.0])?;
        Ok(y)
    }

    /// `self + factor[0]·term`: in place where self is not shared.
    pub(crate) fn plus_scaled_by(self, term: &Tensor, factor: &Tensor) -> Result<Tensor> {
        same_shape("accumulate", &self, term)?;
        let sum = self.into_unique()?;
        map(&ACCUMULATE_SCALED, &[], &[term, factor, &sum], Some(1), &[1.0, 1.0])?;
        Ok(sum)
    }

    /// A tensor of `shape` filled with alpha·self[0].
    pub(crate) fn spread(&self, shape: &[usize], alpha: f32) -> Result<Tensor> {
        let y = Tensor::uninitialized(self.gpu(), shape)?;
        map(&FILLED_BY, &[], &[self, &y], Some(0), &[alpha, 0.0])?;
        Ok(y)
    }
}

impl<'t> Var<'t> {
    /// self + rhs, of the same shape.
    pub fn add(&self, rhs: &Var<'t>) -> Result<Var<'t>> {
        let y = self.value().weighted_sum_as("add", 1.0, rhs.value(), 1.0)?;
        self.tape().record("add", y, [self, rhs], |dy, _| Ok([Some(dy.clone()), Some(dy)]))
    }

    /// self - rhs, of the same shape.
    pub fn sub(&self, rhs: &Var<'t>) -> Result<Var<'t>> {
        let y = self.value().weighted_sum_as("sub", 1.0, rhs.value(), -1.0)?;
        self.tape().record("sub", y, [self, rhs], |dy, [_, wants_b]| {
            let db = wants_b.then(|| dy.scaled(-1.0)).transpose()?;
            Ok([Some(dy), db])
        })
    }

    /// self · rhs, element by element, of the same shape.
    pub fn mul(&self, rhs: &Var<'t>) -> Result<Var<'t>> {
        let (a, b) = (self.value().clone(), rhs.value().clone());
        let y = a.hadamard(&b)?;
        self.tape().record("mul", y, [self, rhs], move |dy, [wants_a, wants_b]| {
            let da = wants_a.then(|| dy.hadamard(&b)).transpose()?;
            let db = wants_b.then(|| dy.hadamard(&a)).transpose()?;
            Ok([da, db])
        })
    }

    /// factor · self.
    pub fn scale(&self, factor: f32) -> Result<Var<'t>> {
        let y = self.value().scaled(factor)?;
        self.tape().record("scale", y, [self], move |dy, _| Ok([Some(dy.scaled(factor)?)]))
    }

    /// The same value as a constant: nothing flows back through it.
    pub fn stop_gradient(&self) -> Var<'t> {
        self.tape().constant(self.value().clone())
    }
}
