//! What the choice of a product's kernel depends on.

use crate::gpu::{Gpu, KernelTier, MatrixUnits};

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
    /// A and B are rounded to f16 beforehand.
    pub(super) f16_operands: bool,
}

/// The properties of a device that kernel selection depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DeviceCaps {
    pub(super) tier: KernelTier,
    /// The tier of the kernel whose twin the host tier runs.
    pub(super) shader_tier: KernelTier,
    /// Fixed subgroup size, for the fallback tier.
    pub(super) lanes: u32,
    /// For the matrix tier.
    pub(super) matrices: Option<MatrixUnits>,
    /// Bytes of shared memory per workgroup.
    pub(super) shared: u32,
    /// Registers of an invocation in a workgroup of 256.
    pub(super) registers: u32,
    /// [`Gpu::full_occupancy`].
    pub(super) full_occupancy: usize,
    /// Whether shaders run on the CPU, where long ones take seconds to compile.
    pub(super) software: bool,
}

impl DeviceCaps {
    pub(super) fn of(gpu: &Gpu) -> Self {
        Self {
            tier: gpu.kernels(),
            shader_tier: gpu.shader_tier(),
            lanes: gpu.lanes(),
            matrices: gpu.matrices(),
            shared: gpu.adapter().limits.max_compute_workgroup_storage_size,
            registers: gpu.adapter().registers,
            full_occupancy: gpu.full_occupancy(),
            software: gpu.adapter().is_software(),
        }
    }

    /// Minimum number of 64 × 64 tiles; below, tiles of 32 × 64 leave fewer cores idle.
    pub(super) fn min_tiles(self) -> usize {
        self.full_occupancy / 2
    }

    /// Minimum number of 128 × 128 tiles; below, 64 × 64 tiles leave fewer cores idle.
    pub(super) fn min_large_tiles(self) -> usize {
        self.full_occupancy * 3 / 8
    }
}

impl Problem {
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

    /// Output tiles to compute.
    pub(super) fn tile_count(&self, rows: usize, columns: usize) -> usize {
        let tiles = self.rows.div_ceil(rows) * self.columns.div_ceil(columns);
        self.batch * if self.symmetric { tiles.div_ceil(2) } else { tiles }
    }
}
