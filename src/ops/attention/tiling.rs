//! How attention's kernels divide rows and columns among invocations: all that a device may want different.

use super::Pass;
use crate::gpu::{AdapterSummary, Gpu, KernelTier};

/// Of the kernels for software rasterizers: a workgroup of one subgroup, rows in registers.
pub(super) struct LaneRows {
    lanes: usize,
    own: usize,
}

/// Far rows of a block.
const BLOCK: usize = 4;

impl LaneRows {
    pub(super) fn of(lanes: usize, pass: Pass, head_dim: usize) -> Self {
        // As many rows per lane as fit in a kernel's registers: each fetched value is then used that often.
        let own = match (pass, head_dim) {
            (_, 129..) => 1,
            (Pass::Forward, ..=64) => 4,
            _ => 2,
        };
        Self { lanes, own }
    }

    /// Rows of a workgroup.
    pub(super) fn near(&self) -> usize {
        self.lanes * self.own
    }

    pub(super) fn constants(&self, head_dim: usize) -> Vec<(&'static str, u32)> {
        let quarters = head_dim.div_ceil(4);
        let constants = [
            ("DIM", head_dim),
            ("QUARTERS", quarters),
            ("LANES", self.lanes),
            ("OWN", self.own),
            ("BLOCK", BLOCK),
            ("PARTS", (BLOCK * quarters).div_ceil(self.lanes)),
        ];
        constants.map(|(name, value)| (name, value as u32)).to_vec()
    }

    /// Loop iterations over `far` rows.
    pub(super) fn iterations(&self, far: usize) -> usize {
        far.div_ceil(BLOCK)
    }
}

/// Of the kernels for GPUs: see shaders/attention_tiles.wgsl.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tiling {
    near_lanes: usize,
    far_lanes: usize,
    /// Near and far rows per lane.
    own: usize,
    far: usize,
    /// vec4s of a row that a pair's tile holds.
    depth: usize,
}

/// vec4s of far rows in shared memory, where these need no more than a pair.
const VALUE_TILE: usize = 512;

/// Registers of a lane for its sums: with scores, operands and addresses some 128, which let a GPU run half its threads. Half as many
/// where a lane has no more than those.
const SUM_REGISTERS: usize = 64;

/// What a device has for a workgroup.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub(super) tier: KernelTier,
    /// Bytes of shared memory.
    pub(super) shared: usize,
    /// Registers of an invocation.
    pub(super) registers: u32,
}

impl Room {
    pub(super) fn of(gpu: &Gpu) -> Self {
        let AdapterSummary { limits, registers, .. } = gpu.adapter();
        let shared = limits.max_compute_workgroup_storage_size as usize;
        Self { tier: gpu.shader_tier(), shared, registers: *registers }
    }

    /// That is used.
    fn shared(self) -> usize {
        if self.tier == KernelTier::Portable { 16 << 10 } else { self.shared }
    }
}

impl Tiling {
    pub(super) fn of(room: Room, pass: Pass, head_dim: usize) -> Self {
        let sums = if pass == Pass::KeyBackward { 2 } else { 1 };
        let shared_bytes = room.shared();
        let is_roomy = shared_bytes >= 32 << 10;
        // Sixteen lanes hold 64 columns at a time: too many of a narrow head, or of the rest of a wide one.
        let far_lanes = if is_roomy && head_dim.next_multiple_of(32) == head_dim.next_multiple_of(64) { 16 } else { 8 };
        let own_registers = 4 * sums * head_dim.div_ceil(4 * far_lanes);
        let (registers, least) = if room.registers < 256 { (SUM_REGISTERS / 2, 1) } else { (SUM_REGISTERS, 2) };
        let own = [4, 2].into_iter().find(|own| own * own_registers <= registers).unwrap_or(least);
        Self {
            near_lanes: 16,
            far_lanes,
            own,
            // Tiles of 64 far rows, or of the 32 that go with 16 KiB of shared memory.
            far: if is_roomy { 64 / far_lanes } else { 4 },
            // Twice the depth is half as many barriers, on an H200 a quarter faster. It takes 35 KiB, which an NVIDIA core, with a limit
            // of 48 KiB a workgroup, has several times; where the limit is 64 KiB, that is all of a core's. Where there are few rows, it is
            // so deep that every lane has a vec4 to fetch.
            depth: if (48 << 10..64 << 10).contains(&shared_bytes) { 8 } else { 4 }.max(far_lanes / own),
        }
    }

    /// Rows of a workgroup.
    pub(super) fn near(&self) -> usize {
        self.near_lanes * self.own
    }

    fn lanes(&self) -> usize {
        self.near_lanes * self.far_lanes
    }

    /// Far rows of a tile.
    fn far_rows(&self) -> usize {
        self.far_lanes * self.far
    }

    /// vec4s of a sum's row per lane.
    fn columns(&self, head_dim: usize) -> usize {
        head_dim.div_ceil(4 * self.far_lanes)
    }

    /// Far rows that are accumulated at a time: a part of a tile's.
    fn value_rows(&self, head_dim: usize) -> usize {
        let wide = self.columns(head_dim) * self.far_lanes;
        let most = VALUE_TILE.max((self.near() + self.far_rows()) * (self.depth + 1));
        let mut rows = self.far_rows();
        while rows > 4 && rows * wide > most {
            rows /= 2;
        }
        rows
    }

    pub(super) fn constants(&self, head_dim: usize) -> Vec<(&'static str, u32)> {
        let Self { near_lanes, far_lanes, own, far, depth } = *self;
        let (columns, value_rows) = (self.columns(head_dim), self.value_rows(head_dim));
        let constants = [
            ("DIM", head_dim),
            ("QUARTERS", head_dim.div_ceil(4)),
            ("NEAR_LANES", near_lanes),
            ("FAR_LANES", far_lanes),
            ("OWN", own),
            ("FAR", far),
            ("DEPTH", depth),
            ("VALUE_ROWS", value_rows),
            ("COLUMNS", columns),
            ("OWN_GROUPS", own.div_ceil(4)),
            ("FAR_GROUPS", far / 4),
            ("NEAR_PARTS", self.near() * depth / self.lanes()),
            ("FAR_PARTS", self.far_rows() * depth / self.lanes()),
            ("VALUE_PARTS", (value_rows * columns * far_lanes).div_ceil(self.lanes())),
        ];
        constants.map(|(name, value)| (name, value as u32)).to_vec()
    }

    /// Loop iterations over `far` rows of a head.
    pub(super) fn iterations(&self, pass: Pass, head_dim: usize, far: usize) -> usize {
        let pair = head_dim.div_ceil(4 * self.depth) * (1 + self.depth);
        let accumulate = self.far_rows() / self.value_rows(head_dim) + self.far_rows() / 4;
        let tile = match pass {
            Pass::Forward => pair + accumulate,
            Pass::QueryBackward => 2 * pair + accumulate,
            Pass::KeyBackward => 2 * (pair + accumulate),
        };
        far.div_ceil(self.far_rows()) * (1 + tile)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::attention::{FORWARD, KEY_BACKWARD, MAX_HEAD_DIM, QUERY_BACKWARD};

    const PASSES: [Pass; 3] = [Pass::Forward, Pass::QueryBackward, Pass::KeyBackward];

    fn rooms() -> impl Iterator<Item = Room> {
        let tiers = [
            (KernelTier::Portable, 16 << 10),
            (KernelTier::Portable, 48 << 10),
            (KernelTier::Subgroup, 16 << 10),
            (KernelTier::Subgroup, 32 << 10),
            (KernelTier::Matrix, 48 << 10),
            (KernelTier::Matrix, 64 << 10),
        ];
        tiers.into_iter().flat_map(|(tier, shared)| [96, 256].map(|registers| Room { tier, shared, registers }))
    }

    #[test]
    fn tiles_fit_shared_memory_and_are_fetched_whole() {
        for (room, pass) in rooms().flat_map(|room| PASSES.map(|pass| (room, pass))) {
            for head_dim in 1..=MAX_HEAD_DIM {
                let tiling = Tiling::of(room, pass, head_dim);
                let Tiling { own, far, depth, .. } = tiling;
                let (near_rows, far_rows, lanes) = (tiling.near(), tiling.far_rows(), tiling.lanes());
                let value_rows = tiling.value_rows(head_dim);
                let values = (value_rows * tiling.columns(head_dim) * tiling.far_lanes).next_multiple_of(lanes);
                let tile = values.max((near_rows + far_rows) * (depth + 1)).max(lanes * own.div_ceil(4));
                let bytes = 16 * tile + 4 * near_rows * far_rows;
                assert!(bytes <= room.shared(), "{pass:?} {room:?} {head_dim}: {bytes} bytes, {tiling:?}");
                let parts = [near_rows, far_rows].map(|rows| rows * depth);
                assert!(parts.iter().all(|part| part.is_multiple_of(lanes)), "{pass:?} {room:?} {head_dim}: {tiling:?}");
                assert!(far_rows.is_multiple_of(value_rows) && value_rows.is_multiple_of(4) && far.is_multiple_of(4));
                assert!(4 * tiling.columns(head_dim) * tiling.far_lanes >= head_dim);
            }
        }
    }

    #[test]
    fn kernels_are_valid() {
        for (room, head_dim) in rooms().flat_map(|room| [1, 7, 64, 80, 128, 256].map(|dim| (room, dim))) {
            for (family, pass) in [&FORWARD, &QUERY_BACKWARD, &KEY_BACKWARD].into_iter().zip(PASSES) {
                for is_continued in 0..=u32::from(pass == Pass::KeyBackward) {
                    let mut constants = Tiling::of(room, pass, head_dim).constants(head_dim);
                    constants.extend([
                        ("VECTORS", u32::from(head_dim.is_multiple_of(4))),
                        ("QUERY_SIDE", u32::from(pass == Pass::QueryBackward)),
                        ("CONTINUED", is_continued),
                    ]);
                    family.tiled.validate(room.tier, &constants).unwrap_or_else(|error| panic!("{error}"));
                }
            }
        }
    }
}
