//! The twin of the product kernels.

use std::cell::RefCell;

use super::Arguments;
use super::native::{Block, Operand, Rows, Term, Tile, room};
use crate::gpu::host::simd::{LANES, dispatch, total};
use crate::gpu::host::{Host, Shared};

/// Floats of B that are packed at a time.
const PACKED: usize = 4 << 20;
/// Most rows and columns of a task: its sums stay in the second-level cache.
const MOST_ROWS: usize = 64;
const MOST_COLUMNS: usize = 1024;
/// Tasks that even a small product is divided into, if it has enough tiles.
const FEWEST_TASKS: usize = 16;
/// Most rows and columns of a task that reads the rows of A where they are.
const STRIP: [usize; 2] = [512, 128];
/// The longest inner size for that: longer rows would come from memory again for every strip.
const MOST_IN_PLACE: usize = 8192;
/// Products with at most this many rows are computed by dot products with rows of B, where these are contiguous.
const FEW_ROWS: usize = 8;
/// Columns of a task of dot products.
const DOT_COLUMNS: usize = 64;

thread_local! {
    /// Packed B, kept by the thread that launches.
    static COLUMNS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// A task's packed operand (A, or B in [`Product::by_strips`]) and its sums, kept by each thread.
    static SCRATCH: RefCell<[Vec<f32>; 2]> = const { RefCell::new([const { Vec::new() }; 2]) };
}

struct Product<'a> {
    arguments: Arguments,
    host: &'a Host<'a>,
    a: &'a [f32],
    b: &'a [f32],
    c: &'a [f32],
    factor: &'a [f32],
    out: Shared,
    has_addend: bool,
    symmetric: bool,
}

pub(super) fn product(host: &Host<'_>) {
    let arguments: Arguments = host.arguments();
    assert!(arguments.split_k[0] == 1, "bug: the host tier splits no inner dimension");
    let [out] = host.outputs();
    let [a, b, c, factor] = [0, 1, 2, 3].map(|binding| host.input(binding));
    let product = Product {
        arguments,
        host,
        a,
        b,
        c,
        factor,
        out: Shared(out.as_mut_ptr()),
        has_addend: host.flag("ADDEND"),
        symmetric: host.flag("SYMMETRIC"),
    };
    product.check(out.len());
    let [rows, _, inner] = product.sizes();
    let is_in_place = !host.flag("TRANSPOSE_A") && host.constant("F16_TERMS") == 0;
    if is_in_place && rows <= FEW_ROWS && host.flag("TRANSPOSE_B") && !product.symmetric {
        product.by_dots();
    } else if is_in_place && inner <= MOST_IN_PLACE {
        product.by_strips();
    } else {
        COLUMNS.with_borrow_mut(|panels| product.by_panels(panels));
    }
}

/// A part of the product: matrices of the batch, rows and columns.
#[derive(Clone, Copy)]
struct Part {
    batch: [usize; 2],
    rows: [usize; 2],
    columns: [usize; 2],
}

impl<'a> Product<'a> {
    /// [rows, columns, inner]
    fn sizes(&self) -> [usize; 3] {
        self.arguments.sizes.map(|size| size as usize)
    }

    fn batch(&self) -> usize {
        self.host.workgroups()[2] as usize
    }

    /// The output's elements are within its binding: they are written through a pointer.
    fn check(&self, numel: usize) {
        let ([rows, columns, _], at) = (self.sizes(), self.out_at(self.batch() - 1));
        let stride = self.arguments.strides[3] as usize;
        assert!(at + (rows - 1) * stride + columns <= numel, "bug: an output beyond its binding");
    }

    fn out_at(&self, matrix: usize) -> usize {
        self.arguments.offsets[3] as usize + matrix * self.arguments.batches[3] as usize
    }

    /// A matrix of A (side 0), by rows, or of B (side 1), by columns.
    fn operand(&self, side: usize, matrix: usize) -> Operand<'a> {
        let Arguments { offsets, batches, strides, .. } = self.arguments;
        let along_inner = [!self.host.flag("TRANSPOSE_A"), self.host.flag("TRANSPOSE_B")][side];
        let stored = strides[side] as usize;
        let (stride, inner_stride) = if along_inner { (stored, 1) } else { (1, stored) };
        let offset = offsets[side] as usize + matrix * batches[side] as usize;
        Operand { values: [self.a, self.b][side], offset, stride, inner_stride }
    }

    /// Rows of A are read where they are, and a task packs the columns that it needs: no core reads what another has packed.
    fn by_strips(&self) {
        let (tile, [rows, columns, inner]) = (Tile::new(), self.sizes());
        let [row_step, column_step] = strip(self.batch(), [rows, columns], tile);
        let column_tasks = columns.div_ceil(column_step);
        let per_matrix = rows.div_ceil(row_step) * column_tasks;
        let tasks = self.batch() * per_matrix;
        self.host.threads().run(tasks, &|task| {
            let task = if self.symmetric { tasks - 1 - task } else { task }; // the last rows have most tiles
            let (matrix, task) = (task / per_matrix, task % per_matrix);
            let first = [task / column_tasks * row_step, task % column_tasks * column_step];
            let count = [row_step.min(rows - first[0]), column_step.min(columns - first[1])];
            if self.symmetric && first[0] + count[0] <= first[1] {
                return;
            }
            SCRATCH.with_borrow_mut(|[panels, sums]| {
                let b = room(panels, count[1].next_multiple_of(tile.columns) * inner);
                let operand = self.operand(1, matrix).from(first[1]);
                dispatch(
                    #[inline(always)]
                    || operand.pack(count[1], inner, tile.columns, std::iter::once(Term::Exact), b),
                );
                let a = Rows::InPlace(self.operand(0, matrix).from(first[0]), count[0]);
                let block = Block { a, b, inner, lower_from: self.symmetric.then_some(first) };
                self.compute(block, matrix, first, count, sums);
            });
        });
    }

    /// Computes a block of [rows, columns] of a matrix and stores it from `first` on.
    fn compute(&self, block: Block<'_>, matrix: usize, first: [usize; 2], [rows, columns]: [usize; 2], sums: &mut Vec<f32>) {
        let tile = Tile::new();
        block.compute(
            sums,
            #[inline(always)]
            |row, column, sums| {
                let [rows, columns] = [tile.rows.min(rows - row), tile.columns.min(columns - column)];
                let [row, column] = [first[0] + row, first[1] + column];
                for (at, sums) in sums.chunks_exact_mut(tile.columns).enumerate().take(rows) {
                    self.store(matrix, row + at, column, &mut sums[..columns]);
                }
                if self.symmetric {
                    self.mirror(matrix, [row, column], [rows, columns]);
                }
            },
        );
    }

    fn by_panels(&self, panels: &mut Vec<f32>) {
        let [rows, columns, inner] = self.sizes();
        let terms = Term::pairs(self.host.constant("F16_TERMS"));
        let size = inner * terms.len();
        let step = (PACKED / size).max(64).next_multiple_of(64).min(columns);
        let batch_step = if step == columns { (PACKED / (size * columns)).max(1) } else { 1 };
        for matrix in (0..self.batch()).step_by(batch_step) {
            let batch = [matrix, batch_step.min(self.batch() - matrix)];
            for column in (0..columns).step_by(step) {
                let first_row = if self.symmetric { column } else { 0 };
                let part = Part { batch, rows: [first_row, rows - first_row], columns: [column, step.min(columns - column)] };
                self.part(part, terms, panels);
            }
        }
    }

    /// Packs the columns of a part for all threads and computes it; a task packs the rows that it needs, so that little is moved
    /// from one core's cache to another's.
    fn part(&self, part: Part, terms: &'static [[Term; 2]], panels: &mut Vec<f32>) {
        let tile = Tile::new();
        let b = self.pack_columns(part, tile.columns, terms, panels);
        let [row_step, column_step] = task_panels(part.batch[1], [part.rows[1].div_ceil(tile.rows), b.count], tile);
        let rows_per_task = row_step * tile.rows;
        let (row_tasks, column_tasks) = (part.rows[1].div_ceil(rows_per_task), b.count.div_ceil(column_step));
        let tasks = part.batch[1] * row_tasks * column_tasks;
        self.host.threads().run(tasks, &|task| {
            let task = if self.symmetric { tasks - 1 - task } else { task }; // the last rows have most tiles
            let (matrix, task) = (task / (row_tasks * column_tasks), task % (row_tasks * column_tasks));
            let (i, j) = (task / column_tasks * rows_per_task, task % column_tasks * column_step);
            let rows = rows_per_task.min(part.rows[1] - i);
            let first = [part.rows[0] + i, part.columns[0] + j * tile.columns];
            if self.symmetric && first[0] + rows <= first[1] {
                return;
            }
            SCRATCH.with_borrow_mut(|[a, sums]| {
                let inner = self.sizes()[2];
                let a = room(a, rows.next_multiple_of(tile.rows) * inner * terms.len());
                let operand = self.operand(0, part.batch[0] + matrix).from(first[0]);
                dispatch(
                    #[inline(always)]
                    || operand.pack(rows, inner, tile.rows, terms.iter().map(|pair| pair[0]), a),
                );
                let (a, b) = (Rows::Packed(a), b.range(matrix, j, column_step));
                let block = Block { a, b, inner: inner * terms.len(), lower_from: self.symmetric.then_some(first) };
                let columns = (column_step * tile.columns).min(part.columns[1] - j * tile.columns);
                self.compute(block, part.batch[0] + matrix, first, [rows, columns], sums);
            });
        });
    }

    /// Packs the columns of a part's B in panels of `width`; once, if the matrices of the batch share it.
    fn pack_columns<'p>(&self, part: Part, width: usize, terms: &'static [[Term; 2]], to: &'p mut Vec<f32>) -> Packed<'p> {
        let [first, count] = part.columns;
        let matrices = if self.arguments.batches[1] == 0 { 1 } else { part.batch[1] };
        let (inner, panels) = (self.sizes()[2], count.div_ceil(width));
        let size = width * inner * terms.len();
        let to = room(to, matrices * panels * size);
        self.host.rows(
            matrices * panels,
            2 * size,
            [(&mut *to, size)],
            #[inline(always)]
            |range, [to]| {
                for (at, to) in range.zip(to.chunks_exact_mut(size)) {
                    let panel = at % panels * width;
                    let operand = self.operand(1, part.batch[0] + at / panels).from(first + panel);
                    operand.pack(width.min(count - panel), inner, width, terms.iter().map(|pair| pair[1]), to);
                }
            },
        );
        Packed { values: to, count: panels, size, is_shared: matrices == 1 }
    }

    /// Few rows: every column is a dot product with each of them, so that B is read once and not packed.
    fn by_dots(&self) {
        let [rows, columns, inner] = self.sizes();
        let tasks = columns.div_ceil(DOT_COLUMNS);
        let step = (32_768 / (rows * DOT_COLUMNS * inner)).clamp(1, tasks);
        self.host.threads().run((self.batch() * tasks).div_ceil(step), &|task| {
            for task in task * step..(self.batch() * tasks).min((task + 1) * step) {
                let (matrix, first) = (task / tasks, task % tasks * DOT_COLUMNS);
                let count = DOT_COLUMNS.min(columns - first);
                let (a, b) = (self.operand(0, matrix), self.operand(1, matrix).from(first));
                let mut sums = [[0.0; DOT_COLUMNS]; FEW_ROWS];
                dispatch(
                    #[inline(always)]
                    || dots(a, b, [rows, count, inner], &mut sums),
                );
                for (row, sums) in sums.iter_mut().enumerate().take(rows) {
                    self.store(matrix, row, first, &mut sums[..count]);
                }
            }
        });
    }

    /// The epilogue of part of a row: α·f·sum + β·out + σ·C + δ·I.
    #[inline(always)]
    fn store(&self, matrix: usize, row: usize, column: usize, sums: &mut [f32]) {
        let Arguments { strides, offsets, batches, factor, epilogue: [mut alpha, scale, delta, beta], .. } = self.arguments;
        if factor[0] == 1 {
            alpha *= self.factor[factor[1] as usize + matrix * factor[2] as usize];
        }
        let (base, stride) = (self.out_at(matrix), strides[3] as usize);
        let count = if self.symmetric { sums.len().min((row + 1).saturating_sub(column)) } else { sums.len() };
        let sums = &mut sums[..count];
        // SAFETY: within the output, as `check` has asserted, and of this tile alone: in a symmetric product the elements on and
        // below the diagonal and their mirror images.
        let out = unsafe { std::slice::from_raw_parts_mut(self.out.at(base + row * stride + column), count) };
        if self.has_addend || delta != 0.0 {
            sums.iter_mut().for_each(|sum| *sum *= alpha);
            alpha = 1.0;
        }
        if self.has_addend {
            let at = offsets[2] as usize + matrix * batches[2] as usize + row * strides[2] as usize + column;
            for (sum, c) in sums.iter_mut().zip(&self.c[at..]) {
                *sum = scale.mul_add(*c, *sum);
            }
        }
        if delta != 0.0 && (column..column + count).contains(&row) {
            sums[row - column] += delta;
        }
        if beta == 0.0 {
            for (out, sum) in out.iter_mut().zip(sums.iter()) {
                *out = alpha * sum;
            }
        } else {
            for (out, sum) in out.iter_mut().zip(sums.iter()) {
                *out = beta.mul_add(*out, alpha * sum);
            }
        }
    }

    /// Copies what a tile has below the diagonal to its mirror image, line by line.
    fn mirror(&self, matrix: usize, [row, column]: [usize; 2], [rows, columns]: [usize; 2]) {
        let (base, stride) = (self.out_at(matrix), self.arguments.strides[3] as usize);
        for column in column..(column + columns).min(row + rows) {
            for row in row.max(column + 1)..row + rows {
                // SAFETY: within the output, as `check` has asserted, and of this tile alone.
                unsafe { *self.out.at(base + column * stride + row) = *self.out.at(base + row * stride + column) };
            }
        }
    }
}

/// The panels of an operand: `count` per matrix, each of `size` floats.
struct Packed<'a> {
    values: &'a [f32],
    count: usize,
    size: usize,
    is_shared: bool,
}

impl Packed<'_> {
    /// `step` panels of a matrix from `first` on, or as many as there are.
    fn range(&self, matrix: usize, first: usize, step: usize) -> &[f32] {
        let before = if self.is_shared { 0 } else { matrix * self.count };
        &self.values[(before + first) * self.size..(before + self.count.min(first + step)) * self.size]
    }
}

/// Rows and columns of a task of [`Product::by_strips`].
fn strip(batch: usize, [rows, columns]: [usize; 2], tile: Tile) -> [usize; 2] {
    let (panels, row_tasks) = (columns.div_ceil(tile.columns), rows.div_ceil(STRIP[0]));
    let width = (batch * row_tasks * panels / (2 * FEWEST_TASKS)).clamp(1, STRIP[1] / tile.columns);
    let column_tasks = batch * panels.div_ceil(width);
    let row_tasks = row_tasks.max(FEWEST_TASKS.div_ceil(column_tasks).min(rows.div_ceil(64)));
    [rows.div_ceil(row_tasks).next_multiple_of(tile.rows), width * tile.columns]
}

/// Panels of A and of B per task: all columns, so that its rows are packed once, unless that makes too few tasks.
fn task_panels(batch: usize, [a_panels, b_panels]: [usize; 2], tile: Tile) -> [usize; 2] {
    let most = [MOST_ROWS / tile.rows, MOST_COLUMNS / tile.columns];
    let rows = (batch * a_panels / FEWEST_TASKS).clamp(most[0].min(4), most[0]);
    let row_tasks = batch * a_panels.div_ceil(rows);
    let column_tasks = FEWEST_TASKS.div_ceil(row_tasks).min(b_panels);
    [rows, b_panels.div_ceil(column_tasks).min(most[1])]
}

/// `sums[i][j]` ← row i of A · column j of B, both contiguous. Four columns at a time, each with its own chain of sums.
#[inline(always)]
fn dots(a: Operand<'_>, b: Operand<'_>, [rows, columns, inner]: [usize; 3], sums: &mut [[f32; DOT_COLUMNS]; FEW_ROWS]) {
    let row = |operand: &Operand<'_>, i: usize| operand.offset + i * operand.stride;
    for first in (0..columns).step_by(4) {
        let columns = 4.min(columns - first);
        let b: [&[f32]; 4] = std::array::from_fn(|j| &b.values[row(&b, first + j.min(columns - 1))..][..inner]);
        for (i, sums) in sums.iter_mut().enumerate().take(rows) {
            let a = &a.values[row(&a, i)..][..inner];
            let found = four_dots(a, b);
            sums[first..first + columns].copy_from_slice(&found[..columns]);
        }
    }
}

#[inline(always)]
fn four_dots(a: &[f32], b: [&[f32]; 4]) -> [f32; 4] {
    let mut sums = [[0.0; LANES]; 4];
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let b_chunks = b.map(|b| b.as_chunks::<LANES>());
    for (k, a) in a_chunks.iter().enumerate() {
        for (sums, (b, _)) in sums.iter_mut().zip(&b_chunks) {
            for ((sum, a), b) in sums.iter_mut().zip(a).zip(&b[k]) {
                *sum = a.mul_add(*b, *sum);
            }
        }
    }
    for (sums, (_, b_rest)) in sums.iter_mut().zip(&b_chunks) {
        for ((sum, a), b) in sums.iter_mut().zip(a_rest).zip(*b_rest) {
            *sum = a.mul_add(*b, *sum);
        }
    }
    sums.map(total)
}
