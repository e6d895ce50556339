//! Kernel selection for a product: tile size, split-K, compile-time constants.

use super::FIRST_GROUP;
#[cfg(feature = "host")]
use super::twin;
use crate::gpu::{Access, Gpu, Kernel, KernelTier, with_twin};

const BINDINGS: &[Access] = &[Access::Read, Access::Read, Access::Read, Access::Read, Access::ReadWrite];

static LANES: Kernel = with_twin!(
    Kernel::trusted(
        "matmul",
        concat!(include_str!("../../shaders/matmul_common.wgsl"), include_str!("../../shaders/matmul_lanes.wgsl")),
        "main",
        BINDINGS,
    )
    .cut_along(1, FIRST_GROUP),
    twin::product
);

static MATRIX: Kernel = Kernel::trusted(
    "matmul",
    concat!(include_str!("../../shaders/matmul_common.wgsl"), include_str!("../../shaders/matmul_matrix.wgsl")),
    "main",
    BINDINGS,
)
.cut_along(1, FIRST_GROUP);

static TILED: Kernel = with_twin!(
    Kernel::trusted(
        "matmul",
        concat!(include_str!("../../shaders/matmul_common.wgsl"), include_str!("../../shaders/matmul_tiled.wgsl")),
        "main",
        BINDINGS,
    )
    .cut_along(1, FIRST_GROUP),
    twin::product
);

static SUM: Kernel = Kernel::trusted(
    "matmul sum",
    concat!(include_str!("../../shaders/matmul_common.wgsl"), include_str!("../../shaders/matmul_sum.wgsl")),
    "main",
    BINDINGS,
);

/// The properties of a product that its kernel depends on.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Problem {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) inner: usize,
    pub(super) batch: usize,
    pub(super) transpose_a: bool,
    pub(super) transpose_b: bool,
    /// Sizes, strides and offsets allow vec4 accesses.
    pub(super) vectors: bool,
    /// f16 values per operand element: 0 for f32, 1 for f16, 2 for f16x3.
    pub(super) f16_terms: u32,
    pub(super) addend: bool,
    pub(super) diagonal: bool,
    pub(super) beta: bool,
    pub(super) symmetric: bool,
}

/// The properties of a device that kernel selection depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DeviceCaps {
    tier: KernelTier,
    /// The tier of the kernel whose twin the host tier runs.
    shader_tier: KernelTier,
    /// Fixed subgroup size, for the fallback tier.
    lanes: u32,
    /// (Maximum subgroup size, side of a cooperative matrix), for the matrix tier.
    matrices: Option<(u32, u32)>,
}

impl DeviceCaps {
    pub(super) fn of(gpu: &Gpu) -> Self {
        Self { tier: gpu.kernels(), shader_tier: gpu.shader_tier(), lanes: gpu.lanes(), matrices: gpu.matrices() }
    }
}

/// A kernel with its constants and tile.
pub(super) struct Plan {
    pub(super) kernel: &'static Kernel,
    pub(super) constants: Vec<(&'static str, u32)>,
    pub(super) tile_rows: usize,
    pub(super) tile_columns: usize,
    /// Loop iterations per invocation.
    pub(super) iterations: usize,
}

/// Minimum number of 128 × 128 tiles for full occupancy of a GPU; below, 64 × 64 tiles leave fewer cores idle.
const MIN_LARGE_TILES: usize = 96;

/// Workgroups for full occupancy of a software adapter and of a GPU.
const FULL_OCCUPANCY: [usize; 2] = [16, 128];

/// Minimum inner size per split-K slice.
const MIN_SPLIT_K_DEPTH: usize = 256;

impl Problem {
    /// Inner size per workgroup: all of it, or a split-K slice if there are too few tiles for full occupancy. Depends only on
    /// shape and tier, because every split rounds differently.
    pub(super) fn split_k_depth(&self, caps: DeviceCaps) -> usize {
        let (plan, groups) = match caps.tier {
            KernelTier::Host => return self.inner,
            KernelTier::Fallback => (Plan::lanes(caps.lanes, self.fallback_tile_rows(caps.lanes)[0], self), FULL_OCCUPANCY[0]),
            _ => (Plan::tiled(64, self), FULL_OCCUPANCY[1]),
        };
        let tiles = self.rows.div_ceil(plan.tile_rows) * self.columns.div_ceil(plan.tile_columns);
        let occupied = self.batch * if self.symmetric { tiles.div_ceil(2) } else { tiles };
        let split_k = (groups / occupied).min(self.inner / MIN_SPLIT_K_DEPTH).max(1);
        if split_k == 1 { self.inner } else { self.inner.div_ceil(split_k).next_multiple_of(16) }
    }

    /// Candidate sides of the output tile, the heuristic's choice first: 128 if the shape fills such tiles and these fill the
    /// device. f16x3 doubles the shared memory, so it is limited to 64.
    fn tiles(&self) -> &'static [u32] {
        if self.rows < 128 || self.columns < 128 || self.f16_terms == 2 {
            return &[64];
        }
        let tiles = self.batch * self.rows.div_ceil(128) * self.columns.div_ceil(128) / if self.symmetric { 2 } else { 1 };
        if tiles >= MIN_LARGE_TILES { &[128, 64] } else { &[64, 128] }
    }

    /// Candidate tile rows of the fallback kernel, the heuristic's choice first.
    fn fallback_tile_rows(&self, lanes: u32) -> Vec<u32> {
        match self.rows {
            ..=8 => vec![8.max(lanes)],
            // f16x3 needs twice the registers; scalar accesses take long to compile.
            _ if self.f16_terms == 2 || !self.vectors => vec![32],
            _ => {
                let padded = |rows: u32| self.rows.next_multiple_of(rows as usize);
                // Per row, tiles of 48 are 8 % faster than tiles of 32. 64 are faster still, but slower on Mesa 25.
                let mut choices = vec![if padded(48) * 100 <= padded(32) * 108 { 48 } else { 32 }, 64];
                choices.retain(|rows| rows % lanes == 0);
                choices
            }
        }
    }

    /// Constants shared by all product kernels.
    fn constants(&self) -> [(&'static str, u32); 9] {
        [
            ("TRANSPOSE_A", self.transpose_a.into()),
            ("TRANSPOSE_B", self.transpose_b.into()),
            ("VECTORS", self.vectors.into()),
            ("F16_TERMS", self.f16_terms),
            ("F16X3", (self.f16_terms == 2).into()),
            ("ADDEND", self.addend.into()),
            ("DIAGONAL", self.diagonal.into()),
            ("BETA", self.beta.into()),
            ("SYMMETRIC", self.symmetric.into()),
        ]
    }

    /// FLOP.
    pub(super) fn work(&self) -> u64 {
        2 * (self.batch * self.rows * self.columns * self.inner) as u64 / if self.symmetric { 2 } else { 1 }
    }

    /// The tuning key: sizes rounded up to powers of two, and whatever changes the inner loop.
    pub(super) fn class(&self) -> String {
        let [batch, rows, columns, inner] = [self.batch, self.rows, self.columns, self.inner].map(usize::next_power_of_two);
        let mark = |transposed: bool| if transposed { 'T' } else { 'N' };
        let width = if self.vectors { 4 } else { 1 };
        let symmetric = if self.symmetric { " symmetric" } else { "" };
        let operands = format!("{}{} f16 {} width {width}", mark(self.transpose_a), mark(self.transpose_b), self.f16_terms);
        format!("{operands}{symmetric}: {batch} of {rows} x {inner} x {columns}")
    }
}

impl Plan {
    /// Its name among the candidates.
    pub(super) fn name(&self) -> String {
        format!("{} x {}", self.tile_rows, self.tile_columns)
    }

    /// All plans, which give the same bits, the heuristic's choice first.
    pub(super) fn of(caps: DeviceCaps, problem: &Problem) -> Vec<Self> {
        let mut plans: Vec<Self> = match (caps.shader_tier, caps.matrices) {
            (KernelTier::Fallback, _) => {
                problem.fallback_tile_rows(caps.lanes).iter().map(|&rows| Self::lanes(caps.lanes, rows, problem)).collect()
            }
            (KernelTier::Matrix, Some((lanes, block))) if problem.f16_terms > 0 => {
                problem.tiles().iter().map(|&tile| Self::matrix(lanes, block, tile, problem)).collect()
            }
            _ => problem.tiles().iter().map(|&tile| Self::tiled(tile, problem)).collect(),
        };
        if caps.tier == KernelTier::Host {
            plans.truncate(1); // all have the same twin
        }
        for plan in &mut plans {
            plan.constants.extend(problem.constants());
        }
        plans
    }

    /// Reduces `split_k` partial products and applies the epilogue.
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

    /// Divides the tile into regions of whole blocks, one per subgroup of `lanes`, in a grid as square as possible. Staging one
    /// block of sums per region takes at most 16 KiB of shared memory, beside 12 KiB of operand tiles.
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

    /// Every tile with every constant that changes the text. The other constants only select a branch of an `if`, and both
    /// branches are always validated.
    fn products() -> Vec<Problem> {
        let sizes = [(1, 1), (8, 1000), (1000, 8), (1000, 1000), (4096, 4096)];
        let choices = (0..48).map(|bits| ([0, 1, 2, 3].map(|at| bits >> at & 1 == 1), bits >> 4));
        let product = |([transpose_a, transpose_b, vectors, symmetric], f16_terms): ([bool; 4], u32)| {
            sizes.map(|(rows, columns)| Problem {
                f16_terms,
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

    /// All device capabilities that `Plan` distinguishes.
    fn all_caps() -> Vec<DeviceCaps> {
        let fallback = [4, 8, 16, 32].map(|lanes| DeviceCaps {
            tier: KernelTier::Fallback,
            shader_tier: KernelTier::Fallback,
            lanes,
            matrices: None,
        });
        let tiled = DeviceCaps { tier: KernelTier::Portable, shader_tier: KernelTier::Portable, lanes: 8, matrices: None };
        let matrices = [4, 8, 16, 32, 64, 128].into_iter().flat_map(|lanes| [(lanes, 8), (lanes, 16)]);
        let matrix = matrices.map(|matrices| DeviceCaps {
            tier: KernelTier::Matrix,
            shader_tier: KernelTier::Matrix,
            lanes: 8,
            matrices: Some(matrices),
        });
        fallback.into_iter().chain([tiled]).chain(matrix).collect()
    }

    fn validate(tier: KernelTier) {
        let mut seen = HashSet::new();
        for caps in all_caps().into_iter().filter(|caps| caps.tier == tier) {
            for problem in products() {
                for plan in Plan::of(caps, &problem) {
                    if seen.insert((std::ptr::from_ref(plan.kernel), plan.constants.clone())) {
                        let outcome = plan.kernel.validate(tier, &plan.constants);
                        outcome.unwrap_or_else(|error| panic!("{caps:?} {problem:?}: {error}"));
                    }
                }
            }
        }
    }

    #[test]
    fn every_split_k_sum_validates() {
        for (bits, f16_terms) in (0..32).flat_map(|bits| [0, 1, 2].map(|f16_terms| (bits, f16_terms))) {
            let [vectors, addend, diagonal, beta, symmetric] = [0, 1, 2, 3, 4].map(|at| bits >> at & 1 == 1);
            let plan = Plan::sum(2, &Problem { f16_terms, vectors, addend, diagonal, beta, symmetric, ..Default::default() });
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
        let rounded: Vec<Problem> = products().into_iter().filter(|problem| problem.f16_terms > 0).collect();
        for caps in all_caps().into_iter().filter(|caps| caps.tier == KernelTier::Matrix) {
            for plan in rounded.iter().flat_map(|problem| Plan::of(caps, problem)) {
                let of = |name| plan.constants.iter().find(|(constant, _)| *constant == name).map_or(0, |(_, value)| *value);
                let block = if of("LARGE") == 1 { 16 } else { 8 };
                let blocks = (of("TILE") / block) * (of("TILE") / block);
                assert_eq!(of("REGIONS") * of("REGION_ROWS") * of("REGION_COLUMNS"), blocks, "{caps:?}");
                let tiles = of("TILE") * 24 * 2 * 2 * of("F16_TERMS");
                assert!(tiles + of("REGIONS") * block * block * 4 <= 32 << 10, "{caps:?}");
            }
        }
    }

    #[test]
    fn split_k_is_used_where_few_tiles_would_leave_the_device_idle() {
        let fallback = DeviceCaps { tier: KernelTier::Fallback, shader_tier: KernelTier::Fallback, lanes: 8, matrices: None };
        let portable = DeviceCaps { tier: KernelTier::Portable, shader_tier: KernelTier::Portable, ..fallback };
        let depth = |caps, [rows, inner, columns]: [usize; 3], batch, symmetric| {
            Problem { rows, inner, columns, batch, symmetric, ..Default::default() }.split_k_depth(caps)
        };
        // Too shallow; enough tiles; enough matrices in the batch.
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
        let rows = |rows, lanes, vectors, f16_terms| {
            let problem = Problem { rows, columns: 64, inner: 64, batch: 1, vectors, f16_terms, ..Default::default() };
            problem.fallback_tile_rows(lanes)
        };
        assert_eq!([rows(1, 8, true, 0), rows(8, 16, true, 0)], [[8], [16]]);
        // 256 rows pad by 32 in tiles of 48; 512 rows pad by 16.
        assert_eq!([rows(256, 8, true, 0), rows(512, 8, true, 0), rows(512, 4, true, 1)], [[32, 64], [48, 64], [48, 64]]);
        assert_eq!([rows(512, 8, false, 0), rows(512, 8, true, 2), rows(512, 32, true, 0)], [[32], [32], [64]]);
    }

    #[test]
    fn large_tiles_are_for_shapes_that_fill_them_and_the_device() {
        let tile = |rows, columns, batch, symmetric| {
            let caps = DeviceCaps { tier: KernelTier::Portable, shader_tier: KernelTier::Portable, lanes: 8, matrices: None };
            Plan::of(caps, &Problem { rows, columns, batch, symmetric, ..Default::default() })[0].tile_rows
        };
        assert_eq!([tile(127, 100_000, 1, false), tile(100_000, 127, 1, false), tile(1024, 1024, 1, false)], [64; 3]);
        assert_eq!([tile(128, 100_000, 1, false), tile(2048, 2048, 1, false), tile(128, 128, 96, false)], [128; 3]);
        assert_eq!([tile(1536, 1536, 1, false), tile(1536, 1536, 1, true)], [128, 64]);
    }
}
