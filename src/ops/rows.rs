//! Broadcasts of a row [columns] over x [.., columns]: y = x + row and y = x·row. drow is a column sum of dy, or of dy·x.

use super::elementwise::Rows;
use super::vectors;
use crate::error::{Error, Result};
use crate::gpu::{Access, Kernel, Launch, grid};
use crate::tape::Var;
use crate::tensor::Tensor;

static BROADCAST: Kernel = Kernel::trusted(
    "broadcast",
    include_str!("../../shaders/broadcast.wgsl"),
    "main",
    &[Access::Read, Access::Read, Access::ReadWrite],
);

static COLUMN_SUM: Kernel = Kernel::trusted(
    "column sum",
    include_str!("../../shaders/column_sum.wgsl"),
    "main",
    &[Access::Read, Access::Read, Access::Read, Access::ReadWrite],
);

/// Rows that one invocation of the column sum adds before the partial sums are added.
const ROWS_PER_CHUNK: usize = 64;

impl Tensor {
    /// Sum over all rows: `[.., columns]` → `[columns]`.
    pub fn column_sum(&self) -> Result<Tensor> {
        self.weighted_column_sum(None, None)
    }

    /// Σ over rows r of self[r, c], times `factor`[r, c], times `scale`[r].
    pub(crate) fn weighted_column_sum(&self, factor: Option<&Tensor>, scale: Option<&Tensor>) -> Result<Tensor> {
        let (rows, columns) = self.rows_and_columns();
        let most = (self.gpu().binding_limit() / 4) as usize / columns / 64 * 64;
        if rows <= most || most == 0 {
            return self.column_sum_window(0, rows, factor, scale);
        }
        let mut sum: Option<Tensor> = None;
        for first in (0..rows).step_by(most) {
            let part = self.column_sum_window(first, most.min(rows - first), factor, scale)?;
            sum = Some(match sum {
                Some(sum) => sum.accumulate(part)?,
                None => part,
            });
        }
        sum.ok_or_else(|| Error::shape("column_sum", "no rows"))
    }

    fn column_sum_window(&self, first: usize, rows: usize, factor: Option<&Tensor>, scale: Option<&Tensor>) -> Result<Tensor> {
        let columns = self.rows_and_columns().1;
        let chunks = rows.div_ceil(ROWS_PER_CHUNK);
        let sums = Tensor::uninitialized(self.gpu(), &[chunks, columns])?;
        let window = |tensor: &Tensor| tensor.window(first * columns, rows * columns).size;
        debug_assert!(factor.is_none_or(|factor| window(factor) == window(self)));
        let x = self.window(first * columns, rows * columns);
        let width = if columns.is_multiple_of(4) { 4 } else { 1 };
        self.gpu().launch(&Launch {
            kernel: &COLUMN_SUM,
            constants: &[
                ("WITH_FACTOR", u32::from(factor.is_some())),
                ("WITH_SCALE", u32::from(scale.is_some())),
                ("VECTORS", vectors(columns)),
            ],
            buffers: &[
                x,
                factor.map_or(x, |factor| factor.window(first * columns, rows * columns)),
                scale.map_or(x, |scale| scale.window(first, rows)),
                sums.slice(),
            ],
            arguments: bytemuck::cast_slice(&[rows as u32, columns as u32, ROWS_PER_CHUNK as u32]),
            workgroups: grid((chunks * (columns / width)) as u64, 64),
            iterations: ROWS_PER_CHUNK as u64,
            work: 0,
        })?;
        if chunks == 1 { sums.reshape(&[columns]) } else { sums.column_sum() }
    }

    fn broadcast(&self, op: &'static str, row: &Tensor, multiply: bool) -> Result<Tensor> {
        let (rows, columns) = self.rows_and_columns();
        if row.shape() != [columns] {
            let problem = format!("{:?} and {:?}: a row of {columns} expected", self.shape(), row.shape());
            return Err(Error::shape(op, problem));
        }
        let y = Tensor::uninitialized(self.gpu(), self.shape())?;
        let width = if columns.is_multiple_of(4) { 4 } else { 1 };
        let launch = Rows {
            kernel: &BROADCAST,
            constants: &[("MULTIPLY", u32::from(multiply)), ("VECTORS", vectors(columns))],
            rows,
            tensors: &[(self, columns), (row, 0), (&y, columns)],
            arguments: &[columns as u32],
            invocations_per_row: (columns / width) as f64,
            workgroup: 64,
            iterations: 0,
        };
        launch.launch(self.gpu())?;
        Ok(y)
    }
}

impl<'t> Var<'t> {
    /// self + row, where row `[columns]` is added to every row of self `[.., columns]`.
    pub fn add_row(&self, row: &Var<'t>) -> Result<Var<'t>> {
        let y = self.value().broadcast("add_row", row.value(), false)?;
        self.tape().record("add_row", y, [self, row], |dy, [_, wants_row]| {
            let drow = wants_row.then(|| dy.column_sum()).transpose()?;
            Ok([Some(dy), drow])
        })
    }

    /// self · row, where row `[columns]` multiplies every row of self `[.., columns]`.
    pub fn mul_row(&self, row: &Var<'t>) -> Result<Var<'t>> {
        let (x, r) = (self.value().clone(), row.value().clone());
        let y = x.broadcast("mul_row", &r, true)?;
        self.tape().record("mul_row", y, [self, row], move |dy, [wants_x, wants_row]| {
            let dx = wants_x.then(|| dy.broadcast("mul_row", &r, true)).transpose()?;
            let drow = wants_row.then(|| dy.weighted_column_sum(Some(&x), None)).transpose()?;
            Ok([dx, drow])
        })
    }
}
