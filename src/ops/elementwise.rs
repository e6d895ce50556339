//! add, sub, mul, scale: elementwise, equal shapes. mul saves both operands, the others nothing.

use crate::error::Result;
use crate::gpu::{Access, Kernel, with_twin};
use crate::tape::Var;
use crate::tensor::{Tensor, map, same_shape};

const SOURCE: &str = include_str!("../../shaders/elementwise.wgsl");
const ONE: &[Access] = &[Access::Read, Access::ReadWrite];
const TWO: &[Access] = &[Access::Read, Access::Read, Access::ReadWrite];

static PRODUCT: Kernel = with_twin!(Kernel::trusted("product", SOURCE, "product", TWO), twins::product);
static SCALED: Kernel = with_twin!(Kernel::trusted("scaled", SOURCE, "scaled", ONE), twins::scaled);
static SCALED_BY: Kernel = with_twin!(Kernel::trusted("scaled_by", SOURCE, "scaled_by", TWO), twins::scaled_by);
static ACCUMULATE_SCALED: Kernel =
    with_twin!(Kernel::trusted("accumulate scaled", SOURCE, "accumulate_scaled", TWO), twins::accumulate_scaled);
static FILLED_BY: Kernel = with_twin!(Kernel::trusted("filled_by", SOURCE, "filled_by", ONE), twins::filled_by);

impl Tensor {
    /// `y = self·rhs`, elementwise. An error unless the shapes are equal.
    ///
    /// ```
    /// # use polytape::*;
    /// # let gpu = Gpu::open(&Default::default())?;
    /// let x = Tensor::from_slice(&gpu, &[2.0, 3.0], &[2])?;
    /// assert_eq!(x.hadamard(&x)?.to_vec()?, [4.0, 9.0]);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn hadamard(&self, rhs: &Tensor) -> Result<Tensor> {
        same_shape("mul", self, rhs)?;
        let y = Tensor::uninitialized(self.gpu(), self.shape())?;
        map(&PRODUCT, &[], &[self, rhs, &y], None, &[1.0, 1.0])?;
        Ok(y)
    }

    /// `y = factor·self`. Errors: only the device's.
    ///
    /// ```
    /// # use polytape::*;
    /// # let gpu = Gpu::open(&Default::default())?;
    /// let x = Tensor::from_slice(&gpu, &[2.0, 3.0], &[2])?;
    /// assert_eq!(x.scaled(-0.5)?.to_vec()?, [-1.0, -1.5]);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn scaled(&self, factor: f32) -> Result<Tensor> {
        let y = Tensor::uninitialized(self.gpu(), self.shape())?;
        map(&SCALED, &[], &[self, &y], None, &[factor, 0.0])?;
        Ok(y)
    }

    /// `y = alpha·factor[0]·self`, with the factor read on the device: no round trip to the host. Errors: only the device's.
    ///
    /// ```
    /// # use polytape::*;
    /// # let gpu = Gpu::open(&Default::default())?;
    /// let x = Tensor::from_slice(&gpu, &[2.0, 3.0], &[2])?;
    /// let factor = Tensor::from_slice(&gpu, &[10.0], &[1])?;
    /// assert_eq!(x.scaled_by(&factor, 0.5)?.to_vec()?, [10.0, 15.0]);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn scaled_by(&self, factor: &Tensor, alpha: f32) -> Result<Tensor> {
        let y = Tensor::uninitialized(self.gpu(), self.shape())?;
        map(&SCALED_BY, &[], &[self, factor, &y], Some(1), &[alpha, 0.0])?;
        Ok(y)
    }

    /// `self + factor[0]·term`, in place if self is not shared.
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
    /// `y = self + rhs`, elementwise. Backward: `dself = drhs = dy`. An error unless the shapes are equal; [`Var::add_row`]
    /// broadcasts.
    ///
    /// ```
    /// # use polytape::*;
    /// # let gpu = Gpu::open(&Default::default())?;
    /// # let params = Params::new(&gpu);
    /// # let tape = Tape::new(&params);
    /// let a = tape.leaf(Tensor::from_slice(&gpu, &[1.0, 2.0], &[2])?);
    /// let y = a.add(&a)?;
    /// assert_eq!(y.value().to_vec()?, [2.0, 4.0]);
    /// let gradients = tape.backward(&y.sum()?, &mut Gradients::new())?;
    /// assert_eq!(gradients.get(&a).unwrap().to_vec()?, [2.0, 2.0]); // one from each side
    /// # Ok::<(), Error>(())
    /// ```
    pub fn add(&self, rhs: &Var<'t>) -> Result<Var<'t>> {
        let y = self.value().weighted_sum_as("add", 1.0, rhs.value(), 1.0)?;
        self.tape().record("add", y, [self, rhs], |dy, _| Ok([Some(dy.clone()), Some(dy)]))
    }

    /// `y = self - rhs`, elementwise. Backward: `dself = dy`, `drhs = -dy`. An error unless the shapes are equal.
    ///
    /// ```
    /// # use polytape::*;
    /// # let gpu = Gpu::open(&Default::default())?;
    /// # let params = Params::new(&gpu);
    /// # let tape = Tape::new(&params);
    /// let a = tape.constant(Tensor::from_slice(&gpu, &[1.0, 2.0], &[2])?);
    /// let b = tape.leaf(Tensor::from_slice(&gpu, &[5.0, 3.0], &[2])?);
    /// let y = a.sub(&b)?;
    /// assert_eq!(y.value().to_vec()?, [-4.0, -1.0]);
    /// let gradients = tape.backward(&y.sum()?, &mut Gradients::new())?;
    /// assert_eq!(gradients.get(&b).unwrap().to_vec()?, [-1.0, -1.0]);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn sub(&self, rhs: &Var<'t>) -> Result<Var<'t>> {
        let y = self.value().weighted_sum_as("sub", 1.0, rhs.value(), -1.0)?;
        self.tape().record("sub", y, [self, rhs], |dy, [_, wants_b]| {
            let db = wants_b.then(|| dy.scaled(-1.0)).transpose()?;
            Ok([Some(dy), db])
        })
    }

    /// `y = self·rhs`, elementwise. Backward: `dself = dy·rhs`, `drhs = dy·self`. An error unless the shapes are equal;
    /// [`Var::mul_row`] broadcasts.
    ///
    /// ```
    /// # use polytape::*;
    /// # let gpu = Gpu::open(&Default::default())?;
    /// # let params = Params::new(&gpu);
    /// # let tape = Tape::new(&params);
    /// let x = tape.leaf(Tensor::from_slice(&gpu, &[2.0, 3.0], &[2])?);
    /// let y = x.mul(&x)?;
    /// assert_eq!(y.value().to_vec()?, [4.0, 9.0]);
    /// let gradients = tape.backward(&y.sum()?, &mut Gradients::new())?;
    /// assert_eq!(gradients.get(&x).unwrap().to_vec()?, [4.0, 6.0]); // 2x
    /// # Ok::<(), Error>(())
    /// ```
    pub fn mul(&self, rhs: &Var<'t>) -> Result<Var<'t>> {
        let (a, b) = (self.value().clone(), rhs.value().clone());
        let y = a.hadamard(&b)?;
        self.tape().record("mul", y, [self, rhs], move |dy, [wants_a, wants_b]| {
            let da = wants_a.then(|| dy.hadamard(&b)).transpose()?;
            let db = wants_b.then(|| dy.hadamard(&a)).transpose()?;
            Ok([da, db])
        })
    }

    /// `y = factor·self`. Backward: `dself = factor·dy`. Errors: only the device's.
    ///
    /// ```
    /// # use polytape::*;
    /// # let gpu = Gpu::open(&Default::default())?;
    /// # let params = Params::new(&gpu);
    /// # let tape = Tape::new(&params);
    /// let x = tape.leaf(Tensor::from_slice(&gpu, &[2.0, 3.0], &[2])?);
    /// let y = x.scale(-0.5)?;
    /// assert_eq!(y.value().to_vec()?, [-1.0, -1.5]);
    /// let gradients = tape.backward(&y.sum()?, &mut Gradients::new())?;
    /// assert_eq!(gradients.get(&x).unwrap().to_vec()?, [-0.5, -0.5]);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn scale(&self, factor: f32) -> Result<Var<'t>> {
        let y = self.value().scaled(factor)?;
        self.tape().record("scale", y, [self], move |dy, _| Ok([Some(dy.scaled(factor)?)]))
    }

    /// The same value as a constant. Backward: nothing flows to self.
    ///
    /// ```
    /// # use polytape::*;
    /// # let gpu = Gpu::open(&Default::default())?;
    /// # let params = Params::new(&gpu);
    /// # let tape = Tape::new(&params);
    /// let x = tape.leaf(Tensor::from_slice(&gpu, &[3.0], &[1])?);
    /// let y = x.mul(&x.stop_gradient())?;
    /// let gradients = tape.backward(&y, &mut Gradients::new())?;
    /// assert_eq!(gradients.get(&x).unwrap().item()?, 3.0); // x·x has 6
    /// # Ok::<(), Error>(())
    /// ```
    pub fn stop_gradient(&self) -> Var<'t> {
        self.tape().constant(self.value().clone())
    }
}

#[cfg(feature = "host")]
mod twins {
    use crate::gpu::host::Host;

    pub(super) fn product(host: &Host<'_>) {
        let (a, b, [y]) = (host.input(0), host.input(1), host.outputs());
        host.map(
            2,
            [y],
            #[inline(always)]
            |range, [y]| {
                for ((y, a), b) in y.iter_mut().zip(&a[range.clone()]).zip(&b[range]) {
                    *y = a * b;
                }
            },
        );
    }

    pub(super) fn scaled(host: &Host<'_>) {
        let [y] = host.outputs();
        multiply(host, host.number(2), y);
    }

    pub(super) fn scaled_by(host: &Host<'_>) {
        let [y] = host.outputs();
        multiply(host, host.number(2) * host.input(1)[0], y);
    }

    fn multiply(host: &Host<'_>, factor: f32, y: &mut [f32]) {
        let a = host.input(0);
        host.map(
            2,
            [y],
            #[inline(always)]
            |range, [y]| {
                for (y, a) in y.iter_mut().zip(&a[range]) {
                    *y = factor * a;
                }
            },
        );
    }

    /// The product is rounded first, as in [`scaled_by`].
    pub(super) fn accumulate_scaled(host: &Host<'_>) {
        let (a, factor, [sum]) = (host.input(0), host.input(1)[0], host.outputs());
        host.map(
            2,
            [sum],
            #[inline(always)]
            |range, [sum]| {
                for (sum, a) in sum.iter_mut().zip(&a[range]) {
                    *sum += factor * a;
                }
            },
        );
    }

    pub(super) fn filled_by(host: &Host<'_>) {
        let (value, [y]) = (host.number(2) * host.input(0)[0], host.outputs());
        host.map(
            1,
            [y],
            #[inline(always)]
            |_, [y]| y.fill(value),
        );
    }
}
