//! Embedding: y[t] = table[ids[t]]. table [vocabulary, dim], ids [n] → [n, dim]. Saves ids; the gradient of the table adds the
//! rows of dy that share an id in the order of their positions, and touches no other row. The table, y and dy are bound in windows of
//! rows.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::gpu::{Access, Gpu, Kernel, Launch, Slice, grid, vectors, with_twin};
use crate::params::Gradient;
use crate::tape::Var;
use crate::tensor::{Indices, Tensor, rows_per_window};

const SOURCE: &str = include_str!("../../shaders/embedding.wgsl");

static FORWARD: Kernel =
    with_twin!(Kernel::trusted("embedding", SOURCE, "forward", &[Access::Read, Access::Read, Access::ReadWrite]), twins::forward);
static BACKWARD: Kernel = with_twin!(
    Kernel::trusted(
        "embedding backward",
        SOURCE,
        "backward",
        &[Access::Read, Access::Read, Access::Read, Access::Read, Access::ReadWrite],
    ),
    twins::backward
);

impl<'t> Var<'t> {
    /// Embedding lookup: `y[t] = self[ids[t]]`. self `[vocabulary, dim]`, ids `[n]` → `[n, dim]`. Backward: `dself[i]` is the sum of
    /// `dy[t]` over all t with `ids[t] = i`, in order of t. An error where an id is not below vocabulary.
    ///
    /// ```
    /// # use polytape::*;
    /// # let gpu = Gpu::open(&Default::default())?;
    /// # let params = Params::new(&gpu);
    /// # let tape = Tape::new(&params);
    /// let table = tape.leaf(Tensor::from_slice(&gpu, &[1.0, 2.0, 3.0, 4.0], &[2, 2])?);
    /// let y = table.embedding(&Indices::from_slice(&gpu, &[1, 0, 1])?)?;
    /// assert_eq!(y.value().to_vec()?, [3.0, 4.0, 1.0, 2.0, 3.0, 4.0]);
    /// let gradients = tape.backward(&y.sum()?, &mut Gradients::new())?;
    /// assert_eq!(gradients.get(&table).unwrap().to_vec()?, [1.0, 1.0, 2.0, 2.0]); // row 1 was read twice
    /// # Ok::<(), Error>(())
    /// ```
    pub fn embedding(&self, ids: &Indices) -> Result<Var<'t>> {
        let table = self.value();
        let [vocabulary, columns] = table.dims("embedding")?;
        check_ids("embedding", ids, vocabulary)?;
        let y = Tensor::uninitialized(table.gpu(), &[ids.len(), columns])?;
        let step = rows_per_window(table.gpu(), ids.len(), &[columns, 1]);
        for first in (0..ids.len()).step_by(step) {
            let count = step.min(ids.len() - first);
            let (ids, y) = (ids.window(first, count), y.window(first * columns, count * columns));
            for_each_window(table, |table, rows| {
                launch(self.value().gpu(), &FORWARD, &[ids, table, y], [count, columns], rows, 0)
            })?;
        }
        let ids = ids.clone();
        self.tape().record_accumulating("embedding", y, [self], move |dy, _| {
            Ok([Some(Gradient::accumulate(move |sum| backward(&dy, &ids, vocabulary, sum)))])
        })
    }
}

/// Every id is a row of the vocabulary, or an error that names the first that is not.
pub(super) fn check_ids(op: &'static str, ids: &Indices, vocabulary: usize) -> Result<()> {
    match ids.values().iter().position(|&id| id as usize >= vocabulary) {
        Some(at) => Err(Error::shape(
            op,
            &[&[ids.len()]],
            format!("index {} at position {at}: below {vocabulary} expected", ids.values()[at]),
        )),
        None => Ok(()),
    }
}

/// Adds to the rows of the sum so far, if there is one, that `ids` name: dy by dy in the order of the positions, so that windows of
/// them change no bit.
fn backward(dy: &Tensor, ids: &Indices, vocabulary: usize, sum: Option<Tensor>) -> Result<Tensor> {
    let (gpu, columns) = (dy.gpu(), dy.rows_and_columns().1);
    let dtable = match sum {
        Some(sum) => sum.into_unique()?,
        None => Tensor::zeros(gpu, &[vocabulary, columns])?,
    };
    let step = rows_per_window(gpu, ids.len(), &[columns]).min(MOST_POSITIONS);
    for first in (0..ids.len()).step_by(step) {
        let count = step.min(ids.len() - first);
        let uses = Uses::new(gpu, &ids.values()[first..first + count])?;
        let dy = dy.window(first * columns, count * columns);
        for_each_window(&dtable, |table, rows| {
            let buffers = [uses.distinct.slice(), uses.starts.slice(), uses.positions.slice(), dy, table];
            launch(gpu, &BACKWARD, &buffers, [uses.distinct.len(), columns], rows, uses.most)
        })?;
    }
    Ok(dtable)
}

/// Maximum positions per dispatch of the backward: all may hold one id, and are then iterations of one loop. A multiple of 64.
const MOST_POSITIONS: usize = 65_472;

/// Where each id is used.
struct Uses {
    /// The ids, in their order.
    distinct: Indices,
    /// The first place of each in the positions, and the number of positions.
    starts: Indices,
    /// The positions, by id.
    positions: Indices,
    /// Positions of the id that has most.
    most: u32,
}

impl Uses {
    fn new(gpu: &Gpu, ids: &[u32]) -> Result<Self> {
        let mut positions: Vec<u32> = (0..ids.len() as u32).collect();
        positions.sort_by_key(|&position| ids[position as usize]);
        let groups: Vec<&[u32]> = positions.chunk_by(|&a, &b| ids[a as usize] == ids[b as usize]).collect();
        let distinct: Vec<u32> = groups.iter().map(|group| ids[group[0] as usize]).collect();
        let mut starts = vec![0];
        for group in &groups {
            starts.push(starts[starts.len() - 1] + group.len() as u32);
        }
        let most = groups.iter().map(|group| group.len() as u32).max().unwrap_or(0);
        let [distinct, starts, positions] = [&distinct, &starts, &positions].map(|values| Indices::from_slice(gpu, values));
        Ok(Self { distinct: distinct?, starts: starts?, positions: positions?, most })
    }
}

/// Calls `f` with each window of rows of a table: the slice and its rows.
fn for_each_window(table: &Tensor, mut f: impl FnMut(Slice<'_>, Range<usize>) -> Result<()>) -> Result<()> {
    let (rows, columns) = table.rows_and_columns();
    let step = rows_per_window(table.gpu(), rows, &[columns]);
    (0..rows).step_by(step).try_for_each(|first| {
        let count = step.min(rows - first);
        f(table.window(first * columns, count * columns), first..first + count)
    })
}

fn launch(
    gpu: &Gpu,
    kernel: &Kernel,
    buffers: &[Slice<'_>],
    [count, columns]: [usize; 2],
    table_rows: Range<usize>,
    iterations: u32,
) -> Result<()> {
    let width = if columns.is_multiple_of(4) { 4 } else { 1 };
    let arguments = [count, columns, table_rows.start, table_rows.len()].map(|size| size as u32);
    gpu.launch(&Launch {
        kernel,
        constants: &[("VECTORS", vectors(columns))],
        buffers,
        arguments: bytemuck::cast_slice(&arguments),
        workgroups: grid((count * (columns / width)) as u64, 64),
        iterations: u64::from(iterations),
        work: 0,
    })
}

#[cfg(feature = "host")]
mod twins {
    use crate::gpu::host::{Host, simd};

    pub(super) fn forward(host: &Host<'_>) {
        let (ids, table, [y]) = (host.indices(0), host.input(1), host.outputs());
        let [count, columns, first_row, table_rows] = [0, 1, 2, 3].map(|at| host.size(at));
        host.rows(
            count,
            2 * columns,
            [(y, columns)],
            #[inline(always)]
            |range, [y]| {
                let row_of = |id: u32| (id as usize).wrapping_sub(first_row); // wraps around below the window
                for (at, y) in range.zip(y.chunks_exact_mut(columns)) {
                    let row = row_of(ids[at]);
                    if row < table_rows {
                        let next = ids.get(at + 1).map_or(row, |&id| row_of(id));
                        let ahead = (next as isize).wrapping_sub(row as isize).wrapping_mul(columns as isize);
                        let x = &table[row * columns..][..columns];
                        simd::ahead(
                            columns,
                            [x],
                            ahead,
                            #[inline(always)]
                            |at| y[at.clone()].copy_from_slice(&x[at]),
                        );
                    }
                }
            },
        );
    }

    /// The ids are in their order, so that those of a range of the table's rows are a range of theirs.
    pub(super) fn backward(host: &Host<'_>) {
        let [ids, starts, positions] = [0, 1, 2].map(|binding| host.indices(binding));
        let (dy, [dtable]) = (host.input(3), host.outputs());
        let [count, columns, first_row, table_rows] = [0, 1, 2, 3].map(|at| host.size(at));
        let number_from = |row: usize| ids[..count].partition_point(|&id| (id as usize) < first_row + row);
        let cost = positions.len() * columns / table_rows;
        host.rows(
            table_rows,
            cost,
            [(dtable, columns)],
            #[inline(always)]
            |range, [dtable]| {
                for number in number_from(range.start)..number_from(range.end) {
                    let row = ids[number] as usize - first_row - range.start;
                    let sums = &mut dtable[row * columns..][..columns];
                    for &position in &positions[starts[number] as usize..starts[number + 1] as usize] {
                        let dy = &dy[position as usize * columns..][..columns];
                        for (sum, dy) in sums.iter_mut().zip(dy) {
                            *sum += dy;
                        }
                    }
                }
            },
        );
    }
}
