//! Broadcasts of a row [columns] over x [.., columns]: y = x + row, y = x·row. drow is the column sum of dy or dy·x. mul_row saves
//! both, add_row nothing.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::gpu::{Access, Kernel, Launch, grid, vectors, with_twin};
use crate::tape::Var;
use crate::tensor::{Rows, Tensor, rows_per_window};

static BROADCAST: Kernel = with_twin!(
    Kernel::trusted(
        "broadcast",
        include_str!("../../shaders/broadcast.wgsl"),
        "main",
        &[Access::Read, Access::Read, Access::ReadWrite],
    ),
    twins::broadcast
);

static COLUMN_SUM: Kernel = with_twin!(
    Kernel::trusted(
        "column sum",
        include_str!("../../shaders/column_sum.wgsl"),
        "main",
        &[Access::Read, Access::Read, Access::Read, Access::ReadWrite],
    ),
    twins::column_sum
);

/// Rows per partial sum of a column sum: one invocation sums these, a further pass the partial sums.
const ROWS_PER_CHUNK: usize = 64;

impl Tensor {
    /// Sum over all rows: self `[.., columns]` → `[columns]`. The order of the additions is fixed. Errors: only the device's.
    ///
    /// ```
    /// # use polytape::*;
    /// # let gpu = Gpu::open(&Default::default())?;
    /// let x = Tensor::from_slice(&gpu, &[1.0, 2.0, 3.0, 4.0], &[2, 2])?;
    /// assert_eq!(x.column_sum()?.to_vec()?, [4.0, 6.0]);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn column_sum(&self) -> Result<Tensor> {
        self.add_column_sum(None, None, None)
    }

    /// Σ over rows r of self[r, c]·`factor`[r, c]·`scale`[r], accumulated into `sum` `[columns]`, in place if that is not shared.
    pub(crate) fn add_column_sum(&self, factor: Option<&Tensor>, scale: Option<&Tensor>, sum: Option<Tensor>) -> Result<Tensor> {
        let (rows, columns) = self.rows_and_columns();
        let step = rows_per_window(self.gpu(), rows, &[columns, usize::from(scale.is_some())]);
        if rows <= ROWS_PER_CHUNK && rows <= step {
            let accumulate = sum.is_some();
            let out = Tensor::sum_or_new(sum, self.gpu(), &[columns])?;
            self.column_sums(0..rows, factor, scale, &out, accumulate)?;
            return Ok(out);
        }
        // Windows of whole chunks, or an even part of one: the order of every sum is that without windows.
        let step = if step < ROWS_PER_CHUNK { 1 << step.ilog2() } else { step / ROWS_PER_CHUNK * ROWS_PER_CHUNK };
        let parts = Tensor::uninitialized(self.gpu(), &[rows.div_ceil(ROWS_PER_CHUNK), columns])?;
        for first in (0..rows).step_by(step) {
            self.column_sums(first..rows.min(first + step), factor, scale, &parts, false)?;
        }
        parts.add_column_sum(None, None, sum)
    }

    /// Writes the sum of each chunk that `rows` belong to, to that row of `out`: continued if they begin within a chunk, and
    /// accumulated with `accumulate`.
    fn column_sums(
        &self,
        rows: Range<usize>,
        factor: Option<&Tensor>,
        scale: Option<&Tensor>,
        out: &Tensor,
        accumulate: bool,
    ) -> Result<()> {
        let columns = self.rows_and_columns().1;
        let (first, count) = (rows.start * columns, rows.len() * columns);
        let x = self.window(first, count);
        let (chunks, width) = (rows.len().div_ceil(ROWS_PER_CHUNK), if columns.is_multiple_of(4) { 4 } else { 1 });
        let (sums, start) = out.window_around(rows.start / ROWS_PER_CHUNK * columns, chunks * columns);
        self.gpu().launch(&Launch {
            kernel: &COLUMN_SUM,
            constants: &[
                ("WITH_FACTOR", u32::from(factor.is_some())),
                ("WITH_SCALE", u32::from(scale.is_some())),
                ("CONTINUED", u32::from(!rows.start.is_multiple_of(ROWS_PER_CHUNK))),
                ("ACCUMULATE", u32::from(accumulate)),
                ("VECTORS", vectors(columns)),
            ],
            buffers: &[
                x,
                factor.map_or(x, |factor| factor.window(first, count)),
                scale.map_or(x, |scale| scale.window(rows.start, rows.len())),
                sums,
            ],
            arguments: bytemuck::cast_slice(&[rows.len() as u32, columns as u32, ROWS_PER_CHUNK as u32, start as u32]),
            workgroups: grid((chunks * (columns / width)) as u64, 64),
            iterations: ROWS_PER_CHUNK as u64,
            work: 0,
        })
    }

    fn broadcast(&self, op: &'static str, row: &Tensor, multiply: bool) -> Result<Tensor> {
        let (rows, columns) = self.rows_and_columns();
        if row.shape() != [columns] {
            let problem = format!("{:?} and {:?}: a row of {columns} expected", self.shape(), row.shape());
            return Err(Error::shape(op, &[self.shape(), row.shape()], problem));
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
    /// Adds a row to every row: `y[r, c] = self[r, c] + row[c]`. self `[.., columns]`, row `[columns]` → like self. Backward:
    /// `dself = dy`, `drow = Σ_r dy[r, ·]`. An error unless row is `[columns]`.
    ///
    /// ```
    /// # use polytape::*;
    /// # let gpu = Gpu::open(&Default::default())?;
    /// # let params = Params::new(&gpu);
    /// # let tape = Tape::new(&params);
    /// let x = tape.constant(Tensor::from_slice(&gpu, &[1.0, 2.0, 3.0, 4.0], &[2, 2])?);
    /// let row = tape.leaf(Tensor::from_slice(&gpu, &[10.0, 20.0], &[2])?);
    /// let y = x.add_row(&row)?;
    /// assert_eq!(y.value().to_vec()?, [11.0, 22.0, 13.0, 24.0]);
    /// let gradients = tape.backward(&y.sum()?, &mut Gradients::new())?;
    /// assert_eq!(gradients.get(&row).unwrap().to_vec()?, [2.0, 2.0]);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn add_row(&self, row: &Var<'t>) -> Result<Var<'t>> {
        let y = self.value().broadcast("add_row", row.value(), false)?;
        self.tape().record("add_row", y, [self, row], |dy, [_, wants_row]| {
            let drow = wants_row.then(|| dy.column_sum()).transpose()?;
            Ok([Some(dy), drow])
        })
    }

    /// Multiplies every row by a row: `y[r, c] = self[r, c]·row[c]`. self `[.., columns]`, row `[columns]` → like self. Backward:
    /// `dself[r, c] = dy[r, c]·row[c]`, `drow[c] = Σ_r dy[r, c]·self[r, c]`. An error unless row is `[columns]`.
    ///
    /// ```
    /// # use polytape::*;
    /// # let gpu = Gpu::open(&Default::default())?;
    /// # let params = Params::new(&gpu);
    /// # let tape = Tape::new(&params);
    /// let x = tape.constant(Tensor::from_slice(&gpu, &[1.0, 2.0, 3.0, 4.0], &[2, 2])?);
    /// let row = tape.leaf(Tensor::from_slice(&gpu, &[10.0, 20.0], &[2])?);
    /// let y = x.mul_row(&row)?;
    /// assert_eq!(y.value().to_vec()?, [10.0, 40.0, 30.0, 80.0]);
    /// let gradients = tape.backward(&y.sum()?, &mut Gradients::new())?;
    /// assert_eq!(gradients.get(&row).unwrap().to_vec()?, [4.0, 6.0]);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn mul_row(&self, row: &Var<'t>) -> Result<Var<'t>> {
        let (x, r) = (self.value().clone(), row.value().clone());
        let y = x.broadcast("mul_row", &r, true)?;
        self.tape().record("mul_row", y, [self, row], move |dy, [wants_x, wants_row]| {
            let dx = wants_x.then(|| dy.broadcast("mul_row", &r, true)).transpose()?;
            let drow = wants_row.then(|| dy.add_column_sum(Some(&x), None, None)).transpose()?;
            Ok([dx, drow])
        })
    }
}

#[cfg(feature = "host")]
mod twins {
    use crate::gpu::host::Host;

    pub(super) fn broadcast(host: &Host<'_>) {
        let (x, row, [y]) = (host.input(0), host.input(1), host.outputs());
        let (rows, columns, multiply) = (host.size(0), host.size(2), host.flag("MULTIPLY"));
        host.rows(
            rows,
            2 * columns,
            [(y, columns)],
            #[inline(always)]
            |range, [y]| {
                for (y, x) in y.chunks_exact_mut(columns).zip(x[range.start * columns..].chunks_exact(columns)) {
                    for ((y, x), value) in y.iter_mut().zip(x).zip(row) {
                        *y = if multiply { x * value } else { x + value };
                    }
                }
            },
        );
    }

    pub(super) fn column_sum(host: &Host<'_>) {
        match (host.flag("WITH_FACTOR"), host.flag("WITH_SCALE")) {
            (false, false) => sum_terms(host, |x, _, _| x),
            (false, true) => sum_terms(host, |x, _, scale| x * scale),
            (true, false) => sum_terms(host, |x, factor, _| x * factor),
            (true, true) => sum_terms(host, |x, factor, scale| x * factor * scale),
        }
    }

    /// The columns of all chunks are one row of sums, which the threads divide: there may be few chunks, or few columns.
    fn sum_terms(host: &Host<'_>, term: impl Fn(f32, f32, f32) -> f32 + Sync) {
        let (x, factor, scale, [sums]) = (host.input(0), host.input(1), host.input(2), host.outputs());
        let [rows, columns, chunk, start] = [0, 1, 2, 3].map(|at| host.size(at));
        let (continued, accumulate) = (host.flag("CONTINUED"), host.flag("ACCUMULATE"));
        let count = rows.div_ceil(chunk) * columns;
        host.rows(
            count,
            rows.min(chunk) / 4,
            [(&mut sums[start..], 1)],
            #[inline(always)]
            |range, [sums]| {
                let before = accumulate.then(|| sums.to_vec());
                if !continued {
                    sums.fill(0.0);
                }
                let mut at = range.start;
                while at < range.end {
                    let (first_row, column) = (at / columns * chunk, at % columns);
                    let width = (columns - column).min(range.end - at);
                    let sums = &mut sums[at - range.start..][..width];
                    for row in first_row..rows.min(first_row + chunk) {
                        let first = row * columns + column;
                        let (x, factor, scale) = (&x[first..][..width], &factor[first..][..width], scale[row]);
                        for ((sum, x), factor) in sums.iter_mut().zip(x).zip(factor) {
                            *sum += term(*x, *factor, scale);
                        }
                    }
                    at += width;
                }
                for (sum, before) in sums.iter_mut().zip(before.iter().flatten()) {
                    *sum += before;
                }
            },
        );
    }
}
