//! Vector width, workgroup size and teams of row kernels.

use super::adapter::KernelTier;
use super::device::Gpu;

/// Whether rows of `columns` floats can be accessed as vec4.
pub(crate) fn vectors(columns: usize) -> u32 {
    u32::from(columns.is_multiple_of(4))
}

/// Iterations of a workgroup-stride loop over a row of `columns` floats.
pub(crate) fn strides(columns: usize, workgroup: u32) -> usize {
    let width = if columns.is_multiple_of(4) { 4 } else { 1 };
    (columns / width).div_ceil(workgroup as usize)
}

/// The workgroup size of a reduction, and whether that is one subgroup: (`WORKGROUP`, `ONE_SUBGROUP`).
pub(crate) fn workgroup(gpu: &Gpu) -> (u32, u32) {
    match gpu.shader_tier() {
        KernelTier::Fallback => (gpu.lanes(), 1),
        _ => (256, 0),
    }
}

/// Maximum elements of a row that a lane of a subgroup keeps in registers; a backward keeps twice as many.
const MOST_HELD: usize = 8;
/// Invocations of a workgroup whose subgroups have rows of their own.
const WORKGROUP_OF_TEAMS: u32 = 128;

/// How the kernels of `rows.wgsl` share out rows: one for each subgroup where it can keep the row in registers, else one for each
/// workgroup.
#[derive(Clone, Copy)]
pub(crate) struct RowTeams {
    /// Invocations of a workgroup, and whether it is one subgroup.
    pub(crate) workgroup: (u32, u32),
    /// Elements that a lane keeps; 0 for a row per workgroup.
    held: u32,
    /// Those that it has even in the largest subgroups.
    sure: u32,
    /// Rows per workgroup.
    rows: u32,
}

impl RowTeams {
    /// For rows of `columns` floats.
    pub(crate) fn new(gpu: &Gpu, columns: usize) -> Self {
        let whole = Self { workgroup: workgroup(gpu), held: 0, sure: 0, rows: 1 };
        let (least, most) = gpu.adapter().subgroup_lanes;
        let has_subgroups = matches!(gpu.shader_tier(), KernelTier::Subgroup | KernelTier::Matrix);
        if !has_subgroups || least == 0 || most > WORKGROUP_OF_TEAMS || strides(columns, least) > MOST_HELD {
            return whole;
        }
        let [held, sure] = [least, most].map(|lanes| strides(columns, lanes) as u32);
        Self { workgroup: (WORKGROUP_OF_TEAMS, 0), held, sure, rows: WORKGROUP_OF_TEAMS / most }
    }

    /// The constants of the kernels.
    pub(crate) fn constants(&self, columns: usize) -> [(&'static str, u32); 6] {
        [
            ("WORKGROUP", self.workgroup.0),
            ("ONE_SUBGROUP", self.workgroup.1),
            ("VECTORS", vectors(columns)),
            ("HELD", self.held),
            ("SURE", self.sure),
            ("ROWS", self.rows),
        ]
    }

    /// Invocations per row.
    pub(crate) fn invocations_per_row(&self) -> f64 {
        f64::from(self.workgroup.0) / f64::from(self.rows)
    }

    /// Loop iterations of an invocation that walks a row of `columns` floats `passes` times.
    pub(crate) fn iterations(&self, columns: usize, passes: usize) -> usize {
        if self.held > 0 { self.rows as usize } else { passes * strides(columns, self.workgroup.0) }
    }
}
