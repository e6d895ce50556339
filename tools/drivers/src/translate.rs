//! Kernels parsed, measured, and written as SPIR-V.

use naga::back::spv;
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, Module, ShaderStage, front};
use polytape::gpu::KernelVariant;

/// No bounds checks.
pub const UNCHECKED: BoundsCheckPolicies = BoundsCheckPolicies {
    index: BoundsCheckPolicy::Unchecked,
    buffer: BoundsCheckPolicy::Unchecked,
    image_load: BoundsCheckPolicy::Unchecked,
    binding_array: BoundsCheckPolicy::Unchecked,
};

/// A parsed and validated kernel.
pub struct Parsed {
    /// Its module.
    pub module: Module,
    /// What validation found out.
    pub info: ModuleInfo,
    entry: usize,
}

impl Parsed {
    /// Parses and validates; an error says where the text is wrong.
    pub fn new(variant: &KernelVariant) -> Result<Self, String> {
        let text = variant.text().map_err(|error| error.to_string())?;
        let module = front::wgsl::parse_str(&text).map_err(|error| error.emit_to_string(&text))?;
        let mut validator = Validator::new(ValidationFlags::all(), Capabilities::all());
        let info = validator.validate(&module).map_err(|error| error.emit_to_string(&text))?;
        let entry = module.entry_points.iter().position(|entry| entry.name == variant.entry);
        let entry = entry.ok_or_else(|| format!("no entry point `{}`", variant.entry))?;
        Ok(Self { module, info, entry })
    }

    /// Bytes of workgroup memory that the kernel uses.
    pub fn shared_bytes(&self) -> u32 {
        let uses = self.info.get_entry_point(self.entry);
        let of_workgroup = |space: AddressSpace| space == AddressSpace::WorkGroup;
        let used = self.module.global_variables.iter().filter(|(at, one)| of_workgroup(one.space) && !uses[*at].is_empty());
        used.map(|(_, one)| self.module.types[one.ty].inner.size(self.module.to_ctx())).sum()
    }

    /// Invocations in x, y and z of a workgroup.
    pub fn workgroup_size(&self) -> [u32; 3] {
        self.module.entry_points[self.entry].workgroup_size
    }

    /// SPIR-V by these options.
    pub fn spirv(&self, options: &spv::Options<'_>) -> Result<Vec<u32>, String> {
        let entry_point = self.module.entry_points[self.entry].name.clone();
        let entry = spv::PipelineOptions { shader_stage: ShaderStage::Compute, entry_point };
        spv::write_vec(&self.module, &self.info, options, Some(&entry)).map_err(|error| format!("SPIR-V: {error}"))
    }
}

/// The options by which wgpu writes the shaders that it compiles without runtime checks.
pub fn unchecked() -> spv::Options<'static> {
    spv::Options {
        flags: spv::WriterFlags::LABEL_VARYINGS | spv::WriterFlags::FORCE_POINT_SIZE,
        bounds_check_policies: UNCHECKED,
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        force_loop_bounding: false,
        ray_query_initialization_tracking: false,
        emit_int_div_checks: false,
        // That of Vulkan 1.1, the least with subgroups.
        lang_version: (1, 3),
        ..Default::default()
    }
}
