//! Tiles of the kernel on matrix units.

use super::problem::{DeviceCaps, Problem};
use crate::gpu::MatrixUnits;

/// The output tile of a workgroup of the matrix kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MatrixTile {
    pub(super) rows: u32,
    pub(super) columns: u32,
    /// Inner indices per step.
    pub(super) depth: u32,
    pub(super) invocations: u32,
}

/// Bytes of staging for the sums of a matrix kernel's regions.
const STAGING: u32 = 16 << 10;

impl MatrixTile {
    /// All tiles, the largest first.
    const ALL: [Self; 3] = [
        // Few subgroups with large regions load shared memory least; only f16 operands leave them registers for the next operands.
        Self { rows: 128, columns: 128, depth: 32, invocations: 128 },
        Self { rows: 128, columns: 128, depth: 16, invocations: 256 },
        Self { rows: 64, columns: 64, depth: 16, invocations: 256 },
    ];

    /// Number of regions by rows and by columns, one region per subgroup.
    pub(super) fn regions(self, units: MatrixUnits) -> (u32, u32) {
        units.regions(self.rows, self.columns, self.invocations, STAGING / (4 * units.block * units.block))
    }

    /// Bytes of shared memory: operand tiles, padded, and the staging.
    fn shared(self, units: MatrixUnits, f16_terms: u32) -> u32 {
        let (down, across) = self.regions(units);
        let operand = |side: u32| 2 * (side * (self.depth + 8)).max(self.depth * (side + 8));
        f16_terms * (operand(self.rows) + operand(self.columns)) + 4 * down * across * units.block * units.block
    }

    /// The tiles that fit the shape and the shared memory, the heuristic's choice first: the largest that fills the device.
    pub(super) fn candidates(caps: DeviceCaps, units: MatrixUnits, problem: &Problem) -> Vec<Self> {
        let mut tiles: Vec<Self> = Vec::new();
        for tile in Self::ALL {
            let [rows, columns] = [tile.rows, tile.columns];
            let is_filled = columns == 64 || (problem.rows >= rows as usize && problem.columns >= columns as usize);
            // Two subgroups of 64 lanes have regions of 8 × 4 blocks, whose operands spill on RDNA 3.
            let has_registers = tile.invocations == 256 || (problem.f16_operands && tile.invocations >= 4 * units.lanes.1);
            let is_new = tiles.last().is_none_or(|last| (last.rows, last.columns) != (rows, columns));
            if is_new && is_filled && has_registers && tile.shared(units, problem.f16_terms) <= caps.shared {
                tiles.push(tile);
            }
        }
        let fills_device = |tile: &Self| problem.tile_count(tile.rows as usize, tile.columns as usize) >= caps.min_large_tiles();
        let chosen = tiles.iter().position(fills_device).unwrap_or(tiles.len() - 1);
        tiles[..=chosen].rotate_right(1);
        tiles
    }
}
