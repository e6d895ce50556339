//! The kinds of adapters that the choice of kernels depends on.

use polytape::gpu::{AdapterSummary, Backend, DeviceType, Features, KernelTier, Limits};

/// A kind of adapter, with a tier of kernels that it runs.
#[derive(Debug, Clone)]
pub struct Class {
    /// What it is, in words.
    pub name: String,
    /// A description with the least limits of its kind.
    pub adapter: AdapterSummary,
    /// The kernels.
    pub tier: KernelTier,
}

/// Every tier that is compiled for adapters, on every kind of adapter that it distinguishes.
pub fn classes() -> Vec<Class> {
    let fallback = [4, 8, 16, 32].map(|lanes| {
        let adapter = AdapterSummary { kind: DeviceType::Cpu, subgroup_lanes: (lanes, lanes), ..webgpu() };
        Class { name: format!("fallback, {lanes} lanes"), adapter, tier: KernelTier::Fallback }
    });
    let few = Class { name: "portable".into(), adapter: webgpu(), tier: KernelTier::Portable };
    let many = |tier: KernelTier| Class { name: format!("{tier}, 64 bindings"), adapter: many_bindings(), tier };
    let subgroup = Class { name: "subgroup".into(), adapter: webgpu(), tier: KernelTier::Subgroup };
    let matrix = [4, 8, 16, 32, 64, 128].into_iter().flat_map(|lanes| [(lanes, 8), (lanes, 16)]).map(|(lanes, block)| {
        let adapter = AdapterSummary { subgroup_lanes: (lanes, lanes), matrix_block: Some(block), ..with_matrices() };
        Class { name: format!("matrix, blocks of {block}, {lanes} lanes"), adapter, tier: KernelTier::Matrix }
    });
    let metal = AdapterSummary { backend: Backend::Metal, matrix_block: Some(8), ..with_matrices() };
    let metal = Class { name: "matrix, on Metal".into(), adapter: metal, tier: KernelTier::Matrix };
    // As on NVIDIA, where a workgroup may have more shared memory, and attention's tiles are deeper.
    let mut roomy = with_matrices();
    roomy.limits.max_compute_workgroup_storage_size = 48 << 10;
    let roomy = [(KernelTier::Subgroup, None), (KernelTier::Matrix, Some(16))].map(|(tier, matrix_block)| Class {
        name: format!("{tier}, 48 KiB of shared memory"),
        adapter: AdapterSummary { matrix_block, ..roomy.clone() },
        tier,
    });
    let few_registers =
        [(96, KernelTier::Portable, webgpu()), (128, KernelTier::Subgroup, with_matrices())].map(|(registers, tier, adapter)| {
            Class { name: format!("{tier}, {registers} registers"), adapter: AdapterSummary { registers, ..adapter }, tier }
        });
    let software = Class {
        name: "portable, on the CPU".into(),
        adapter: AdapterSummary { kind: DeviceType::Cpu, ..webgpu() },
        tier: KernelTier::Portable,
    };
    let others = [few, software, many(KernelTier::Portable), subgroup, many(KernelTier::Subgroup)];
    // The first class that has a text sets its limits: that of more shared memory comes last.
    fallback.into_iter().chain(others).chain(few_registers).chain(matrix).chain([metal]).chain(roomy).collect()
}

/// A GPU with subgroups, and otherwise what the library asks for at least.
fn webgpu() -> AdapterSummary {
    AdapterSummary {
        index: 0,
        name: "rehearsal".into(),
        kind: DeviceType::DiscreteGpu,
        backend: Backend::Vulkan,
        driver: String::new(),
        pci: String::new(),
        limits: Limits { max_immediate_size: 128, ..Limits::default() },
        features: Features::IMMEDIATES | Features::SUBGROUP,
        subgroup_lanes: (32, 32),
        matrix_block: None,
        registers: 256,
        memory: None,
        kernel_tier: None,
    }
}

/// The optimizers update as many parameters in one dispatch as there are bindings.
fn many_bindings() -> AdapterSummary {
    let mut adapter = webgpu();
    adapter.limits.max_storage_buffers_per_shader_stage = 64;
    adapter
}

fn with_matrices() -> AdapterSummary {
    let mut adapter = many_bindings();
    adapter.limits.max_compute_workgroup_storage_size = 32 << 10;
    adapter.features |= Features::SHADER_F16 | Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
    adapter
}
