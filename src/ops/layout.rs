//! reshape, transpose of the last two dimensions, slice and concat along any dimension. Save nothing; each backward is the
//! inverse copy.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::gpu::{Access, Kernel, Launch, grid, with_twin};
use crate::tape::Var;
use crate::tensor::{ALIGNMENT, MAX_RANK, Tensor};

static COPY: Kernel = with_twin!(
    Kernel::trusted("copy", include_str!("../../shaders/copy.wgsl"), "main", &[Access::Read, Access::ReadWrite]),
    twins::copy
);

/// A strided view of a tensor, padded to MAX_RANK with leading dimensions of size 1.
#[derive(Clone, Copy)]
struct View {
    sizes: [u32; MAX_RANK],
    strides: [u32; MAX_RANK],
    offset: u32,
}

impl View {
    fn new(shape: &[usize]) -> Self {
        let mut view = Self { sizes: [1; MAX_RANK], strides: [0; MAX_RANK], offset: 0 };
        let mut stride = 1;
        for (dim, &size) in shape.iter().enumerate().rev() {
            let at = dim + MAX_RANK - shape.len();
            view.sizes[at] = size as u32;
            view.strides[at] = stride;
            stride *= size as u32;
        }
        view
    }

    fn transposed(mut self) -> Self {
        self.sizes.swap(MAX_RANK - 1, MAX_RANK - 2);
        self.strides.swap(MAX_RANK - 1, MAX_RANK - 2);
        self
    }

    /// `range` of dimension `dim` of a tensor of rank `rank`.
    fn part(mut self, rank: usize, dim: usize, range: &Range<usize>) -> Self {
        let at = dim + MAX_RANK - rank;
        self.offset += range.start as u32 * self.strides[at];
        self.sizes[at] = range.len() as u32;
        self
    }

    /// Elements from the last index of a dimension back to its first.
    fn reach(&self, at: usize) -> usize {
        (self.sizes[at] as usize - 1) * self.strides[at] as usize
    }

    /// Elements from its first to its last.
    fn span(&self) -> usize {
        1 + (0..MAX_RANK).map(|at| self.reach(at)).sum::<usize>()
    }

    /// The dimension that makes the most of the span; `None` for one element.
    fn widest(&self) -> Option<usize> {
        (0..MAX_RANK).filter(|&at| self.sizes[at] > 1).max_by_key(|&at| self.reach(at))
    }

    fn halves(self, at: usize) -> (Self, Self) {
        let half = self.sizes[at] / 2;
        let (mut first, mut second) = (self, self);
        first.sizes[at] = half;
        second.sizes[at] -= half;
        second.offset += half * self.strides[at];
        (first, second)
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Arguments {
    sizes: [u32; MAX_RANK],
    x_strides: [u32; MAX_RANK],
    y_strides: [u32; MAX_RANK],
    offsets: [u32; 2],
}

/// Copies between views of the same sizes, in halves where a binding does not hold what one of them spans.
fn copy(x: &Tensor, from: View, y: &Tensor, to: View) -> Result<()> {
    let limit = (x.gpu().binding_limit() / 4) as usize;
    let is_over = |view: &View| view.offset as usize % ALIGNMENT + view.span() > limit;
    let halved = [from, to].into_iter().find(is_over).and_then(|view| view.widest());
    let Some(dim) = halved else {
        return copy_at_once(x, from, y, to);
    };
    let (first_from, second_from) = from.halves(dim);
    let (first_to, second_to) = to.halves(dim);
    copy(x, first_from, y, first_to)?;
    copy(x, second_from, y, second_to)
}

fn copy_at_once(x: &Tensor, from: View, y: &Tensor, to: View) -> Result<()> {
    let (x_slice, x_offset) = x.window_around(from.offset as usize, from.span());
    let (y_slice, y_offset) = y.window_around(to.offset as usize, to.span());
    let offsets = [x_offset, y_offset].map(|offset| offset as u32);
    let arguments = Arguments { sizes: from.sizes, x_strides: from.strides, y_strides: to.strides, offsets };
    let elements: u64 = from.sizes.iter().map(|&size| u64::from(size)).product();
    x.gpu().launch(&Launch {
        kernel: &COPY,
        constants: &[],
        buffers: &[x_slice, y_slice],
        arguments: bytemuck::bytes_of(&arguments),
        workgroups: grid(elements, 64),
        iterations: 0,
        work: 0,
    })
}

impl Tensor {
    /// Swaps the last two dimensions, copied: `[.., m, n]` → `[.., n, m]`. An error below rank 2. A product reads either
    /// orientation without a copy.
    ///
    /// ```
    /// # use polytape::*;
    /// # let gpu = Gpu::open(&Default::default())?;
    /// let x = Tensor::from_slice(&gpu, &[1.0, 2.0, 3.0, 4.0], &[2, 2])?;
    /// assert_eq!(x.transpose()?.to_vec()?, [1.0, 3.0, 2.0, 4.0]);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn transpose(&self) -> Result<Tensor> {
        let rank = self.shape().len();
        if rank < 2 {
            return Err(Error::shape(
                "transpose",
                &[self.shape()],
                format!("shape {:?}: 2 or more dimensions expected", self.shape()),
            ));
        }
        let mut shape = self.shape().to_vec();
        shape.swap(rank - 1, rank - 2);
        let y = Tensor::uninitialized(self.gpu(), &shape)?;
        copy(self, View::new(self.shape()).transposed(), &y, View::new(&shape))?;
        Ok(y)
    }

    /// Elements `range` of dimension `dim`, copied: `[.., n, ..]` → `[.., range.len(), ..]`. An error unless the range is
    /// non-empty and within the dimension.
    ///
    /// ```
    /// # use polytape::*;
    /// # let gpu = Gpu::open(&Default::default())?;
    /// let x = Tensor::from_slice(&gpu, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3])?;
    /// assert_eq!(x.slice_dim(1, 1..3)?.to_vec()?, [2.0, 3.0, 5.0, 6.0]);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn slice_dim(&self, dim: usize, range: Range<usize>) -> Result<Tensor> {
        let rank = self.shape().len();
        if dim >= rank || range.is_empty() || range.end > self.shape()[dim] {
            let problem = format!("{range:?} of dimension {dim} of {:?}: a non-empty range within it expected", self.shape());
            return Err(Error::shape("slice", &[self.shape()], problem));
        }
        let mut shape = self.shape().to_vec();
        shape[dim] = range.len();
        let y = Tensor::uninitialized(self.gpu(), &shape)?;
        copy(self, View::new(self.shape()).part(rank, dim, &range), &y, View::new(&shape))?;
        Ok(y)
    }

    /// Copies self to `range` of dimension `dim` of `target`.
    pub(crate) fn write_to(&self, target: &Tensor, dim: usize, range: &Range<usize>) -> Result<()> {
        let to = View::new(target.shape()).part(self.shape().len(), dim, range);
        copy(self, View::new(self.shape()), target, to)
    }
}

fn concat(tensors: &[Tensor], dim: usize) -> Result<(Tensor, Vec<Range<usize>>)> {
    let Some(first) = tensors.first() else {
        return Err(Error::shape("concat", &[], "no tensors given"));
    };
    let rank = first.shape().len();
    let fits =
        |tensor: &Tensor| tensor.shape().len() == rank && (0..rank).all(|d| d == dim || tensor.shape()[d] == first.shape()[d]);
    if dim >= rank || !tensors.iter().all(fits) {
        let shapes: Vec<_> = tensors.iter().map(Tensor::shape).collect();
        let problem = format!("{shapes:?} along dimension {dim}: the other dimensions differ");
        return Err(Error::shape("concat", &shapes, problem));
    }
    let mut ranges = Vec::with_capacity(tensors.len());
    let mut end = 0;
    for tensor in tensors {
        ranges.push(end..end + tensor.shape()[dim]);
        end += tensor.shape()[dim];
    }
    let mut shape = first.shape().to_vec();
    shape[dim] = end;
    let y = Tensor::uninitialized(first.gpu(), &shape)?;
    for (tensor, range) in tensors.iter().zip(&ranges) {
        tensor.write_to(&y, dim, range)?;
    }
    Ok((y, ranges))
}

impl<'t> Var<'t> {
    /// The same elements in another shape; nothing is copied. Backward: dy in the shape of self. An error unless the numels are
    /// equal and the rank is 1 to 4.
    ///
    /// ```
    /// # use polytape::*;
    /// # let gpu = Gpu::open(&Default::default())?;
    /// # let params = Params::new(&gpu);
    /// # let tape = Tape::new(&params);
    /// let x = tape.leaf(Tensor::from_slice(&gpu, &[1.0, 2.0, 3.0, 4.0], &[4])?);
    /// let y = x.reshape(&[2, 2])?;
    /// let gradients = tape.backward(&y.sum()?, &mut Gradients::new())?;
    /// assert_eq!(gradients.get(&x).unwrap().shape(), [4]);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn reshape(&self, shape: &[usize]) -> Result<Var<'t>> {
        let y = self.value().reshape(shape)?;
        let before = self.shape().to_vec();
        self.tape().record("reshape", y, [self], move |dy, _| Ok([Some(dy.reshape(&before)?)]))
    }

    /// Swaps the last two dimensions, copied: `[.., m, n]` → `[.., n, m]`. Backward: `dself = dyᵀ`. An error below rank 2. Prefer
    /// [`Var::matmul_nt`] and [`Var::matmul_tn`], which copy nothing.
    ///
    /// ```
    /// # use polytape::*;
    /// # let gpu = Gpu::open(&Default::default())?;
    /// # let params = Params::new(&gpu);
    /// # let tape = Tape::new(&params);
    /// let x = tape.leaf(Tensor::zeros(&gpu, &[2, 3])?);
    /// let y = x.transpose()?;
    /// assert_eq!(y.shape(), [3, 2]);
    /// let gradients = tape.backward(&y.sum()?, &mut Gradients::new())?;
    /// assert_eq!(gradients.get(&x).unwrap().shape(), [2, 3]);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn transpose(&self) -> Result<Var<'t>> {
        let y = self.value().transpose()?;
        self.tape().record("transpose", y, [self], |dy, _| Ok([Some(dy.transpose()?)]))
    }

    /// Elements `range` of dimension `dim`: `[.., n, ..]` → `[.., range.len(), ..]`. Backward: dy at the range, 0 elsewhere. An
    /// error unless the range is non-empty and within the dimension.
    ///
    /// ```
    /// # use polytape::*;
    /// # let gpu = Gpu::open(&Default::default())?;
    /// # let params = Params::new(&gpu);
    /// # let tape = Tape::new(&params);
    /// let x = tape.leaf(Tensor::from_slice(&gpu, &[1.0, 2.0, 3.0], &[3])?);
    /// let y = x.slice(0, 1..3)?;
    /// assert_eq!(y.value().to_vec()?, [2.0, 3.0]);
    /// let gradients = tape.backward(&y.sum()?, &mut Gradients::new())?;
    /// assert_eq!(gradients.get(&x).unwrap().to_vec()?, [0.0, 1.0, 1.0]);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn slice(&self, dim: usize, range: Range<usize>) -> Result<Var<'t>> {
        let y = self.value().slice_dim(dim, range.clone())?;
        let before = self.shape().to_vec();
        self.tape().record("slice", y, [self], move |dy, _| {
            let dx = Tensor::zeros(dy.gpu(), &before)?;
            dy.write_to(&dx, dim, &range)?;
            Ok([Some(dx)])
        })
    }

    /// Concatenates along dimension `dim`: `[.., n₁, ..]`, `[.., n₂, ..]`, … → `[.., n₁ + n₂ + …, ..]`. Backward: each part gets its
    /// range of dy. An error without parts, or where the other dimensions differ.
    ///
    /// ```
    /// # use polytape::*;
    /// # let gpu = Gpu::open(&Default::default())?;
    /// # let params = Params::new(&gpu);
    /// # let tape = Tape::new(&params);
    /// let a = tape.leaf(Tensor::from_slice(&gpu, &[1.0, 2.0], &[2, 1])?);
    /// let b = tape.leaf(Tensor::from_slice(&gpu, &[3.0, 4.0, 5.0, 6.0], &[2, 2])?);
    /// let y = Var::concat(&[&a, &b], 1)?;
    /// assert_eq!(y.value().to_vec()?, [1.0, 3.0, 4.0, 2.0, 5.0, 6.0]);
    /// let gradients = tape.backward(&y.sum()?, &mut Gradients::new())?;
    /// assert_eq!(gradients.get(&b).unwrap().shape(), [2, 2]);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn concat(parts: &[&Var<'t>], dim: usize) -> Result<Var<'t>> {
        let values: Vec<Tensor> = parts.iter().map(|part| part.value().clone()).collect();
        let (y, ranges) = concat(&values, dim)?;
        parts[0].tape().record_many("concat", y, parts, move |dy, wanted| {
            let part = |(range, &wanted): (Range<usize>, &bool)| wanted.then(|| dy.slice_dim(dim, range)).transpose();
            ranges.into_iter().zip(wanted).map(part).collect()
        })
    }
}

#[cfg(feature = "host")]
mod twins {
    use std::sync::{Mutex, PoisonError};

    use super::{Arguments, MAX_RANK};
    use crate::gpu::host::Host;

    /// Elements per task.
    const TASK: usize = 16_384;
    /// Side of a block of a transposition: a cache line.
    const BLOCK: usize = 16;

    /// A size, and the strides in x and y.
    type Dimension = [usize; 3];

    /// Divides the outermost dimension; in y, whose dimensions are never swapped, its stride is no shorter than what it encloses.
    pub(super) fn copy(host: &Host<'_>) {
        let (x, [y]) = (host.input(0), host.outputs());
        let arguments: Arguments = host.arguments();
        let [x_offset, y_offset] = arguments.offsets.map(|offset| offset as usize);
        let (x, dimensions) = (&x[x_offset..], merged(&arguments));
        let ([size, x_stride, y_stride], inner) = (dimensions[0], &dimensions[1..]);
        let grain = if matches!(dimensions[..], [[_, 1, _], [_, _, 1]]) { BLOCK } else { 1 };
        let enclosed: usize = inner.iter().map(|[size, ..]| size).product();
        let step = (TASK / enclosed).max(1).next_multiple_of(grain).min(size);
        let parts: Vec<_> = y[y_offset..].chunks_mut(step * y_stride).take(size.div_ceil(step)).map(Mutex::new).collect();
        host.threads().run(parts.len(), &|task| {
            let first = task * step;
            let mut dimensions = dimensions.clone();
            dimensions[0][0] = step.min(size - first);
            let mut y = parts[task].lock().unwrap_or_else(PoisonError::into_inner);
            copy_block(&x[first * x_stride..], &mut y, &dimensions);
        });
    }

    /// The dimensions of more than one element, outermost first, those that are contiguous in both x and y made one. At least one.
    fn merged(arguments: &Arguments) -> Vec<Dimension> {
        let Arguments { sizes, x_strides, y_strides, .. } = arguments;
        let dimension = |at: usize| [sizes[at], x_strides[at], y_strides[at]].map(|number| number as usize);
        let mut merged: Vec<Dimension> = Vec::new();
        for inner in (0..MAX_RANK).map(dimension).filter(|[size, ..]| *size > 1) {
            let [size, x_stride, y_stride] = inner;
            match merged.last_mut() {
                Some(outer) if outer[1..] == [size * x_stride, size * y_stride] => {
                    *outer = [outer[0] * size, x_stride, y_stride];
                }
                _ => merged.push(inner),
            }
        }
        if merged.is_empty() {
            merged.push([1, 1, 1]);
        }
        merged
    }

    fn copy_block(x: &[f32], y: &mut [f32], dimensions: &[Dimension]) {
        match dimensions {
            &[[size, 1, 1]] => y[..size].copy_from_slice(&x[..size]),
            &[[size, x_stride, y_stride]] => (0..size).for_each(|i| y[i * y_stride] = x[i * x_stride]),
            &[[rows, 1, y_stride], [columns, x_stride, 1]] => transpose(x, x_stride, y, y_stride, [rows, columns]),
            [[size, x_stride, y_stride], inner @ ..] => {
                (0..*size).for_each(|i| copy_block(&x[i * x_stride..], &mut y[i * y_stride..], inner));
            }
            [] => {}
        }
    }

    /// y [rows, columns] from x [columns, rows], by blocks.
    fn transpose(x: &[f32], x_stride: usize, y: &mut [f32], y_stride: usize, [rows, columns]: [usize; 2]) {
        for row in (0..rows).step_by(BLOCK) {
            for column in (0..columns).step_by(BLOCK) {
                let (x, y) = (&x[column * x_stride + row..], &mut y[row * y_stride + column..]);
                match [BLOCK.min(rows - row), BLOCK.min(columns - column)] {
                    [BLOCK, BLOCK] => transpose_block(x, x_stride, y, y_stride, [BLOCK, BLOCK]), // compiled for these sizes
                    sizes => transpose_block(x, x_stride, y, y_stride, sizes),
                }
            }
        }
    }

    /// Passes through a tile, so that x is read and y is written in whole cache lines.
    #[inline(always)]
    fn transpose_block(x: &[f32], x_stride: usize, y: &mut [f32], y_stride: usize, [rows, columns]: [usize; 2]) {
        let mut tile = [[0.0; BLOCK]; BLOCK];
        for (column, tile) in tile[..columns].iter_mut().enumerate() {
            tile[..rows].copy_from_slice(&x[column * x_stride..][..rows]);
        }
        for row in 0..rows {
            for (y, tile) in y[row * y_stride..][..columns].iter_mut().zip(&tile) {
                *y = tile[row];
            }
        }
    }
}
