//! add, sub, mul, scale, and accumulation. Same shapes on both sides; mul saves both, the others nothing.

use crate::error::{Error, Result};
use crate::gpu::{Access, Gpu, Kernel, Launch, Slice, grid};
use crate::tape::Var;
use crate::tensor::Tensor;

const SOURCE: &str = include_str!("../../shaders/elementwise.wgsl");
const ONE: &[Access] = &[Access::Read, Access::ReadWrite];
const TWO: &[Access] = &[Access::Read, Access::Read, Access::ReadWrite];

static WEIGHTED_SUM: Kernel = Kernel::trusted("weighted_sum", SOURCE, "weighted_sum", TWO);
static PRODUCT: Kernel = Kernel::trusted("product", SOURCE, "product", TWO);
static SCALED: Kernel = Kernel::trusted("scaled", SOURCE, "scaled", ONE);
static SCALED_BY: Kernel = Kernel::trusted("scaled_by", SOURCE, "scaled_by", TWO);
static ACCUMULATE: Kernel = Kernel::trusted("accumulate", SOURCE, "accumulate", ONE);
static ACCUMULATE_SCALED: Kernel = Kernel::trusted("accumulate scaled", SOURCE, "accumulate_scaled", TWO);
static FILLED_BY: Kernel = Kernel::trusted("filled_by", SOURCE, "filled_by", ONE);

/// A kernel over the rows of several tensors, cut into windows where a tensor exceeds the binding limit.
///
/// Its arguments begin with the number of rows in the window and the number of the window's first row.
pub(crate) struct Rows<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// Its constants.
    pub constants: &'a [(&'static str, u32)],
    /// Number of rows.
    pub rows: usize,
    /// In binding order: a tensor and its elements per row, or 0 for one that every window sees whole.
    pub tensors: &'a [(&'a Tensor, usize)],
    /// Arguments after the first two.
    pub arguments: &'a [u32],
    /// Invocations that one row takes.
    pub invocations_per_row: f64,
    /// Invocations of a workgroup.
    pub workgroup: u32,
    /// Loop iterations of one invocation.
    pub iterations: usize,
}

/// Windows start at multiples of this many rows, so that every offset is aligned.
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

/// Runs a map over all elements: `tensors` are the inputs and outputs in binding order, `whole` those of them (by position)
/// that every window sees whole.
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

fn same_shape(op: &'static str, a: &Tensor, b: &Tensor) -> Result<()> {
    if a.shape() == b.shape() {
        return Ok(());
    }
    Err(Error::shape(op, format!("{:?} and {:?}: the shapes differ", a.shape(), b.shape())))
}

impl Tensor {
    /// alpha·self + beta·rhs.
    pub fn weighted_sum(&self, alpha: f32, rhs: &Tensor, beta: f32) -> Result<Tensor> {
        self.weighted_sum_as("weighted_sum", alpha, rhs, beta)
    }

    fn weighted_sum_as(&self, op: &'static str, alpha: f32, rhs: &Tensor, beta: f32) -> Result<Tensor> {
        same_shape(op, self, rhs)?;
        let y = Tensor::uninitialized(self.gpu(), self.shape())?;
        map(&WEIGHTED_SUM, &[], &[self, rhs, &y], None, &[alpha, beta])?;
        Ok(y)
    }

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

    /// self + rhs: in place where self is not shared, else into rhs where that is not, else anew.
    pub(crate) fn accumulate(self, rhs: Tensor) -> Result<Tensor> {
        same_shape("accumulate", &self, &rhs)?;
        let (sum, term) = if self.is_unique() { (self, rhs) } else { (rhs, self) };
        if !sum.is_unique() {
            return sum.weighted_sum(1.0, &term, 1.0);
        }
        map(&ACCUMULATE, &[], &[&term, &sum], None, &[1.0, 1.0])?;
        Ok(sum)
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
