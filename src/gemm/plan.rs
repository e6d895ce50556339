//! Which kernel a product gets, and the constants it is compiled with.

use super::FIRST_GROUP;
use crate::gpu::{Access, Gpu, Kernel, KernelTier};

const BINDINGS: &[Access] = &[Access::Read, Access::Read, Access::Read, Access::Read, Access::ReadWrite];

static LANES: Kernel = Kernel::trusted(
    "matmul",
    concat!(include_str!("../../shaders/matmul_common.wgsl"), include_str!("../../shaders/matmul_lanes.wgsl")),
    "main",
    BINDINGS,
)
.cut_along(1, FIRST_GROUP);

static MATRIX: Kernel = Kernel::trusted(
    "matmul",
    concat!(include_str!("../../shaders/matmul_common.wgsl"), include_str!("../../shaders/matmul_matrix.wgsl")),
    "main",
    BINDINGS,
)
.cut_along(1, FIRST_GROUP);

static TILED: Kernel = Kernel::trusted(
    "matmul",
    concat!(include_str!("../../shaders/matmul_common.wgsl"), include_str!("../../shaders/matmul_tiled.wgsl")),
    "main",
    BINDINGS,
)
.cut_along(1, FIRST_GROUP);

static SUM: Kernel = Kernel::trusted(
    "matmul sum",
    concat!(include_str!("../../shaders/matmul_common.wgsl"), include_str!("../../shaders/matmul_sum.wgsl")),
    "main",
    BINDINGS,
);

/// What a product problem of its kernel.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Problem {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) inner: usize,
    pub(super) batch: usize,
    pub(super) transpose_a: bool,
    pub(super) transpose_b: bool,
    /// Operands and sizes allow vec4.
    pub(super) vectors: bool,
    /// How many halves stand for an operand; 0 where it stays f32.
    pub(super) halves: u32,
    pub(super) addend: bool,
    pub(super) diagonal: bool,
    pub(super) beta: bool,
    pub(super) symmetric: bool,
}

/// What the kernels depend on beside the product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DeviceCaps {
    profile: KernelTier,
    /// Lanes of a subgroup, where that is fixed.
    lanes: u32,
    /// The most lanes of a subgroup, and the side of the blocks of cooperative matrices.
    matrices: Option<(u32, u32)>,
}

impl DeviceCaps {
    pub(super) fn of(gpu: &Gpu) -> Self {
        Self { profile: gpu.kernels(), lanes: gpu.lanes(), matrices: gpu.matrices() }
    }
}

/// The kernel for a product and its tile.
pub(super) struct Plan {
    pub(super) kernel: &'static Kernel,
    pub(super) constants: Vec<(&'static str, u32)>,
    pub(super) tile_rows: usize,
    pub(super) tile_columns: usize,
    /// Loop iterations of an invocation.
    pub(super) iterations: usize,
}

/// The fewest tiles of 128 × 128 that occupy a GPU: with fewer, tiles of 64 × 64 leave fewer of its cores idle.
const OCCUPYING_TILES: usize = 96;

/// The workgroups that occupy a software adapter, and a GPU.
const OCCUPYING_GROUPS: [usize; 2] = [16, 128];

/// The fewest inner indices that are worth a workgroup of their own.
const MIN_SPLIT_K_DEPTH: usize = 256;

impl Problem {
    /// The inner indices of a workgroup: all of them, unless there are too few tiles to occupy the device. A rule of the shape and
    /// the profile alone, as every split rounds differently.
    pub(super) fn split_k_depth(&self, caps: DeviceCaps) -> usize {
        let (plan, groups) = match caps.profile {
            KernelTier::Fallback => (Plan::lanes(caps.lanes, self.rows_of_tiles(caps.lanes)[0], self), OCCUPYING_GROUPS[0]),
            _ => (Plan::tiled(64, self), OCCUPYING_GROUPS[1]),
        };
        let tiles = self.rows.div_ceil(plan.tile_rows) * self.columns.div_ceil(plan.tile_columns);
        let occupied = self.batch * if self.symmetric { tiles.div_ceil(2) } else { tiles };
        let split_k = (groups / occupied).min(self.inner / MIN_SPLIT_K_DEPTH).max(1);
        if split_k == 1 { self.inner } else { self.inner.div_ceil(split_k).next_multiple_of(16) }
    }

    /// The sides that a workgroup's tile of outputs may have, best by rule first: 128 where the shape fills that and the device. Two
    /// halves take the memory of two tiles.
    fn tiles(&self) -> &'static [u32] {
        if self.rows < 128 || self.columns < 128 || self.halves == 2 {
            return &[64];
        }
        let tiles = self.batch * self.rows.div_ceil(128) * self.columns.div_ceil(128) / if self.symmetric { 2 } else { 1 };
        if tiles >= OCCUPYING_TILES { &[128, 64] } else { &[64, 128] }
    }

    /// The rows that a tile of the fallback kernel may have, best by rule first.
    fn rows_of_tiles(&self, lanes: u32) -> Vec<u32> {
        match self.rows {
            ..=8 => vec![8.max(lanes)],
            // Two halves take twice the registers; single floats take long to compile.
            _ if self.halves == 2 || !self.vectors => vec![32],
            _ => {
                let computed = |rows: u32| self.rows.next_multiple_of(rows as usize);
                // 48 rows take 8 % less time for each than 32. 64 take still less or, on Mesa 25, more.
                let mut choices = vec![if computed(48) * 100 <= computed(32) * 108 { 48 } else { 32 }, 64];
                choices.retain(|rows| rows % lanes == 0);
                choices
            }
        }
    }

    /// What all kernels of a product are compiled with.
    fn constants(&self) -> [(&'static str, u32); 9] {
        [
            ("TRANSPOSE_A", self.transpose_a.into()),
            ("TRANSPOSE_B", self.transpose_b.into()),
            ("VECTORS", self.vectors.into()),
            ("HALVES", self.halves),
            ("SPLIT", (self.halves == 2).into()),
            ("ADDEND", self.addend.into()),
            ("DIAGONAL", self.diagonal.into()),
            ("BETA", self.beta.into()),
            ("SYMMETRIC", self.symmetric.into()),
        ]
    }

    /// Floating-point operations.
    pub(super) fn work(&self) -> u64 {
        2 * (self.batch * self.rows * self.columns * self.inner) as u64 / if self.symmetric { 2 } else { 1 }
    }

    /// The class of shapes that share a choice: sizes up to the next power of two, and what changes the inner loop.
    pub(super) fn class(&self) -> String {
        let [batch, rows, columns, inner] = [self.batch, self.rows, self.columns, self.inner].map(usize::next_power_of_two);
        let mark = |turned: bool| if turned { 'T' } else { 'N' };
        let width = if self.vectors { 4 } else { 1 };
        let half = if self.symmetric { " symmetric" } else { "" };
        let operands = format!("{}{} halves {} width {width}", mark(self.transpose_a), mark(self.transpose_b), self.halves);
        format!("{operands}{half}: {batch} of {rows} x {inner} x {columns}")
    }
}

impl Plan {
    /// What tells it from the other candidates.
    pub(super) fn name(&self) -> String {
        format!("{} x {}", self.tile_rows, self.tile_columns)
    }

    /// The plans that give a product's bits, best by rule first.
    pub(super) fn of(caps: DeviceCaps, problem: &Problem) -> Vec<Self> {
        let mut plans: Vec<Self> = match (caps.profile, caps.matrices) {
            (KernelTier::Fallback, _) => {
                problem.rows_of_tiles(caps.lanes).iter().map(|&rows| Self::lanes(caps.lanes, rows, problem)).collect()
            }
            (KernelTier::Matrix, Some((lanes, block))) if problem.halves > 0 => {
                problem.tiles().iter().map(|&tile| Self::matrix(lanes, block, tile, problem)).collect()
            }
            _ => problem.tiles().iter().map(|&tile| Self::tiled(tile, problem)).collect(),
        };
        for plan in &mut plans {
            plan.constants.extend(problem.constants());
        }
        plans
    }

    /// Sums `split_k` partial products and runs the epilogue.
    pub(super) fn sum(split_k: usize, problem: &Problem) -> Self {
        let constants = problem.constants().to_vec();
        Self { kernel: &SUM, constants, tile_rows: 8, tile_columns: 32, iterations: split_k + 4 }
    }

    fn lanes(lanes: u32, rows: u32, problem: &Problem) -> Self {
        let span = if problem.columns <= 4 * lanes as usize { 1 } else { 2 };
        Self {
            kernel: &LANES,
            constants: vec![("LANES", lanes), ("ROWS", rows), ("PARTS", rows / lanes), ("SPAN", span)],
            tile_rows: rows as usize,
            tile_columns: (4 * lanes * span) as usize,
            iterations: problem.inner.div_ceil(4) + (rows * span + rows / lanes) as usize,
        }
    }

    fn tiled(tile: u32, problem: &Problem) -> Self {
        Self {
            kernel: &TILED,
            constants: vec![("TILE", tile), ("GROUPS", tile / 64)],
            tile_rows: tile as usize,
            tile_columns: tile as usize,
            iterations: problem.inner.div_ceil(16) * (1 + 4),
        }
    }

    /// Regions of whole blocks, one for each subgroup of `lanes`, in a grid as square as may be. Their blocks of sums take at most
    /// 16 KiB when they are handed on, beside 12 KiB of tiles.
    fn matrix(lanes: u32, block: u32, tile: u32, problem: &Problem) -> Self {
        let side = tile / block;
        let regions = (256 / lanes).min(side * side).min(4096 / (block * block));
        let down = 1 << (regions.ilog2() / 2);
        let across = regions / down;
        let (region_rows, region_columns) = (side / down, side / across);
        Self {
            kernel: &MATRIX,
            constants: vec![
                ("TILE", tile),
                ("GROUPS", tile / 64),
                ("LARGE", u32::from(block == 16)),
                ("STEPS", 16 / block),
                ("REGIONS", regions),
                ("ACROSS", across),
                ("REGION_ROWS", region_rows),
                ("REGION_COLUMNS", region_columns),
                ("BLOCKS", region_rows * region_columns),
                ("QUOTA", (regions * block * block).div_ceil(4 * 256)),
            ],
            tile_rows: tile as usize,
            tile_columns: tile as usize,
            iterations: problem.inner.div_ceil(16),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Every tile, by every choice that changes the kernel's text. The others only choose between branches of an `if`, of which
    /// both are validated whatever the choice.
    fn products() -> Vec<Problem> {
        let sizes = [(1, 1), (8, 1000), (1000, 8), (1000, 1000), (4096, 4096)];
        let choices = (0..48).map(|bits| ([0, 1, 2, 3].map(|at| bits >> at & 1 == 1), bits >> 4));
        let product = |([transpose_a, transpose_b, vectors, symmetric], halves): ([bool; 4], u32)| {
            sizes.map(|(rows, columns)| Problem {
                halves,
                rows,
                columns,
                inner: 1,
                batch: 1,
                transpose_a,
                transpose_b,
                vectors,
                symmetric,
                ..Default::default()
            })
        };
        choices.flat_map(product).collect()
    }

    /// Every caps that differs for `Plan`.
    fn all_caps() -> Vec<DeviceCaps> {
        let fallback = [4, 8, 16, 32].map(|lanes| DeviceCaps { profile: KernelTier::Fallback, lanes, matrices: None });
        let tiled = DeviceCaps { profile: KernelTier::Portable, lanes: 8, matrices: None };
        let matrices = [4, 8, 16, 32, 64, 128].into_iter().flat_map(|lanes| [(lanes, 8), (lanes, 16)]);
        let matrix = matrices.map(|matrices| DeviceCaps { profile: KernelTier::Matrix, lanes: 8, matrices: Some(matrices) });
        fallback.into_iter().chain([tiled]).chain(matrix).collect()
    }

    fn validate(profile: KernelTier) {
        let mut seen = HashSet::new();
        for caps in all_caps().into_iter().filter(|caps| caps.profile == profile) {
            for problem in products() {
                for plan in Plan::of(caps, &problem) {
                    if seen.insert((std::ptr::from_ref(plan.kernel), plan.constants.clone())) {
                        let outcome = plan.kernel.validate(profile, &plan.constants);
                        outcome.unwrap_or_else(|error| panic!("{caps:?} {problem:?}: {error}"));
                    }
                }
            }
        }
    }

    #[test]
    fn every_split_k_sum_validates() {
        for (bits, halves) in (0..32).flat_map(|bits| [0, 1, 2].map(|halves| (bits, halves))) {
            let [vectors, addend, diagonal, beta, symmetric] = [0, 1, 2, 3, 4].map(|at| bits >> at & 1 == 1);
            let plan = Plan::sum(2, &Problem { halves, vectors, addend, diagonal, beta, symmetric, ..Default::default() });
            plan.kernel.validate(KernelTier::Portable, &plan.constants).unwrap_or_else(|error| panic!("{error}"));
        }
    }

    #[test]
    fn every_fallback_kernel_validates() {
        validate(KernelTier::Fallback);
    }

    #[test]
    fn every_portable_kernel_validates() {
        validate(KernelTier::Portable);
    }

    #[test]
    fn every_matrix_kernel_validates() {
        validate(KernelTier::Matrix);
    }

    #[test]
    fn regions_cover_the_tile_and_their_sums_fit_the_shared_memory() {
        let halved: Vec<Problem> = products().into_iter().filter(|problem| problem.halves > 0).collect();
        for caps in all_caps().into_iter().filter(|caps| caps.profile == KernelTier::Matrix) {
            for plan in halved.iter().flat_map(|problem| Plan::of(caps, problem)) {
                let of = |name| plan.constants.iter().find(|(constant, _)| *constant == name).map_or(0, |(_, value)| *value);
                let block = if of("LARGE") == 1 { 16 } else { 8 };
                let blocks = (of("TILE") / block) * (of("TILE") / block);
                assert_eq!(of("REGIONS") * of("REGION_ROWS") * of("REGION_COLUMNS"), blocks, "{caps:?}");
                let tiles = of("TILE") * 24 * 2 * 2 * of("HALVES");
                assert!(tiles + of("REGIONS") * block * block * 4 <= 32 << 10, "{caps:?}");
            }
        }
    }

    #[test]
    fn the_inner_dimension_is_cut_where_few_tiles_would_leave_the_device_idle() {
        let fallback = DeviceCaps { profile: KernelTier::Fallback, lanes: 8, matrices: None };
        let portable = DeviceCaps { profile: KernelTier::Portable, ..fallback };
        let depth = |caps, [rows, inner, columns]: [usize; 3], batch, symmetric| {
            Problem { rows, inner, columns, batch, symmetric, ..Default::default() }.split_k_depth(caps)
        };
        // Too shallow; tiles enough; enough in the batch.
        for caps in [fallback, portable] {
            assert_eq!(depth(caps, [8, 511, 64], 1, false), 511);
            assert_eq!(depth(caps, [1024, 100_000, 1024], 1, false), 100_000);
            assert_eq!(depth(caps, [8, 5000, 64], 100, false), 5000);
        }
        assert_eq!(depth(fallback, [32, 1024, 64], 1, false), 256);
        assert_eq!(depth(fallback, [32, 1000, 64], 1, false), 336);
        assert_eq!(depth(fallback, [128, 32_000, 128], 1, false), 16_000);
        assert_eq!(depth(portable, [64, 100_000, 64], 1, false), 784);
        assert_eq!(depth(portable, [256, 2048, 256], 1, false), 256);
        assert_eq!(depth(portable, [512, 4096, 512], 1, false), 2048);
        assert_eq!(depth(portable, [512, 4096, 512], 1, true), 1024);
    }

    #[test]
    fn tiles_of_the_fallback_kernel_follow_the_rows() {
        let rows = |rows, lanes, vectors, halves| {
            let problem = Problem { rows, columns: 64, inner: 64, batch: 1, vectors, halves, ..Default::default() };
            problem.rows_of_tiles(lanes)
        };
        assert_eq!([rows(1, 8, true, 0), rows(8, 16, true, 0)], [[8], [16]]);
        // 256 rows are 6 tiles of 48 with 32 rows too many; of 512 rows it is 16.
        assert_eq!([rows(256, 8, true, 0), rows(512, 8, true, 0), rows(512, 4, true, 1)], [[32, 64], [48, 64], [48, 64]]);
        assert_eq!([rows(512, 8, false, 0), rows(512, 8, true, 2), rows(512, 32, true, 0)], [[32], [32], [64]]);
    }

    #[test]
    fn large_tiles_are_for_shapes_that_fill_them_and_the_device() {
        let tile = |rows, columns, batch, symmetric| {
            let caps = DeviceCaps { profile: KernelTier::Portable, lanes: 8, matrices: None };
            Plan::of(caps, &Problem { rows, columns, batch, symmetric, ..Default::default() })[0].tile_rows
        };
        assert_eq!([tile(127, 100_000, 1, false), tile(100_000, 127, 1, false), tile(1024, 1024, 1, false)], [64; 3]);
        assert_eq!([tile(128, 100_000, 1, false), tile(2048, 2048, 1, false), tile(128, 128, 96, false)], [128; 3]);
        assert_eq!([tile(1536, 1536, 1, false), tile(1536, 1536, 1, true)], [128, 64]);
    }
}
