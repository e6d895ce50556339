//! Values as bytes, and copies of ranges of them: what travels between ranks.

use super::Tensor;
use crate::error::Result;
use crate::gpu::{Gpu, Slice};

impl Tensor {
    /// Uploads values given as bytes, in this machine's order.
    pub(crate) fn from_bytes(gpu: &Gpu, bytes: &[u8], shape: &[usize]) -> Result<Self> {
        match bytemuck::try_cast_slice(bytes) {
            Ok(values) => Self::from_slice(gpu, values, shape),
            Err(_) => Self::from_slice(gpu, &bytemuck::pod_collect_to_vec::<u8, f32>(bytes), shape),
        }
    }

    /// `count` values from `first` on, for a copy: unlike a binding's, they may begin anywhere.
    pub(crate) fn range(&self, first: usize, count: usize) -> Slice<'_> {
        let whole = self.slice();
        Slice { offset: whole.offset + 4 * first as u64, size: 4 * count as u64, ..whole }
    }

    /// Copies all of self over the values of `target` from `first` on.
    pub(crate) fn copy_to(&self, target: &Tensor, first: usize) -> Result<()> {
        let to = target.range(first, self.len());
        self.gpu().copy(self.slice(), to.buffer, to.offset)
    }

    /// A copy of the values from `first` on, in that shape.
    pub(crate) fn copy_of(&self, first: usize, shape: &[usize]) -> Result<Self> {
        let copy = Self::uninitialized(self.gpu(), shape)?;
        let to = copy.slice();
        self.gpu().copy(self.range(first, copy.len()), to.buffer, to.offset)?;
        Ok(copy)
    }
}
