//! Products on the host: B packed into panels, A packed or read in place, a microkernel whose sums stay in registers (Goto and van de
//! Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008), and dot products where there are few rows.
//!
//! An output's sum runs over the inner index in order, in one chain of fused multiply-adds, whatever the width of the registers and
//! wherever the output stands in a block: all processors and all numbers of threads give the same bits.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use crate::gpu::host::simd::to_half;

/// Inner indices per pass of the microkernel: its rows of A fit the first-level cache, its panels of B the second.
const PASS: usize = 512;
/// Side of the blocks that packing transposes.
const BLOCK: usize = 8;

/// A strided view of an operand, as rows of A or as columns of B: element (i, k) is at `offset + i·stride + k·inner_stride`.
#[derive(Clone, Copy)]
pub(crate) struct Operand<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) offset: usize,
    pub(crate) stride: usize,
    pub(crate) inner_stride: usize,
}

/// What an operand's elements are rounded to when they are packed.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Term {
    Exact,
    High,
    Low,
}

impl Term {
    /// The terms of A and B whose products are summed, for the number of f16 values per element.
    pub(super) fn pairs(f16_terms: u32) -> &'static [[Term; 2]] {
        match f16_terms {
            0 => &[[Term::Exact; 2]],
            1 => &[[Term::High; 2]],
            _ => &[[Term::High; 2], [Term::High, Term::Low], [Term::Low, Term::High]],
        }
    }

    #[inline(always)]
    fn of(self, x: f32) -> f32 {
        match self {
            Self::Exact => x,
            Self::High => to_half(x),
            // The residual at a scale of 2¹¹, so that it does not underflow.
            Self::Low => to_half((x - to_half(x)) * 2048.0) * (1.0 / 2048.0),
        }
    }
}

/// The microkernel's tile: as much as the registers hold.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    pub(super) rows: usize,
    pub(super) columns: usize,
}

impl Tile {
    pub(super) fn new() -> Self {
        struct Measure;
        impl WithSimd for Measure {
            type Output = Tile;
            fn with_simd<S: Simd>(self, _: S) -> Tile {
                Tile { rows: if S::REGISTER_COUNT >= 32 { 8 } else { 6 }, columns: 2 * S::F32_LANES }
            }
        }
        Arch::new().dispatch(Measure)
    }
}

impl Operand<'_> {
    #[inline(always)]
    fn at(&self, i: usize, k: usize) -> usize {
        self.offset + i * self.stride + k * self.inner_stride
    }

    /// The view from row (or column) `first` on.
    pub(crate) fn from(self, first: usize) -> Self {
        Self { offset: self.offset + first * self.stride, ..self }
    }

    /// Packs rows (or columns) 0..`count` in panels of `width`, in which they alternate, with zeros after the last; `inner` inner
    /// indices of each term, one term after the other.
    pub(super) fn pack(
        &self,
        count: usize,
        inner: usize,
        width: usize,
        terms: impl Iterator<Item = Term> + Clone,
        to: &mut [f32],
    ) {
        let per_panel = width * inner * terms.clone().count();
        for (panel, to) in to.chunks_exact_mut(per_panel).enumerate().take(count.div_ceil(width)) {
            let valid = width.min(count - panel * width);
            for (term, to) in terms.clone().zip(to.chunks_exact_mut(width * inner)) {
                let first = panel * width;
                match (self.stride, width) {
                    _ if valid < width || (self.stride != 1 && self.inner_stride != 1) => self.pack_any(first, valid, width, to),
                    (1, 2) => self.pack_rows::<2>(first, to), // on processors without vectors
                    (1, 6) => self.pack_rows::<6>(first, to),
                    (1, 8) => self.pack_rows::<8>(first, to),
                    (1, 16) => self.pack_rows::<16>(first, to),
                    (1, 32) => self.pack_rows::<32>(first, to),
                    _ if self.inner_stride == 1 => self.pack_transposed(first, width, to),
                    _ => self.pack_any(first, valid, width, to),
                }
                if term != Term::Exact {
                    to.iter_mut().for_each(|x| *x = term.of(*x));
                }
            }
        }
    }

    /// Where the rows of a panel alternate in memory already.
    #[inline(always)]
    fn pack_rows<const WIDTH: usize>(&self, first: usize, to: &mut [f32]) {
        for (k, row) in to.as_chunks_mut::<WIDTH>().0.iter_mut().enumerate() {
            row.copy_from_slice(&self.values[self.at(first, k)..][..WIDTH]);
        }
    }

    /// Where they are contiguous: transposed in blocks of eight.
    #[inline(always)]
    fn pack_transposed(&self, first: usize, width: usize, to: &mut [f32]) {
        let (inner, blocks) = (to.len() / width, width / BLOCK * BLOCK);
        for k in (0..inner / BLOCK * BLOCK).step_by(BLOCK) {
            let to = &mut to[k * width..][..BLOCK * width];
            let row = |i: usize| {
                let row = self.values[self.at(first + i, k)..].first_chunk::<BLOCK>();
                row.expect("bug: a row ends within its panel")
            };
            for i in (0..blocks).step_by(BLOCK) {
                for (q, column) in transpose(std::array::from_fn(|at| row(i + at))).iter().enumerate() {
                    to[q * width + i..][..BLOCK].copy_from_slice(column);
                }
            }
            for i in blocks..width {
                for (q, x) in row(i).iter().enumerate() {
                    to[q * width + i] = *x;
                }
            }
        }
        for k in inner / BLOCK * BLOCK..inner {
            for i in 0..width {
                to[k * width + i] = self.values[self.at(first + i, k)];
            }
        }
    }

    #[inline(always)]
    fn pack_any(&self, first: usize, valid: usize, width: usize, to: &mut [f32]) {
        for (k, row) in to.chunks_exact_mut(width).enumerate() {
            for (i, x) in row.iter_mut().enumerate() {
                *x = if i < valid { self.values[self.at(first + i, k)] } else { 0.0 };
            }
        }
    }
}

/// The rows of A in a block.
#[derive(Clone, Copy)]
pub(super) enum Rows<'a> {
    /// Packed panels.
    Packed(&'a [f32]),
    /// The number of rows, each contiguous and read where it is.
    InPlace(Operand<'a>, usize),
}

/// A block of a product: rows of A against whole panels of B.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    pub(super) a: Rows<'a>,
    /// Packed panels.
    pub(super) b: &'a [f32],
    /// Length of a row of packed A or a column of packed B: the inner size times the number of terms.
    pub(super) inner: usize,
    /// The first row and column of the block, if only tiles with elements on or below the diagonal are wanted.
    pub(super) lower_from: Option<[usize; 2]>,
}

impl Block<'_> {
    /// `store` takes (first row, first column, sums) of each tile, counted from the block's first; `scratch` holds the sums of large
    /// inner sizes.
    pub(super) fn compute(self, scratch: &mut Vec<f32>, store: impl FnMut(usize, usize, &mut [f32])) {
        Arch::new().dispatch(Computation { block: self, scratch, store });
    }
}

struct Computation<'a, F> {
    block: Block<'a>,
    scratch: &'a mut Vec<f32>,
    store: F,
}

impl<F: FnMut(usize, usize, &mut [f32])> WithSimd for Computation<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if S::REGISTER_COUNT >= 32 { self.run::<S, 8>(simd) } else { self.run::<S, 6>(simd) }
    }
}

impl<F: FnMut(usize, usize, &mut [f32])> Computation<'_, F> {
    #[inline(always)]
    fn run<S: Simd, const ROWS: usize>(self, simd: S) {
        let Self { block: Block { a, b, inner, lower_from }, scratch, mut store } = self;
        let columns = 2 * S::F32_LANES;
        let size = ROWS * columns;
        let is_wanted = |row: usize, column: usize| {
            lower_from.is_none_or(|[first_row, first_column]| first_row + row + ROWS > first_column + column)
        };
        let panels = b.len() / (columns * inner);
        let row_panels = match a {
            Rows::Packed(a) => a.len() / (ROWS * inner),
            Rows::InPlace(_, rows) => rows.div_ceil(ROWS),
        };
        let passes = inner.div_ceil(PASS);
        // One pass needs no more room than a tile.
        let scratch = room(scratch, if passes == 1 { size } else { row_panels * panels * size });
        for pass in 0..passes {
            let range = pass * PASS..inner.min((pass + 1) * PASS);
            for at in 0..row_panels * panels {
                // Packed rows stay in the cache while columns go by; rows in place are read once.
                let is_packed = matches!(a, Rows::Packed(_));
                let (i, j) = if is_packed { (at % row_panels, at / row_panels) } else { (at / panels, at % panels) };
                if !is_wanted(i * ROWS, j * columns) {
                    continue;
                }
                let b = &b[j * columns * inner..][range.start * columns..range.end * columns];
                let place = if passes == 1 { 0 } else { at };
                let sums = &mut scratch[place * size..][..size];
                a.multiply::<S, ROWS>(simd, [i, inner], range.clone(), b, sums);
                if pass + 1 == passes {
                    store(i * ROWS, j * columns, sums);
                }
            }
        }
    }
}

impl Rows<'_> {
    /// [`microkernel`] on panel `i` of rows with `inner` elements, of which it takes a range.
    #[inline(always)]
    fn multiply<S: Simd, const ROWS: usize>(
        self,
        simd: S,
        [i, inner]: [usize; 2],
        range: Range<usize>,
        b: &[f32],
        sums: &mut [f32],
    ) {
        let is_continued = range.start > 0;
        match self {
            Rows::Packed(a) => {
                let a = &a[i * ROWS * inner..][range.start * ROWS..range.end * ROWS];
                let a = a.as_chunks::<ROWS>().0;
                microkernel::<S, ROWS>(
                    simd,
                    #[inline(always)]
                    |k, row| a[k][row],
                    b,
                    sums,
                    is_continued,
                );
            }
            Rows::InPlace(a, rows) => {
                // The last row stands in for those after it.
                let row = |row: usize| &a.values[a.at((i * ROWS + row).min(rows - 1), range.start)..][..range.len()];
                let a: [&[f32]; ROWS] = std::array::from_fn(row);
                microkernel::<S, ROWS>(
                    simd,
                    #[inline(always)]
                    |k, row| a[row][k],
                    b,
                    sums,
                    is_continued,
                );
            }
        }
    }
}

/// sums ← [sums +] A·B for `ROWS` rows of A, whose elements `a` gives by inner index and row, and a panel of B with two vectors of
/// columns.
#[inline(always)]
fn microkernel<S: Simd, const ROWS: usize>(
    simd: S,
    a: impl Fn(usize, usize) -> f32,
    b: &[f32],
    sums: &mut [f32],
    continued: bool,
) {
    let (sums, _) = S::as_mut_simd_f32s(sums);
    let (sums, _) = sums.as_chunks_mut::<2>();
    let sums = &mut sums[..ROWS];
    let mut own = [[simd.splat_f32s(0.0); 2]; ROWS];
    if continued {
        own.copy_from_slice(sums);
    }
    let (b, _) = S::as_simd_f32s(b);
    for (k, b) in b.as_chunks::<2>().0.iter().enumerate() {
        for (row, own) in own.iter_mut().enumerate() {
            let a = simd.splat_f32s(a(k, row));
            own[0] = simd.mul_add_f32s(a, b[0], own[0]);
            own[1] = simd.mul_add_f32s(a, b[1], own[1]);
        }
    }
    sums.copy_from_slice(&own);
}

/// The columns of a block. The compiler makes single loads and stores of the plain loop, which take four times as long.
#[inline(always)]
fn transpose(rows: [&[f32; BLOCK]; BLOCK]) -> [[f32; BLOCK]; BLOCK] {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx") {
        // SAFETY: the processor has AVX.
        return unsafe { transpose_avx(rows) };
    }
    std::array::from_fn(|k| rows.map(|row| row[k]))
}

/// By pairs of rows, then of pairs, then of halves.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx")]
fn transpose_avx(rows: [&[f32; BLOCK]; BLOCK]) -> [[f32; BLOCK]; BLOCK] {
    use std::arch::x86_64::{
        _mm256_loadu_ps, _mm256_permute2f128_ps, _mm256_shuffle_ps, _mm256_storeu_ps, _mm256_unpackhi_ps, _mm256_unpacklo_ps,
    };
    // SAFETY: a row has eight floats.
    let r = rows.map(|row| unsafe { _mm256_loadu_ps(row.as_ptr()) });
    let [mut pairs, mut fours, mut columns] = [r; 3];
    for i in 0..4 {
        pairs[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        pairs[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    for half in [0, 4] {
        let [a, b, c, d] = [0, 1, 2, 3].map(|i| pairs[half + i]);
        fours[half] = _mm256_shuffle_ps::<0x44>(a, c);
        fours[half + 1] = _mm256_shuffle_ps::<0xee>(a, c);
        fours[half + 2] = _mm256_shuffle_ps::<0x44>(b, d);
        fours[half + 3] = _mm256_shuffle_ps::<0xee>(b, d);
    }
    for i in 0..4 {
        columns[i] = _mm256_permute2f128_ps::<0x20>(fours[i], fours[4 + i]);
        columns[4 + i] = _mm256_permute2f128_ps::<0x31>(fours[i], fours[4 + i]);
    }
    columns.map(|column| {
        let mut floats = [0.0; BLOCK];
        // SAFETY: `floats` has room for eight.
        unsafe { _mm256_storeu_ps(floats.as_mut_ptr(), column) };
        floats
    })
}

/// Floats of a cache line.
const LINE: usize = 16;

/// `numel` elements of a buffer that is kept, and grows if it must; their values are whatever they were. They begin with a cache line, so
/// that no vector is in two.
pub(super) fn room(buffer: &mut Vec<f32>, numel: usize) -> &mut [f32] {
    if buffer.len() < numel + LINE {
        buffer.resize(numel + LINE, 0.0);
    }
    let first = buffer.as_ptr().align_offset(4 * LINE).min(LINE);
    &mut buffer[first..][..numel]
}

/// Packed operands of [`multiply`], and its sums.
#[derive(Default)]
pub(crate) struct Panels {
    a: Vec<f32>,
    b: Vec<f32>,
    sums: Vec<f32>,
}

/// A·B for a task that runs on one thread: [rows, columns, inner] of A's rows and B's columns. `store` takes (row, first column, sums)
/// of a part of a row.
#[inline(always)]
pub(crate) fn multiply(
    panels: &mut Panels,
    a: Operand<'_>,
    b: Operand<'_>,
    [rows, columns, inner]: [usize; 3],
    mut store: impl FnMut(usize, usize, &[f32]),
) {
    let tile = Tile::new();
    let packed_b = room(&mut panels.b, columns.next_multiple_of(tile.columns) * inner);
    b.pack(columns, inner, tile.columns, std::iter::once(Term::Exact), packed_b);
    let a = if a.inner_stride == 1 {
        Rows::InPlace(a, rows)
    } else {
        let packed_a = room(&mut panels.a, rows.next_multiple_of(tile.rows) * inner);
        a.pack(rows, inner, tile.rows, std::iter::once(Term::Exact), packed_a);
        Rows::Packed(packed_a)
    };
    let block = Block { a, b: packed_b, inner, lower_from: None };
    block.compute(
        &mut panels.sums,
        #[inline(always)]
        |first_row, column, sums| {
            for (row, sums) in sums.chunks_exact(tile.columns).enumerate().take(rows - first_row) {
                store(first_row + row, column, &sums[..tile.columns.min(columns - column)]);
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_transposed() {
        let rows: [[f32; BLOCK]; BLOCK] = std::array::from_fn(|i| std::array::from_fn(|k| (10 * i + k) as f32));
        let columns = transpose(rows.each_ref());
        assert!((0..BLOCK).all(|i| (0..BLOCK).all(|k| columns[k][i] == rows[i][k])));
    }

    /// As both operands, of every orientation, with partial panels.
    #[test]
    fn panels_alternate_and_end_with_zeros() {
        let values: Vec<f32> = (0..40 * 50).map(|i| i as f32).collect();
        for (stride, inner_stride) in [(50, 1), (1, 50), (2, 50)] {
            let operand = Operand { values: &values, offset: 3, stride, inner_stride };
            for (count, inner, width) in [(16usize, 19, 16), (19, 17, 8), (5, 9, 6), (33, 8, 32), (5, 19, 2), (9, 17, 4)] {
                let mut to = vec![-1.0; count.div_ceil(width) * width * inner];
                operand.pack(count, inner, width, std::iter::once(Term::Exact), &mut to);
                for (at, found) in to.iter().enumerate() {
                    let (i, k) = (at / (width * inner) * width + at % width, at % (width * inner) / width);
                    let want = if i < count { values[3 + i * stride + k * inner_stride] } else { 0.0 };
                    assert_eq!(*found, want, "row {i}, inner {k}, stride {stride}, width {width}");
                }
            }
        }
    }

    #[test]
    fn every_width_of_registers_gives_the_same_bits() {
        fn product<S: Simd>(simd: S, in_place: bool) -> Vec<u32> {
            let (rows, columns, inner) = (19, 37, 2 * PASS + 5);
            let tile = Tile { rows: if S::REGISTER_COUNT >= 32 { 8 } else { 6 }, columns: 2 * S::F32_LANES };
            let values = |count: usize| (0..count).map(|i| (i as f32 * 12.9898).sin()).collect::<Vec<f32>>();
            let (x, y) = (values(rows * inner), values(inner * columns));
            let mut a = vec![0.0; rows.next_multiple_of(tile.rows) * inner];
            let mut b = vec![0.0; columns.next_multiple_of(tile.columns) * inner];
            let exact = || std::iter::once(Term::Exact);
            let x = Operand { values: &x, offset: 0, stride: inner, inner_stride: 1 };
            x.pack(rows, inner, tile.rows, exact(), &mut a);
            Operand { values: &y, offset: 0, stride: 1, inner_stride: columns }.pack(
                columns,
                inner,
                tile.columns,
                exact(),
                &mut b,
            );
            let mut found = vec![0; rows * columns];
            let store = |row: usize, column: usize, sums: &mut [f32]| {
                for (i, sums) in sums.chunks_exact(tile.columns).enumerate().take(rows - row) {
                    for (j, sum) in sums.iter().enumerate().take(columns - column) {
                        found[(row + i) * columns + column + j] = sum.to_bits();
                    }
                }
            };
            let block =
                Block { a: if in_place { Rows::InPlace(x, rows) } else { Rows::Packed(&a) }, b: &b, inner, lower_from: None };
            simd.vectorize(Computation { block, scratch: &mut Vec::new(), store });
            found
        }
        let want = product(pulp::Scalar::new(), false);
        assert_eq!(product(pulp::Scalar::new(), true), want, "in place");
        #[cfg(target_arch = "x86_64")]
        for in_place in [false, true] {
            assert!(pulp::x86::V3::try_new().is_none_or(|simd| product(simd, in_place) == want), "AVX2");
            assert!(pulp::x86::V4::try_new().is_none_or(|simd| product(simd, in_place) == want), "AVX-512");
        }
        assert!(want.iter().all(|bits| f32::from_bits(*bits).is_finite()));
    }
}
