//! How attention's kernels on matrix units divide their tiles among subgroups: see shaders/attention_matrices.wgsl.

use super::Pass;
use crate::gpu::MatrixUnits;

const NEAR_LANES: u32 = 16;
const FAR_LANES: u32 = 16;
/// Far rows per lane.
const FAR: u32 = 4;
const LANES: u32 = NEAR_LANES * FAR_LANES;
/// Far rows of a tile, and columns of a sum at a time.
const WIDE: u32 = FAR_LANES * FAR;

/// The tiles of a pass for a width of heads.
#[derive(Clone, Copy, Debug)]
pub(super) struct MatrixTiling {
    units: MatrixUnits,
    pass: Pass,
    head_dim: u32,
    /// Near rows per lane.
    own: u32,
}

impl MatrixTiling {
    /// The most near rows that fit `shared` bytes and leave room for other registers. None where the fewest of any pass do not: all passes
    /// round their operands, or none.
    pub(super) fn of(units: MatrixUnits, shared: u32, pass: Pass, head_dim: usize) -> Option<Self> {
        let tiling = |pass, own| Self { units, pass, head_dim: head_dim as u32, own };
        if tiling(Pass::KeyBackward, 1).shared() > shared {
            return None;
        }
        let tilings = [4, 2, 1].map(|own| tiling(pass, own));
        tilings.into_iter().find(|tiling| tiling.shared() <= shared && tiling.sum_registers() <= 64)
    }

    /// Rows of a workgroup.
    pub(super) fn near(self) -> usize {
        (NEAR_LANES * self.own) as usize
    }

    /// vec4s of a sum's row per lane.
    fn columns(self) -> u32 {
        self.head_dim.div_ceil(WIDE)
    }

    /// Near operands.
    fn pairs(self) -> u32 {
        if self.pass == Pass::Forward { 1 } else { 2 }
    }

    /// Registers of a lane for its sums.
    fn sum_registers(self) -> u32 {
        let sums = if self.pass == Pass::KeyBackward { 2 } else { 1 };
        4 * sums * self.own * self.columns()
    }

    /// Bytes of shared memory: operands and weights in f16, rows padded by eight, and the results.
    fn shared(self) -> u32 {
        let near = NEAR_LANES * self.own;
        let operands = (self.pairs() * near + WIDE) * (self.columns() * WIDE + 8);
        2 * (operands + near * (WIDE + 8)) + 4 * near * WIDE
    }

    pub(super) fn constants(self) -> Vec<(&'static str, u32)> {
        let Self { units, head_dim, own, .. } = self;
        let block = units.block;
        let (down, across) = units.regions(NEAR_LANES * own, WIDE, LANES, LANES);
        let (region_rows, region_columns) = (NEAR_LANES * own / block / down, WIDE / block / across);
        [
            ("DIM", head_dim),
            ("QUARTERS", head_dim.div_ceil(4)),
            ("NEAR_LANES", NEAR_LANES),
            ("FAR_LANES", FAR_LANES),
            ("OWN", own),
            ("FAR", FAR),
            ("COLUMNS", self.columns()),
            ("OWN_GROUPS", 1),
            ("FAR_GROUPS", 1),
            ("PAIRS", self.pairs()),
            ("STEPS", head_dim.div_ceil(block)),
            ("FAR_STEPS", WIDE / block),
            ("REGIONS", down * across),
            ("ACROSS", across),
            ("REGION_ROWS", region_rows),
            ("REGION_COLUMNS", region_columns),
            ("BLOCKS", region_rows * region_columns),
            ("WHOLE", units.is_whole(down * across, LANES).into()),
            ("F16_TERMS", 1),
        ]
        .into_iter()
        .chain(units.constants())
        .collect()
    }

    /// Loop iterations over `far` rows of a head.
    pub(super) fn iterations(self, far: usize) -> usize {
        let Self { units, head_dim, pass, .. } = self;
        let fetch = self.columns();
        let score = 1 + head_dim.div_ceil(units.block);
        let accumulate = fetch + self.columns() * (1 + WIDE / units.block);
        let tile = match pass {
            Pass::Forward => fetch + score + accumulate,
            Pass::QueryBackward => 2 * (fetch + score) + accumulate,
            Pass::KeyBackward => fetch + 2 * (score + accumulate),
        };
        (self.pairs() * self.columns()) as usize + far.div_ceil(WIDE as usize) * (1 + tile as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::KernelTier;
    use crate::ops::attention::{FORWARD, KEY_BACKWARD, MAX_HEAD_DIM, QUERY_BACKWARD};

    #[test]
    fn kernels_are_valid_and_regions_cover_their_tiles() {
        let sizes = [8, 32, 64].into_iter().flat_map(|lanes| [8, 16].map(|block| (lanes, block)));
        let units = sizes.flat_map(|(lanes, block)| {
            [false, true].map(|rounds_f16| {
                let lanes = (if rounds_f16 { lanes } else { 8 }, lanes);
                MatrixUnits { lanes, block, rounds_f16, scalars: block == 8 && rounds_f16 }
            })
        });
        for (units, head_dim) in units.flat_map(|units| [1, 7, 64, 80, 128].map(|head_dim| (units, head_dim))) {
            for (family, pass) in
                [(&FORWARD, Pass::Forward), (&QUERY_BACKWARD, Pass::QueryBackward), (&KEY_BACKWARD, Pass::KeyBackward)]
            {
                let tiling = MatrixTiling::of(units, 48 << 10, pass, head_dim).expect("tiles that fit");
                let mut constants = tiling.constants();
                let of = |name| constants.iter().find(|(constant, _)| *constant == name).map_or(0, |(_, value)| *value);
                let blocks = of("REGIONS") * of("BLOCKS");
                assert_eq!(blocks * units.block * units.block, tiling.near() as u32 * WIDE, "{units:?} {tiling:?}");
                constants.extend([
                    ("VECTORS", u32::from(head_dim.is_multiple_of(4))),
                    ("QUERY_SIDE", u32::from(pass == Pass::QueryBackward)),
                    ("CONTINUED", 0),
                ]);
                family.matrices.validate(KernelTier::Matrix, &constants).unwrap_or_else(|error| panic!("{error}"));
            }
        }
    }

    #[test]
    fn heads_too_wide_for_the_shared_memory_have_none() {
        let units = MatrixUnits { lanes: (32, 32), block: 16, rounds_f16: true, scalars: false };
        let near = |pass, head_dim, shared| MatrixTiling::of(units, shared, pass, head_dim).map(MatrixTiling::near);
        assert_eq!([64, 128].map(|dim| near(Pass::Forward, dim, 48 << 10)), [Some(64), Some(32)]);
        assert_eq!([64, 128].map(|dim| near(Pass::KeyBackward, dim, 48 << 10)), [Some(32), Some(32)]);
        assert_eq!(near(Pass::KeyBackward, 128, 32 << 10), Some(16));
        for pass in [Pass::Forward, Pass::QueryBackward, Pass::KeyBackward] {
            assert_eq!([near(pass, MAX_HEAD_DIM, 48 << 10), near(pass, 128, 31 << 10)], [None; 2]);
        }
    }
}
