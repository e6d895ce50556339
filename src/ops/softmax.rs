//! Softmax over the last dimension: y = exp(x - max) / Σ exp(x - max). Saves y; dx = y·(dy - Σ y·dy).

use crate::error::Result;
use crate::gpu::{Access, Kernel, strides, vectors, workgroup};
use crate::tape::Var;
use crate::tensor::{Rows, Tensor};

const SOURCE: &str = include_str!("../../shaders/softmax.wgsl");

static FORWARD: Kernel = Kernel::trusted("softmax", SOURCE, "forward", &[Access::Read, Access::ReadWrite]);
static BACKWARD: Kernel =
    Kernel::trusted("softmax backward", SOURCE, "backward", &[Access::Read, Access::Read, Access::ReadWrite]);

impl Tensor {
    /// Softmax over the last dimension.
    pub fn softmax(&self) -> Result<Tensor> {
        run(&FORWARD, &[self])
    }
}

fn run(kernel: &Kernel, inputs: &[&Tensor]) -> Result<Tensor> {
    let x = inputs[0];
    let (rows, columns) = x.rows_and_columns();
    let y = Tensor::uninitialized(x.gpu(), x.shape())?;
    let (workgroup, one_subgroup) = workgroup(x.gpu());
    let tensors: Vec<(&Tensor, usize)> = inputs.iter().copied().chain([&y]).map(|tensor| (tensor, columns)).collect();
    let launch = Rows {
        kernel,
        constants: &[("WORKGROUP", workgroup), ("ONE_SUBGROUP", one_subgroup), ("VECTORS", vectors(columns))],
        rows,
        tensors: &tensors,
        arguments: &[columns as u32],
        invocations_per_row: f64::from(workgroup),
        workgroup,
        iterations: 3 * strides(columns, workgroup),
    };
    launch.launch(x.gpu())?;
    Ok(y)
}

impl<'t> Var<'t> {
    /// Softmax over the last dimension.
    pub fn softmax(&self) -> Result<Var<'t>> {
        let y = self.value().softmax()?;
        let saved = y.clone();
        self.tape().record("softmax", y, [self], move |dy, _| Ok([Some(run(&BACKWARD, &[&saved, &dy])?)]))
    }
}
