//! Launches of row kernels and elementwise maps, windowed where a tensor exceeds the binding limit.

use super::{ALIGNMENT, Tensor};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Kernel, Launch, Slice, grid};

/// A kernel over the rows of several tensors, in windows of rows where a tensor exceeds the binding limit.
///
/// Its first two arguments are the number of rows in the window and the index of the window's first row.
pub(crate) struct Rows<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// Its constants.
    pub constants: &'a [(&'static str, u32)],
    /// Number of rows.
    pub rows: usize,
    /// In binding order: a tensor and its elements per row; 0 binds it whole in every window.
    pub tensors: &'a [(&'a Tensor, usize)],
    /// Arguments after the first two.
    pub arguments: &'a [u32],
    /// Invocations per row.
    pub invocations_per_row: f64,
    /// Workgroup size.
    pub workgroup: u32,
    /// Loop iterations per invocation.
    pub iterations: usize,
}

/// Rows per window of tensors with `widths` elements per row: all `rows` if every binding then fits the limit, else the most that fit
/// with aligned windows. The minimum for alignment may still exceed the limit; the dispatch then returns an error.
pub(crate) fn rows_per_window(gpu: &Gpu, rows: usize, widths: &[usize]) -> usize {
    let widest = widths.iter().copied().max().unwrap_or(1).max(1);
    let most = (gpu.binding_limit() / 4) as usize / widest;
    if rows <= most {
        return rows;
    }
    let least = |width: &usize| ALIGNMENT >> width.trailing_zeros().min(ALIGNMENT.ilog2());
    let aligned = widths.iter().map(least).max().unwrap_or(1);
    (most / aligned * aligned).max(aligned)
}

impl Rows<'_> {
    /// Records the dispatches.
    pub fn launch(&self, gpu: &Gpu) -> Result<()> {
        let widths: Vec<usize> = self.tensors.iter().map(|(_, per_row)| *per_row).collect();
        let step = rows_per_window(gpu, self.rows, &widths);
        for first in (0..self.rows).step_by(step.max(1)) {
            let rows = step.min(self.rows - first);
            let bind = |&(tensor, per_row): &(_, usize)| match per_row {
                0 => Tensor::slice(tensor),
                _ => tensor.window(first * per_row, rows * per_row),
            };
            let buffers: Vec<Slice<'_>> = self.tensors.iter().map(bind).collect();
            let mut arguments = vec![rows as u32, first as u32];
            arguments.extend(self.arguments);
            let invocations = (rows as f64 * self.invocations_per_row).ceil() as u64;
            gpu.launch(&Launch {
                kernel: self.kernel,
                constants: self.constants,
                buffers: &buffers,
                arguments: bytemuck::cast_slice(&arguments),
                workgroups: grid(invocations, self.workgroup),
                iterations: self.iterations as u64,
                work: 0,
            })?;
        }
        Ok(())
    }
}

/// Records an elementwise kernel: one invocation per four elements, workgroups of 64, in windows where a tensor exceeds the binding
/// limit.
///
/// `tensors` are inputs and outputs in binding order, all of one shape except the one at index `whole`, which is bound whole in every
/// window; other numels are an error. The kernel's arguments are the number of elements in the window, the index of its first element, and `numbers`.
pub fn map(
    kernel: &Kernel,
    constants: &[(&'static str, u32)],
    tensors: &[&Tensor],
    whole: Option<usize>,
    numbers: &[f32],
) -> Result<()> {
    let Some(last) = tensors.last() else {
        return Err(Error::shape("map", &[], "no tensors given"));
    };
    if tensors.iter().enumerate().any(|(at, tensor)| whole != Some(at) && tensor.len() != last.len()) {
        let shapes: Vec<&[usize]> = tensors.iter().map(|tensor| tensor.shape()).collect();
        return Err(Error::shape("map", &shapes, format!("{shapes:?}: the numels differ")));
    }
    let bound: Vec<(&Tensor, usize)> =
        tensors.iter().enumerate().map(|(at, tensor)| (*tensor, usize::from(whole != Some(at)))).collect();
    let arguments: Vec<u32> = numbers.iter().map(|number| number.to_bits()).collect();
    let rows = Rows {
        kernel,
        constants,
        rows: last.len(),
        tensors: &bound,
        arguments: &arguments,
        invocations_per_row: 0.25,
        workgroup: 64,
        iterations: 0,
    };
    rows.launch(last.gpu())
}
