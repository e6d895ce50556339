//! Clipping to a global L2 norm: g·min(1, max/(‖g‖+1e-6)), where ‖g‖ goes over all gradients together.

use crate::error::Result;
use crate::gpu::{Access, Gpu, Kernel, Launch};
use crate::ops::{Term, final_sum, partial_count, partial_sums};
use crate::params::Gradients;
use crate::tensor::Tensor;

const SOURCE: &str = include_str!("../../shaders/norm.wgsl");

static CLIP: Kernel = Kernel::trusted("clip", SOURCE, "clip", &[Access::Read, Access::ReadWrite]);
static INVERSE: Kernel = Kernel::trusted("inverse norm", SOURCE, "inverse", &[Access::Read, Access::ReadWrite]);

/// The norm of all gradients and the factor that clips it, on the device: optimizers read the factor there.
#[derive(Debug, Clone)]
pub struct Clip {
    /// [norm, factor]
    values: Tensor,
}

impl Clip {
    /// Measures `gradients`; `max_norm` may be infinite.
    pub fn new(gpu: &Gpu, gradients: &Gradients, max_norm: f32) -> Result<Self> {
        let tensors: Vec<&Tensor> = gradients.iter().map(|(_, tensor)| tensor).collect();
        let values = Tensor::uninitialized(gpu, &[2])?;
        scalar(gpu, &CLIP, &sum_of_squares(gpu, &tensors)?, &values, max_norm.min(f32::MAX))?;
        Ok(Self { values })
    }

    /// [norm before clipping, factor], still on the device.
    pub fn values(&self) -> &Tensor {
        &self.values
    }
}

/// Σ over all tensors of their squared elements → [1].
fn sum_of_squares(gpu: &Gpu, tensors: &[&Tensor]) -> Result<Tensor> {
    let count: usize = tensors.iter().map(|tensor| partial_count(tensor)).sum();
    let partials = Tensor::zeros(gpu, &[count.max(1)])?;
    let mut first = 0;
    for tensor in tensors {
        partial_sums(tensor, Term::Square, &partials, first)?;
        first += partial_count(tensor);
    }
    let sum = Tensor::uninitialized(gpu, &[1])?;
    final_sum(&partials, 1.0, &sum, 0)?;
    Ok(sum)
}

/// 1 / (‖x‖_F + 1e-7) → [1].
pub(super) fn inverse_norm(x: &Tensor) -> Result<Tensor> {
    let out = Tensor::uninitialized(x.gpu(), &[1])?;
    scalar(x.gpu(), &INVERSE, &sum_of_squares(x.gpu(), &[x])?, &out, 0.0)?;
    Ok(out)
}

fn scalar(gpu: &Gpu, kernel: &Kernel, squares: &Tensor, out: &Tensor, argument: f32) -> Result<()> {
    gpu.launch(&Launch {
        kernel,
        constants: &[],
        buffers: &[squares.slice(), out.slice()],
        arguments: bytemuck::bytes_of(&argument),
        workgroups: [1, 1, 1],
        iterations: 0,
        work: 0,
    })
}
