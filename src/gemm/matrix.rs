//! [`Matrix`]: an operand of a product.

use crate::error::{Error, Result};
use crate::gpu::Slice;
use crate::tensor::Tensor;

/// A view of a row-major matrix, or of a batch of them, in a tensor: offset, row stride and batch stride, so that heads, row
/// windows and column blocks need no copy.
///
/// ```
/// # use polytape::*;
/// # let gpu = Gpu::open(&Default::default())?;
/// let x = Tensor::from_slice(&gpu, &[1.0, 2.0, 3.0, 4.0], &[2, 2])?;
/// let (row, column) = (Matrix::new(&x)?.row_window(0, 1)?, Matrix::new(&x)?.column_window(1, 1)?);
/// assert_eq!(Gemm::new(row, column).compute()?.item()?, 1.0 * 2.0 + 2.0 * 4.0);
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    pub(super) tensor: &'a Tensor,
    /// Index of the first element.
    pub(super) offset: usize,
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Row stride in elements.
    pub(super) stride: usize,
    /// Number of matrices.
    pub(super) count: usize,
    /// Batch stride in elements; 0 broadcasts one matrix.
    pub(super) batch_stride: usize,
    pub(super) transposed: bool,
}

impl<'a> Matrix<'a> {
    /// A tensor of rank 2 as a matrix, or of rank 3 `[batch, rows, columns]` as a batch; an error for other ranks.
    pub fn new(tensor: &'a Tensor) -> Result<Self> {
        let (count, rows, columns, batch_stride) = match *tensor.shape() {
            [rows, columns] => (1, rows, columns, 0),
            [count, rows, columns] => (count, rows, columns, rows * columns),
            _ => {
                return Err(Error::shape(
                    "matmul",
                    &[tensor.shape()],
                    format!("shape {:?}: 2 or 3 dimensions expected", tensor.shape()),
                ));
            }
        };
        Ok(Self { tensor, offset: 0, rows, columns, stride: columns, count, batch_stride, transposed: false })
    }

    /// The transpose; nothing is copied.
    pub fn t(self) -> Self {
        Self { transposed: !self.transposed, ..self }
    }

    /// Rows `first .. first + count` as stored, before a transposition; an error unless they are within the matrix.
    pub fn row_window(self, first: usize, count: usize) -> Result<Self> {
        check_window("rows", first, count, self.rows)?;
        Ok(Self { offset: self.offset + first * self.stride, rows: count, ..self })
    }

    /// Columns `first .. first + count` as stored, before a transposition; an error unless they are within the matrix.
    pub fn column_window(self, first: usize, count: usize) -> Result<Self> {
        check_window("columns", first, count, self.columns)?;
        Ok(Self { offset: self.offset + first, columns: count, ..self })
    }

    /// Matrices `first .. first + count`; a broadcast matrix stays.
    pub(super) fn batch_window(self, first: usize, count: usize) -> Self {
        let count = if self.batch_stride == 0 { 1 } else { count };
        Self { offset: self.offset + first * self.batch_stride, count, ..self }
    }

    /// (rows, columns) after transposition.
    pub(super) fn size(&self) -> (usize, usize) {
        if self.transposed { (self.columns, self.rows) } else { (self.rows, self.columns) }
    }

    pub(super) fn is_multiple_of_four(&self) -> bool {
        [self.offset, self.stride, self.batch_stride].iter().all(|value| value.is_multiple_of(4))
    }

    /// Whether most of the elements in its binding are its own.
    pub(super) fn is_dense(&self) -> bool {
        2 * self.count * self.rows * self.columns >= self.binding().0.size as usize / 4
    }

    /// The binding that covers the elements, and the index of the first in it.
    pub(super) fn binding(&self) -> (Slice<'a>, usize) {
        let count = (self.count - 1) * self.batch_stride + (self.rows - 1) * self.stride + self.columns;
        self.tensor.window_around(self.offset, count)
    }
}

fn check_window(what: &str, first: usize, count: usize, size: usize) -> Result<()> {
    if count > 0 && first.checked_add(count).is_some_and(|end| end <= size) {
        return Ok(());
    }
    let problem = format!("{count} {what} from {first} of a matrix of {size} {what}: a window within it expected");
    Err(Error::shape("matmul", &[&[size]], problem))
}
