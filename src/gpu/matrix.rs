//! Cooperative matrices: their properties, and a self-test.

use super::adapter::KernelTier;
use super::device::Gpu;
use super::kernel::{Access, Kernel, Launch, Slice};
use crate::error::Result;

static CHECK: Kernel = Kernel::trusted(
    "matrix check",
    concat!(include_str!("../../shaders/matrices.wgsl"), include_str!("../../shaders/matrix_check.wgsl")),
    "main",
    &[Access::Read, Access::ReadWrite],
);

/// Side of the largest square cooperative matrix with f16 inputs and f32 accumulation.
pub(super) fn block(adapter: &wgpu::Adapter) -> Option<u32> {
    use wgpu::CooperativeScalarType::{F16, F32};
    let found = adapter.cooperative_matrix_properties();
    let has = |side: u32| {
        found
            .iter()
            .any(|shape| [shape.m_size, shape.n_size, shape.k_size] == [side; 3] && (shape.ab_type, shape.cr_type) == (F16, F32))
    };
    [16, 8].into_iter().find(|side| has(*side))
}

/// The matrix units of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MatrixUnits {
    /// Subgroup size, minimum and maximum.
    pub(crate) lanes: (u32, u32),
    /// Side of a cooperative matrix.
    pub(crate) block: u32,
    /// Whether f16() rounds to nearest, ties to even, with subnormals and infinities: WGSL leaves it open.
    pub(crate) rounds_f16: bool,
    /// Whether they are loaded from shared memory, and stored there, by pointers to scalars only: on Metal.
    pub(crate) scalars: bool,
}

impl MatrixUnits {
    /// The constants of shaders/matrices.wgsl and shaders/half_storage.wgsl.
    pub(crate) fn constants(self) -> [(&'static str, u32); 3] {
        [("LARGE", (self.block == 16).into()), ("SCALARS", self.scalars.into()), ("HARDWARE_F16", self.rounds_f16.into())]
    }

    /// How rows × columns results divide into regions, one per subgroup of a workgroup and at most `most` in all, of whole blocks and as
    /// square as possible: the number of regions by rows and by columns.
    pub(crate) fn regions(self, rows: u32, columns: u32, invocations: u32, most: u32) -> (u32, u32) {
        let [rows, columns] = [rows, columns].map(|side| side / self.block);
        let regions = (invocations / self.lanes.1).min(rows * columns).min(most);
        let grids = (0..=regions.ilog2()).map(|bits| (1 << bits, regions >> bits));
        let fitting = grids.filter(|(down, across)| rows.is_multiple_of(*down) && columns.is_multiple_of(*across));
        fitting.min_by_key(|(down, across)| rows / down + columns / across).unwrap_or((1, 1))
    }

    /// Whether every subgroup of a workgroup has a region.
    pub(crate) fn is_whole(self, regions: u32, invocations: u32) -> bool {
        self.lanes.0 == self.lanes.1 && regions * self.lanes.1 == invocations
    }
}

/// Values and what they are rounded to f16: ties, the ends of the subnormals, overflow.
const ROUNDINGS: [(f32, f32); 16] = [
    (0.1, 0.099_975_586),
    (1.0 + 1.0 / 2048.0, 1.0),
    (1.0 + 3.0 / 2048.0, 1.0 + 2.0 / 1024.0),
    (-1.0 - 1.0 / 2048.0, -1.0),
    (1.000_489_2, 1.0 + 1.0 / 1024.0),
    (2049.0, 2048.0),
    (2051.0, 2052.0),
    (65_519.0, 65_504.0),
    (65_520.0, f32::INFINITY),
    (-1e30, f32::NEG_INFINITY),
    (1.0 / 16_777_216.0, 1.0 / 16_777_216.0),
    (-1.0 / 33_554_432.0, -0.0),
    (3.0 / 33_554_432.0, 2.0 / 16_777_216.0),
    (1.25 / 33_554_432.0, 1.0 / 16_777_216.0),
    (1.0 / 16_384.0 - 1.0 / 33_554_432.0, 1.0 / 16_384.0),
    (1e-9, 0.0),
];

fn constants(units: MatrixUnits) -> Vec<(&'static str, u32)> {
    [&units.constants()[..], &[("ROUNDED", ROUNDINGS.len() as u32)]].concat()
}

/// Notes the kernel of the self-test, which every device of the tier runs.
pub(super) fn note(gpu: &Gpu) {
    if let (KernelTier::Matrix, Some(units)) = (gpu.kernels(), gpu.matrices()) {
        gpu.note(&CHECK, &constants(units), 0);
    }
}

/// The self-test: products of small integer matrices, which are exact, compared with the host. Whether f16() rounds as it should.
pub(super) async fn check(gpu: &Gpu) -> Result<bool> {
    let Some(units) = gpu.matrices() else {
        return Err(CHECK.error("no cooperative matrices"));
    };
    let side = units.block as usize;
    let matrix = |step: usize, range: usize| (0..side * side).map(move |i| (i * step % range) as f32 - (range / 2) as f32);
    let [a, b, c] = [(7, 13), (5, 11), (3, 17)].map(|(step, range)| matrix(step, range).collect::<Vec<f32>>());
    let by_rows = |i: usize, j: usize| (0..side).map(|k| a[i * side + k] * b[k * side + j]).sum::<f32>();
    let by_columns = |i: usize, j: usize| (0..side).map(|k| a[k * side + i] * b[j * side + k]).sum::<f32>();
    let places = (0..side).flat_map(|i| (0..side).map(move |j| (i, j)));
    let products = places.clone().map(|(i, j)| by_rows(i, j)).chain(places.map(|(i, j)| by_columns(i, j)));
    let want: Vec<f32> = products.zip(c.iter().cycle()).map(|(product, c)| product + c).collect();
    let unrounded = ROUNDINGS.map(|(value, _)| value);
    let operands = gpu.upload(bytemuck::cast_slice(&[&a[..], &b, &c, &unrounded].concat()))?;
    let out = gpu.allocate(4 * (want.len() + ROUNDINGS.len()) as u64)?;
    let slices = [&operands, &out].map(|buffer| Slice { buffer, offset: 0, size: buffer.bytes() });
    gpu.launch(&Launch {
        kernel: &CHECK,
        constants: &constants(units),
        buffers: &slices,
        arguments: &[],
        workgroups: [1, 1, 1],
        iterations: 8,
        work: 0,
    })?;
    let found: Vec<f32> = bytemuck::pod_collect_to_vec(&gpu.read_async(&slices[1..]).await?[0]);
    match (0..want.len()).find(|&i| found[i] != want[i]) {
        None => Ok(ROUNDINGS.iter().zip(&found[want.len()..]).all(|((_, rounded), found)| rounded.to_bits() == found.to_bits())),
        Some(i) => Err(CHECK.error(format!("self-test: element {i} of a product is {}, expected {}", found[i], want[i]))),
    }
}

#[cfg(all(test, feature = "host"))]
mod tests {
    use super::*;
    use crate::gpu::host::simd::to_half;

    #[test]
    fn the_roundings_are_those_of_the_twins() {
        for (value, rounded) in ROUNDINGS {
            assert_eq!(to_half(value).to_bits(), rounded.to_bits(), "{value}");
        }
    }
}
