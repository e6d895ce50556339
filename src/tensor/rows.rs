//! Launches of row kernels and elementwise maps, windowed where a tensor exceeds the binding limit.

use super::Tensor;
use crate::error::Result;
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

/// Windows start at multiples of this many rows, which aligns every offset.
const WINDOW: usize = 64;

impl Rows<'_> {
    /// Records the dispatches.
    pub fn launch(&self, gpu: &Gpu) -> Result<()> {
        let widest = self.tensors.iter().map(|(_, per_row)| *per_row).max().unwrap_or(1).max(1);
        let most = (gpu.binding_limit() / 4) as usize / widest / WINDOW * WINDOW;
        let step = if self.rows * widest * 4 <= gpu.binding_limit() as usize { self.rows } else { most.max(WINDOW) };
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

/// Runs an elementwise map: `tensors` are inputs and outputs in binding order; the one at index `whole`, if any, is bound whole in
/// every window.
pub(crate) fn map(
    kernel: &Kernel,
    constants: &[(&'static str, u32)],
    tensors: &[&Tensor],
    whole: Option<usize>,
    numbers: &[f32],
) -> Result<()> {
    let last = tensors.last().expect("bug: a map has an output");
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
