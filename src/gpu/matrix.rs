//! Cooperative matrices: the shape to use, and a self-test.

use super::adapter::KernelTier;
use super::device::Gpu;
use super::kernel::{Access, Kernel, Launch, Slice};
use crate::error::Result;

static CHECK: Kernel =
    Kernel::trusted("matrix check", include_str!("../../shaders/matrix_check.wgsl"), "main", &[Access::Read, Access::ReadWrite]);

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

fn constants(block: u32) -> [(&'static str, u32); 1] {
    [("LARGE", u32::from(block == 16))]
}

/// Notes the kernel of the self-test, which every device of the tier runs.
pub(super) fn note(gpu: &Gpu) {
    if let (KernelTier::Matrix, Some((_, block))) = (gpu.kernels(), gpu.matrices()) {
        gpu.note(&CHECK, &constants(block), 0);
    }
}

/// The self-test: products of small integer matrices, which are exact, compared with the host.
pub(super) async fn check(gpu: &Gpu) -> Result<()> {
    let Some((_, block)) = gpu.matrices() else {
        return Err(CHECK.error("no cooperative matrices"));
    };
    let side = block as usize;
    let matrix = |step: usize, range: usize| (0..side * side).map(move |i| (i * step % range) as f32 - (range / 2) as f32);
    let [a, b, c] = [(7, 13), (5, 11), (3, 17)].map(|(step, range)| matrix(step, range).collect::<Vec<f32>>());
    let by_rows = |i: usize, j: usize| (0..side).map(|k| a[i * side + k] * b[k * side + j]).sum::<f32>();
    let by_columns = |i: usize, j: usize| (0..side).map(|k| a[k * side + i] * b[j * side + k]).sum::<f32>();
    let places = (0..side).flat_map(|i| (0..side).map(move |j| (i, j)));
    let products = places.clone().map(|(i, j)| by_rows(i, j)).chain(places.map(|(i, j)| by_columns(i, j)));
    let want: Vec<f32> = products.zip(c.iter().cycle()).map(|(product, c)| product + c).collect();
    let operands = gpu.upload(bytemuck::cast_slice(&[&a[..], &b, &c].concat()))?;
    let out = gpu.allocate(8 * (side * side) as u64)?;
    let slices = [&operands, &out].map(|buffer| Slice { buffer, offset: 0, size: buffer.bytes() });
    gpu.launch(&Launch {
        kernel: &CHECK,
        constants: &constants(block),
        buffers: &slices,
        arguments: &[],
        workgroups: [1, 1, 1],
        iterations: 8,
        work: 0,
    })?;
    let found: Vec<f32> = bytemuck::pod_collect_to_vec(&gpu.read_async(&slices[1..]).await?[0]);
    match (0..want.len()).find(|&i| found[i] != want[i]) {
        None => Ok(()),
        Some(i) => Err(CHECK.error(format!("self-test: element {i} of a product is {}, expected {}", found[i], want[i]))),
    }
}
