//! Clipping to a global L2 norm: g·min(1, max/(‖g‖+1e-6)), where ‖g‖ is the norm of all gradients together. Divides by the loss scale on
//! the way.

use crate::error::Result;
use crate::gpu::{Access, Gpu, Kernel, Launch, with_twin};
use crate::ops::{self, final_sum, partial_count};
use crate::params::{Gradients, ParamId};
use crate::tensor::Tensor;

const SOURCE: &str = include_str!("../../shaders/norm.wgsl");

static CLIP: Kernel = with_twin!(Kernel::trusted("clip", SOURCE, "clip", &[Access::Read, Access::ReadWrite]), twins::clip);

/// The norm of all gradients and the factor that clips it, on the device: optimizers read the factor there.
#[derive(Debug, Clone)]
pub struct Clip {
    /// [norm, factor]
    values: Tensor,
    /// Partial sums of squares of all gradients, one after the other.
    partials: Tensor,
    /// Which gradient owns how many of them.
    owners: Vec<(ParamId, usize)>,
}

impl Clip {
    /// The norm of `gradients` and the factor that clips it to `max_norm`, which may be infinite.
    pub fn new(gpu: &Gpu, gradients: &Gradients, max_norm: f32) -> Result<Self> {
        Self::with_loss_scale(gpu, gradients, max_norm, 1.0)
    }

    /// [`Clip::new`] for gradients of `loss_scale` times the loss: the norm is that of the unscaled gradients, and the factor both
    /// unscales and clips.
    pub fn with_loss_scale(gpu: &Gpu, gradients: &Gradients, max_norm: f32, loss_scale: f32) -> Result<Self> {
        let partials = Self::partials(gpu, gradients)?;
        let owners = gradients.iter().map(|(id, tensor)| (id, partial_count(tensor))).collect();
        Self::of_partials(partials, owners, max_norm, loss_scale)
    }

    /// Partial sums of squares of all gradients, one after the other.
    pub(crate) fn partials(gpu: &Gpu, gradients: &Gradients) -> Result<Tensor> {
        partial_squares(gpu, &gradients.iter().map(|(_, tensor)| tensor).collect::<Vec<_>>())
    }

    /// [`Clip::with_loss_scale`] of partial sums of which each parameter has that many.
    pub(crate) fn of_partials(partials: Tensor, owners: Vec<(ParamId, usize)>, max_norm: f32, loss_scale: f32) -> Result<Self> {
        let gpu = partials.gpu();
        let values = Tensor::uninitialized(gpu, &[2])?;
        scalar(gpu, &CLIP, &partials, &values, [max_norm.min(f32::MAX), 1.0 / loss_scale])?;
        Ok(Self { values, partials, owners })
    }

    /// Waits for the device: the first parameter whose gradient holds an infinity or a NaN.
    pub fn first_non_finite(&self) -> Result<Option<ParamId>> {
        let partials = self.partials.to_vec()?;
        let mut rest = partials.as_slice();
        for &(id, count) in &self.owners {
            let (own, others) = rest.split_at(count);
            if own.iter().any(|square| !square.is_finite()) {
                return Ok(Some(id));
            }
            rest = others;
        }
        Ok(None)
    }

    /// [norm before clipping, factor that clips and unscales], still on the device.
    pub fn values(&self) -> &Tensor {
        &self.values
    }
}

/// Partial sums of the squared elements of all tensors.
fn partial_squares(gpu: &Gpu, tensors: &[&Tensor]) -> Result<Tensor> {
    let count: usize = tensors.iter().map(|tensor| partial_count(tensor)).sum();
    let partials = Tensor::zeros(gpu, &[count.max(1)])?;
    ops::partial_squares(tensors, &partials)?;
    Ok(partials)
}

/// One of the kernels on the sum of `partials`.
fn scalar(gpu: &Gpu, kernel: &Kernel, partials: &Tensor, out: &Tensor, arguments: [f32; 2]) -> Result<()> {
    let squares = Tensor::uninitialized(gpu, &[1])?;
    final_sum(partials, 1.0, &squares, 0)?;
    gpu.launch(&Launch {
        kernel,
        constants: &[],
        buffers: &[squares.slice(), out.slice()],
        arguments: bytemuck::cast_slice(&arguments),
        workgroups: [1, 1, 1],
        iterations: 0,
        work: 0,
    })
}

#[cfg(feature = "host")]
mod twins {
    use crate::gpu::host::Host;

    pub(super) fn clip(host: &Host<'_>) {
        let (squares, [out]) = (host.input(0), host.outputs());
        let (most, unscale) = (host.number(0), host.number(1));
        let norm = unscale * squares[0].sqrt();
        out[0] = norm;
        out[1] = if norm.is_finite() { unscale * (most / (norm + 1e-6)).min(1.0) } else { norm };
    }
}
