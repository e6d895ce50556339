//! Sums of two tensors of equal shape, in place if a buffer is not shared.

use std::sync::Arc;

use super::{Tensor, map};
use crate::error::{Error, Result};
use crate::gpu::{Access, Kernel, with_twin};

const SOURCE: &str = include_str!("../../shaders/elementwise.wgsl");

static WEIGHTED_SUM: Kernel = with_twin!(
    Kernel::trusted("weighted_sum", SOURCE, "weighted_sum", &[Access::Read, Access::Read, Access::ReadWrite]),
    twins::weighted_sum
);
static ACCUMULATE: Kernel =
    with_twin!(Kernel::trusted("accumulate", SOURCE, "accumulate", &[Access::Read, Access::ReadWrite]), twins::accumulate);

/// A shape error of `op` unless the shapes are equal.
pub(crate) fn same_shape(op: &'static str, a: &Tensor, b: &Tensor) -> Result<()> {
    if a.shape() == b.shape() {
        return Ok(());
    }
    Err(Error::shape(op, &[a.shape(), b.shape()], format!("{:?} and {:?}: the shapes differ", a.shape(), b.shape())))
}

impl Tensor {
    /// `y = alpha·self + beta·rhs`, elementwise. An error unless the shapes are equal.
    ///
    /// ```
    /// # use polytape::*;
    /// # let gpu = Gpu::open(&Default::default())?;
    /// let x = Tensor::from_slice(&gpu, &[1.0, 2.0], &[2])?;
    /// let y = Tensor::from_slice(&gpu, &[10.0, 20.0], &[2])?;
    /// assert_eq!(x.weighted_sum(2.0, &y, -1.0)?.to_vec()?, [-8.0, -16.0]);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn weighted_sum(&self, alpha: f32, rhs: &Tensor, beta: f32) -> Result<Tensor> {
        self.weighted_sum_as("weighted_sum", alpha, rhs, beta)
    }

    pub(crate) fn weighted_sum_as(&self, op: &'static str, alpha: f32, rhs: &Tensor, beta: f32) -> Result<Tensor> {
        same_shape(op, self, rhs)?;
        let y = Tensor::uninitialized(self.gpu(), self.shape())?;
        map(&WEIGHTED_SUM, &[], &[self, rhs, &y], None, &[alpha, beta])?;
        Ok(y)
    }

    /// self + rhs, in place in self, or else in rhs, if not shared; otherwise, and of parts of one buffer, a new tensor.
    pub(crate) fn accumulate(self, rhs: Tensor) -> Result<Tensor> {
        same_shape("accumulate", &self, &rhs)?;
        let (sum, term) = if self.is_unique() { (self, rhs) } else { (rhs, self) };
        // No kernel both reads and writes a buffer.
        let is_one_buffer = Arc::ptr_eq(&sum.place.buffer, &term.place.buffer);
        if is_one_buffer || !sum.is_unique() {
            return sum.weighted_sum(1.0, &term, 1.0);
        }
        map(&ACCUMULATE, &[], &[&term, &sum], None, &[1.0, 1.0])?;
        Ok(sum)
    }
}

#[cfg(feature = "host")]
mod twins {
    use crate::gpu::host::Host;

    pub(super) fn weighted_sum(host: &Host<'_>) {
        let (a, b, [y]) = (host.input(0), host.input(1), host.outputs());
        let (alpha, beta) = (host.number(2), host.number(3));
        host.map(
            2,
            [y],
            #[inline(always)]
            |range, [y]| {
                for ((y, a), b) in y.iter_mut().zip(&a[range.clone()]).zip(&b[range]) {
                    *y = alpha * a + beta * b;
                }
            },
        );
    }

    pub(super) fn accumulate(host: &Host<'_>) {
        let (term, [sum]) = (host.input(0), host.outputs());
        host.map(
            2,
            [sum],
            #[inline(always)]
            |range, [sum]| {
                for (sum, term) in sum.iter_mut().zip(&term[range]) {
                    *sum += term;
                }
            },
        );
    }
}
