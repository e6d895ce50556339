//! Embedding: y[t] = table[ids[t]]. table [vocabulary, dim], ids [n] → [n, dim]. Saves ids; the gradient of the table adds the
//! rows of dy that share an id in the order of their positions, and touches no other row. The table is bound in windows of rows.

use crate::error::{Error, Result};
use crate::gpu::{Access, Kernel, Launch, Slice, grid, vectors};
use crate::params::Gradient;
use crate::tape::Var;
use crate::tensor::{Indices, Tensor};

const SOURCE: &str = include_str!("../../shaders/embedding.wgsl");

static FORWARD: Kernel = Kernel::trusted("embedding", SOURCE, "forward", &[Access::Read, Access::Read, Access::ReadWrite]);
static BACKWARD: Kernel = Kernel::trusted(
    "embedding backward",
    SOURCE,
    "backward",
    &[Access::Read, Access::Read, Access::Read, Access::Read, Access::ReadWrite],
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
        for_each_window(table, |slice, first, rows| {
            let buffers = [ids.slice(), slice, y.slice()];
            launch(&FORWARD, &buffers, ids.len(), columns, first, rows, 0, &y)
        })?;
        let ids = ids.clone();
        self.tape().record_accumulating("embedding", y, [self], move |dy, _| {
            Ok([Some(Gradient::accumulate(move |sum| backward(&dy, &ids, vocabulary, sum)))])
        })
    }
}

/// Every id is a row of the vocabulary, or an error that names the first that is not.
pub(super) fn check_ids(op: &'static str, ids: &Indices, vocabulary: usize) -> Result<()> {
    match ids.values().iter().position(|&id| id as usize >= vocabulary) {
        Some(at) => Err(Error::shape(op, format!("index {} at position {at}: below {vocabulary} expected", ids.values()[at]))),
        None => Ok(()),
    }
}

/// Adds to the rows of the sum so far, if there is one, that `ids` name.
fn backward(dy: &Tensor, ids: &Indices, vocabulary: usize, sum: Option<Tensor>) -> Result<Tensor> {
    let columns = dy.rows_and_columns().1;
    let mut positions: Vec<u32> = (0..ids.len() as u32).collect();
    positions.sort_by_key(|&position| ids.values()[position as usize]);
    let id_at = |place: usize| ids.values()[positions[place] as usize];
    let mut starts: Vec<u32> =
        (0..positions.len()).filter(|&place| place == 0 || id_at(place) != id_at(place - 1)).map(|place| place as u32).collect();
    let distinct: Vec<u32> = starts.iter().map(|&start| id_at(start as usize)).collect();
    starts.push(positions.len() as u32);
    let longest = starts.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
    let [distinct, starts, positions] = [&distinct, &starts, &positions].map(|values| Indices::from_slice(dy.gpu(), values));
    let (distinct, starts, positions) = (distinct?, starts?, positions?);
    let dtable = match sum {
        Some(sum) => sum.into_unique()?,
        None => Tensor::zeros(dy.gpu(), &[vocabulary, columns])?,
    };
    for_each_window(&dtable, |slice, first, rows| {
        let buffers = [distinct.slice(), starts.slice(), positions.slice(), dy.slice(), slice];
        launch(&BACKWARD, &buffers, distinct.len(), columns, first, rows, longest, dy)
    })?;
    Ok(dtable)
}

/// Calls `f` with each window of rows of a table that fits a binding: the slice, its first row, its number of rows.
fn for_each_window(table: &Tensor, mut f: impl FnMut(Slice<'_>, usize, usize) -> Result<()>) -> Result<()> {
    let (rows, columns) = table.rows_and_columns();
    let most = (table.gpu().binding_limit() / 4) as usize / columns;
    let step = if rows <= most { rows } else { (most / 64 * 64).max(64) };
    (0..rows).step_by(step).try_for_each(|first| {
        let count = step.min(rows - first);
        f(table.window(first * columns, count * columns), first, count)
    })
}

#[allow(clippy::too_many_arguments)]
fn launch(
    kernel: &Kernel,
    buffers: &[Slice<'_>],
    count: usize,
    columns: usize,
    first: usize,
    rows: usize,
    iterations: u32,
    on: &Tensor,
) -> Result<()> {
    let width = if columns.is_multiple_of(4) { 4 } else { 1 };
    on.gpu().launch(&Launch {
        kernel,
        constants: &[("VECTORS", vectors(columns))],
        buffers,
        arguments: bytemuck::cast_slice(&[count as u32, columns as u32, first as u32, rows as u32]),
        workgroups: grid((count * (columns / width)) as u64, 64),
        iterations: u64::from(iterations),
        work: 0,
    })
}
