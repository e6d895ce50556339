//! Kernels parsed and written as SPIR-V.

use naga::back::spv;
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{Module, ShaderStage, front};
use polytape::gpu::KernelVariant;

/// No bounds checks.
pub const UNCHECKED: BoundsCheckPolicies = BoundsCheckPolicies {
    index: BoundsCheckPolicy::Unchecked,
    buffer: BoundsCheckPolicy::Unchecked,
    image_load: BoundsCheckPolicy::Unchecked,
    binding_array: BoundsCheckPolicy::Unchecked,
};

/// Parses and validates a kernel; an error says where its text is wrong.
pub fn parse(variant: &KernelVariant) -> Result<(Module, ModuleInfo), String> {
    let text = variant.text().map_err(|error| error.to_string())?;
    let module = front::wgsl::parse_str(&text).map_err(|error| error.emit_to_string(&text))?;
    let mut validator = Validator::new(ValidationFlags::all(), Capabilities::all());
    let info = validator.validate(&module).map_err(|error| error.emit_to_string(&text))?;
    Ok((module, info))
}

/// The writer's options for shaders that wgpu compiles without runtime checks.
pub fn unchecked() -> spv::Options<'static> {
    spv::Options {
        flags: spv::WriterFlags::LABEL_VARYINGS | spv::WriterFlags::FORCE_POINT_SIZE,
        bounds_check_policies: UNCHECKED,
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        force_loop_bounding: false,
        ray_query_initialization_tracking: false,
        emit_int_div_checks: false,
        ..Default::default()
    }
}

/// A kernel as SPIR-V.
pub fn spirv(variant: &KernelVariant, options: &spv::Options<'_>) -> Result<Vec<u32>, String> {
    let (module, info) = parse(variant)?;
    let entry = spv::PipelineOptions { shader_stage: ShaderStage::Compute, entry_point: variant.entry.into() };
    spv::write_vec(&module, &info, options, Some(&entry)).map_err(|error| format!("SPIR-V: {error}"))
}
