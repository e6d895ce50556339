//! Kernel selection for a product: tile size, split-K, compile-time constants.

use super::FIRST_GROUP;
use super::matrix_tile::MatrixTile;
use super::problem::{DeviceCaps, Problem};
#[cfg(feature = "host")]
use super::twin;
use crate::gpu::{Access, Kernel, KernelTier, MatrixUnits, with_twin};

const BINDINGS: &[Access] = &[Access::Read, Access::Read, Access::Read, Access::Read, Access::ReadWrite];

static LANES: Kernel = with_twin!(
    Kernel::trusted(
        "matmul",
        concat!(
            include_str!("../../shaders/half.wgsl"),
            include_str!("../../shaders/matmul_common.wgsl"),
            include_str!("../../shaders/matmul_lanes.wgsl")
        ),
        "main",
        BINDINGS,
    )
    .cut_along(1, FIRST_GROUP),
    twin::product
);

static MATRIX: Kernel = Kernel::trusted(
    "matmul",
    concat!(
        include_str!("../../shaders/half.wgsl"),
        include_str!("../../shaders/half_storage.wgsl"),
        include_str!("../../shaders/matmul_common.wgsl"),
        include_str!("../../shaders/matmul_loads.wgsl"),
        include_str!("../../shaders/matrices.wgsl"),
        include_str!("../../shaders/matmul_matrix.wgsl")
    ),
    "main",
    BINDINGS,
)
.cut_along(1, FIRST_GROUP);

static TILED: Kernel = with_twin!(
    Kernel::trusted(
        "matmul",
        concat!(
            include_str!("../../shaders/half.wgsl"),
            include_str!("../../shaders/matmul_common.wgsl"),
            include_str!("../../shaders/matmul_loads.wgsl"),
            include_str!("../../shaders/matmul_tiled.wgsl")
        ),
        "main",
        BINDINGS,
    )
    .cut_along(1, FIRST_GROUP),
    twin::product
);

static SUM: Kernel = Kernel::trusted(
    "matmul sum",
    concat!(
        include_str!("../../shaders/half.wgsl"),
        include_str!("../../shaders/matmul_common.wgsl"),
        include_str!("../../shaders/matmul_sum.wgsl")
    ),
    "main",
    BINDINGS,
);

/// A kernel with its constants and tile.
pub(super) struct Plan {
    pub(super) kernel: &'static Kernel,
    pub(super) constants: Vec<(&'static str, u32)>,
    pub(super) tile_rows: usize,
    pub(super) tile_columns: usize,
    /// Loop iterations per invocation.
    pub(super) iterations: usize,
}

/// FLOP from which the operands of an f16 product are rounded beforehand.
const MIN_F16_OPERANDS_FLOP: u64 = 1 << 30;

/// Minimum inner size per split-K slice, also in tiles of 128 × 128: below, writing and reading the partial products takes too long.
const MIN_SPLIT_K_DEPTH: usize = 256;
const MIN_LARGE_SPLIT_K_DEPTH: usize = 512;

impl Problem {
    /// Inner size per workgroup: all of it, or a split-K slice if there are too few tiles for full occupancy. Depends only on
    /// shape, tier and kind of adapter, because every split rounds differently.
    pub(super) fn split_k_depth(&self, caps: DeviceCaps) -> usize {
        let (rows, columns, min_depth) = match caps.tier {
            KernelTier::Host => return self.inner,
            KernelTier::Fallback => {
                let plan = Plan::lanes(caps.lanes, self.fallback_tile_rows(caps.lanes)[0], self);
                (plan.tile_rows, plan.tile_columns, MIN_SPLIT_K_DEPTH)
            }
            _ if self.fills_large_tiles(caps) => (128, 128, MIN_LARGE_SPLIT_K_DEPTH),
            _ => (64, 64, MIN_SPLIT_K_DEPTH),
        };
        let split_k = (caps.full_occupancy / self.tile_count(rows, columns).max(1)).min(self.inner / min_depth).max(1);
        if split_k == 1 { self.inner } else { self.inner.div_ceil(split_k).next_multiple_of(16) }
    }

    /// Whether tiles of 128 × 128 are filled, and fill the device, if the inner size is split as far as it may be.
    fn fills_large_tiles(&self, caps: DeviceCaps) -> bool {
        let splits = (self.inner / MIN_LARGE_SPLIT_K_DEPTH).max(1);
        self.rows >= 128 && self.columns >= 128 && self.tile_count(128, 128) * splits >= caps.min_large_tiles()
    }

    /// Whether rounding A and B to f16 beforehand, in two more dispatches, pays: each tile loads half the bytes and converts
    /// nothing. On an H200 it nearly doubles the rate of products from 1024³ on.
    pub(super) fn f16_operands_pay(&self, caps: DeviceCaps) -> bool {
        caps.tier == KernelTier::Matrix && self.f16_terms == 1 && self.vectors && self.work() >= MIN_F16_OPERANDS_FLOP
    }

    /// Candidate output tiles of the tiled kernel, [rows, columns], the heuristic's choice first: the largest that the shape fills and
    /// that fill the device. f16x3 doubles the shared memory, so that 128 × 128 is too large for it; its 64 sums spill where an invocation
    /// has fewer than 128 registers.
    fn tiles(&self, caps: DeviceCaps) -> &'static [[u32; 2]] {
        const SMALL: [u32; 2] = [32, 64];
        const MEDIUM: [u32; 2] = [64, 64];
        const LARGE: [u32; 2] = [128, 128];
        let has_large = self.rows >= 128 && self.columns >= 128 && self.f16_terms < 2 && caps.registers >= 128;
        let fills_device = self.tile_count(64, 64) >= caps.min_tiles();
        if has_large && self.tile_count(128, 128) >= caps.min_large_tiles() {
            &[LARGE, MEDIUM]
        } else if self.rows <= 32 || !fills_device && !self.symmetric {
            &[SMALL, MEDIUM]
        } else if has_large {
            &[MEDIUM, LARGE]
        } else {
            &[MEDIUM]
        }
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
            (KernelTier::Matrix, Some(units)) if problem.f16_terms > 0 => {
                MatrixTile::candidates(caps, units, problem).iter().map(|tile| Self::matrix(units, tile, problem)).collect()
            }
            _ => problem.tiles(caps).iter().map(|&tile| Self::tiled(tile, !caps.software, problem)).collect(),
        };
        if caps.tier == KernelTier::Host {
            plans.truncate(1); // all have the same twin
        }
        // The kernel for software adapters has one copy of the epilogue: fewer pipelines, each of which takes a second to compile.
        let any_epilogue = caps.tier == KernelTier::Fallback;
        let chosen = if any_epilogue { Problem { addend: false, diagonal: false, beta: false, ..*problem } } else { *problem };
        for plan in &mut plans {
            plan.constants.extend(chosen.constants());
            plan.constants.push(("ANY_EPILOGUE", any_epilogue.into()));
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

    fn tiled([rows, columns]: [u32; 2], unrolled: bool, problem: &Problem) -> Self {
        let groups = columns / 64;
        let invocations = 4 * rows / groups;
        let loads = |side: u32| side * 16 / 4 / invocations;
        Self {
            kernel: &TILED,
            constants: vec![
                ("ROWS", rows),
                ("COLUMNS", columns),
                ("GROUPS", groups),
                ("INVOCATIONS", invocations),
                ("A_LOADS", loads(rows)),
                ("B_LOADS", loads(columns)),
                ("UNROLLED", unrolled.into()),
            ],
            tile_rows: rows as usize,
            tile_columns: columns as usize,
            iterations: problem.inner.div_ceil(16) * (1 + 4),
        }
    }

    /// The kernel on matrix units; every region of the tile is whole blocks.
    fn matrix(units: MatrixUnits, tile: &MatrixTile, problem: &Problem) -> Self {
        let block = units.block;
        let (down, across) = tile.regions(units);
        let (region_rows, region_columns) = (tile.rows / block / down, tile.columns / block / across);
        let regions = down * across;
        let loads = |side: u32| side * tile.depth / 4 / tile.invocations;
        Self {
            kernel: &MATRIX,
            constants: [
                ("ROWS", tile.rows),
                ("COLUMNS", tile.columns),
                ("DEPTH", tile.depth),
                ("INVOCATIONS", tile.invocations),
                ("A_LOADS", loads(tile.rows)),
                ("B_LOADS", loads(tile.columns)),
                ("STEPS", tile.depth / block),
                ("REGIONS", regions),
                ("ACROSS", across),
                ("REGION_ROWS", region_rows),
                ("REGION_COLUMNS", region_columns),
                ("BLOCKS", region_rows * region_columns),
                ("QUOTA", (regions * block * block).div_ceil(4 * tile.invocations)),
                ("WHOLE", units.is_whole(regions, tile.invocations).into()),
                ("F16_OPERANDS", problem.f16_operands.into()),
            ]
            .into_iter()
            .chain(units.constants())
            .collect(),
            tile_rows: tile.rows as usize,
            tile_columns: tile.columns as usize,
            // The tiles, and with too few subgroups the loop that runs once in each, and at the end.
            iterations: 2 * problem.inner.div_ceil(tile.depth as usize) + 2 * (region_rows * region_columns) as usize,
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
        let products = choices.flat_map(product);
        products
            .flat_map(|problem| [problem, Problem { f16_operands: problem.f16_terms == 1 && problem.vectors, ..problem }])
            .collect()
    }

    fn portable() -> DeviceCaps {
        let tier = KernelTier::Portable;
        let full_occupancy = 256;
        DeviceCaps {
            tier,
            shader_tier: tier,
            lanes: 8,
            matrices: None,
            shared: 16 << 10,
            registers: 256,
            full_occupancy,
            software: false,
        }
    }

    /// All device capabilities that `Plan` distinguishes.
    fn all_caps() -> Vec<DeviceCaps> {
        let fallback = [4, 8, 16, 32].map(|lanes| DeviceCaps {
            tier: KernelTier::Fallback,
            shader_tier: KernelTier::Fallback,
            lanes,
            full_occupancy: 16,
            ..portable()
        });
        let matrices = [4, 8, 16, 32, 64, 128].into_iter().flat_map(|lanes| [(lanes, 8), (lanes, 16)]);
        let matrix = matrices.flat_map(|(lanes, block)| {
            [(false, 32 << 10), (true, 64 << 10)].map(|(rounds_f16, shared)| DeviceCaps {
                tier: KernelTier::Matrix,
                shader_tier: KernelTier::Matrix,
                matrices: Some(MatrixUnits {
                    lanes: (lanes / if rounds_f16 { 1 } else { 2 }, lanes),
                    block,
                    rounds_f16,
                    scalars: block == 8 && rounds_f16,
                }),
                shared,
                ..portable()
            })
        });
        fallback.into_iter().chain([portable()]).chain(matrix).collect()
    }

    fn validate(tier: KernelTier) {
        let mut seen = HashSet::new();
        // Subgroups of other sizes only change the number of blocks in a region.
        let is_typical = |caps: &DeviceCaps| caps.matrices.is_none_or(|units| [8, 32].contains(&units.lanes.1));
        for caps in all_caps().into_iter().filter(|caps| caps.tier == tier && is_typical(caps)) {
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
    fn regions_cover_the_tile_and_the_shared_memory_holds_it() {
        let rounded: Vec<Problem> = products().into_iter().filter(|problem| problem.f16_terms > 0).collect();
        for caps in all_caps().into_iter().filter(|caps| caps.tier == KernelTier::Matrix) {
            for problem in &rounded {
                let plans = Plan::of(caps, problem);
                assert!(!plans.is_empty(), "{caps:?} {problem:?}");
                for plan in plans {
                    let of = |name| plan.constants.iter().find(|(constant, _)| *constant == name).map_or(0, |(_, value)| *value);
                    let block = if of("LARGE") == 1 { 16 } else { 8 };
                    let blocks = of("ROWS") / block * (of("COLUMNS") / block);
                    assert_eq!(of("REGIONS") * of("REGION_ROWS") * of("REGION_COLUMNS"), blocks, "{caps:?}");
                    assert_eq!(of("A_LOADS") * of("INVOCATIONS") * 4, of("ROWS") * of("DEPTH"), "{caps:?}");
                    assert_eq!(of("B_LOADS") * of("INVOCATIONS") * 4, of("COLUMNS") * of("DEPTH"), "{caps:?}");
                    let operands = (of("ROWS") + of("COLUMNS")) * (of("DEPTH") + 8) * 2 * of("F16_TERMS");
                    assert!(operands + of("REGIONS") * block * block * 4 <= caps.shared, "{caps:?}");
                }
            }
        }
    }

    #[test]
    fn split_k_is_used_where_few_tiles_would_leave_the_device_idle() {
        let portable = portable();
        let tier = KernelTier::Fallback;
        let fallback = DeviceCaps { tier, shader_tier: tier, full_occupancy: 16, ..portable };
        let integrated = DeviceCaps { full_occupancy: 64, ..portable };
        let depth = |caps, [rows, inner, columns]: [usize; 3], batch, symmetric| {
            Problem { rows, inner, columns, batch, symmetric, ..Default::default() }.split_k_depth(caps)
        };
        // Too shallow; enough tiles; enough matrices in the batch.
        for caps in [fallback, portable] {
            assert_eq!(depth(caps, [8, 511, 64], 1, false), 511);
            assert_eq!(depth(caps, [2048, 100_000, 2048], 1, false), 100_000);
            assert_eq!(depth(caps, [8, 5000, 64], 300, false), 5000);
        }
        assert_eq!(depth(fallback, [32, 1024, 64], 1, false), 256);
        assert_eq!(depth(fallback, [32, 1000, 64], 1, false), 336);
        assert_eq!(depth(fallback, [128, 32_000, 128], 1, false), 16_000);
        assert_eq!(depth(portable, [64, 100_000, 64], 1, false), 400);
        assert_eq!(depth(portable, [256, 2048, 256], 1, false), 256);
        // In tiles of 128 × 128: the gradient of a weight of a 271M model.
        assert_eq!(depth(portable, [1024, 8192, 1024], 1, false), 2048);
        assert_eq!(depth(portable, [512, 4096, 512], 1, false), 512);
        assert_eq!(depth(portable, [512, 4096, 512], 1, true), 512);
        // An integrated GPU is busy with fewer slices.
        assert_eq!(depth(integrated, [64, 100_000, 64], 1, false), 1568);
        assert_eq!(depth(integrated, [1024, 8192, 1024], 1, false), 8192);
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
        let on = |caps, rows, columns, batch, symmetric| {
            Plan::of(caps, &Problem { rows, columns, batch, symmetric, ..Default::default() })[0].tile_rows
        };
        let tile = |rows, columns, batch, symmetric| on(portable(), rows, columns, batch, symmetric);
        assert_eq!([tile(127, 100_000, 1, false), tile(100_000, 127, 1, false), tile(1024, 1024, 1, false)], [64; 3]);
        assert_eq!([tile(128, 100_000, 1, false), tile(2048, 2048, 1, false), tile(128, 128, 96, false)], [128; 3]);
        assert_eq!([tile(1536, 1536, 1, false), tile(1536, 1536, 1, true)], [128, 64]);
        // Few results, or few rows.
        assert_eq!([tile(512, 256, 1, false), tile(512, 256, 4, false), tile(32, 100_000, 1, false)], [32, 64, 32]);
        // Fewer tiles fill an integrated GPU.
        let integrated = DeviceCaps { full_occupancy: 64, ..portable() };
        assert_eq!([on(integrated, 512, 256, 1, false), on(integrated, 1024, 1024, 1, false)], [64, 128]);
    }
}
