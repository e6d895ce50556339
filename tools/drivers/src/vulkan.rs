//! A Vulkan device of its own, opened as wgpu opens one, that compiles kernels and asks the driver what came of them.

use std::ffi::{CStr, CString};

use ash::{ext, khr, vk};
use naga::back::spv;
use polytape::gpu::{AdapterSummary, Features, KernelVariant};
use polytape_drivers::translate::{Parsed, unchecked};

/// A number that the driver tells of a compiled kernel, under the driver's own name for it.
pub type Statistic = (String, f64);

/// An open device, without queues in use: it only compiles.
pub struct Device {
    // Keeps the loader's library open.
    _entry: ash::Entry,
    instance: ash::Instance,
    raw: ash::Device,
    /// `None` where the driver tells nothing.
    executables: Option<khr::pipeline_executable_properties::Device>,
    stage_flags: vk::PipelineShaderStageCreateFlags,
    spirv: spv::Options<'static>,
}

impl Device {
    /// Opens the device of an adapter, found by its name, with every feature that wgpu would be asked for.
    pub fn open(adapter: &AdapterSummary) -> Result<Self, String> {
        // SAFETY: the loader's library is trusted, as wgpu does; handles are used while their parents live.
        unsafe {
            let entry = ash::Entry::load().map_err(|error| format!("no Vulkan loader: {error}"))?;
            let application = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_3);
            let info = vk::InstanceCreateInfo::default().application_info(&application);
            let instance = entry.create_instance(&info, None).map_err(failed("vkCreateInstance"))?;
            let found = instance.enumerate_physical_devices().map_err(failed("vkEnumeratePhysicalDevices"))?;
            let name_of = |device: &vk::PhysicalDevice| {
                let properties = instance.get_physical_device_properties(*device);
                text(&properties.device_name)
            };
            let physical = found.iter().copied().find(|device| name_of(device) == adapter.name);
            let physical = physical.ok_or_else(|| format!("Vulkan lists no `{}`", adapter.name))?;
            let supported = instance.enumerate_device_extension_properties(physical).map_err(failed("extensions"))?;
            let has = |name: &CStr| supported.iter().any(|one| one.extension_name_as_c_str() == Ok(name));
            let raw = create(&instance, physical, adapter, &has).map_err(failed("vkCreateDevice"))?;
            let tells = has(khr::pipeline_executable_properties::NAME);
            let api_version = instance.get_physical_device_properties(physical).api_version;
            Ok(Self {
                executables: tells.then(|| khr::pipeline_executable_properties::Device::new(&instance, &raw)),
                stage_flags: match adapter.features.contains(Features::SUBGROUP) {
                    true => vk::PipelineShaderStageCreateFlags::ALLOW_VARYING_SUBGROUP_SIZE,
                    false => vk::PipelineShaderStageCreateFlags::empty(),
                },
                spirv: spirv_options(adapter.features, api_version),
                _entry: entry,
                instance,
                raw,
            })
        }
    }

    /// Compiles a kernel without checks, as release builds do, and returns what the driver tells of it; an error is a refusal.
    pub fn compile(&self, variant: &KernelVariant, parsed: &Parsed) -> Result<Vec<Statistic>, String> {
        let words = parsed.spirv(&self.spirv)?;
        // SAFETY: everything that is created is destroyed here, after its last use.
        unsafe {
            let module = vk::ShaderModuleCreateInfo::default().code(&words);
            let module = self.raw.create_shader_module(&module, None).map_err(|error| format!("module: {error}"))?;
            let layout = self.layout(variant);
            let done = layout.and_then(|(sets, layout)| {
                let done = self.pipeline(variant, module, layout);
                self.raw.destroy_pipeline_layout(layout, None);
                self.raw.destroy_descriptor_set_layout(sets, None);
                done
            });
            self.raw.destroy_shader_module(module, None);
            done.map_err(|error| format!("pipeline: {error}"))
        }
    }

    unsafe fn layout(&self, variant: &KernelVariant) -> Result<(vk::DescriptorSetLayout, vk::PipelineLayout), vk::Result> {
        let binding = |at: u32| {
            vk::DescriptorSetLayoutBinding::default()
                .binding(at)
                .descriptor_type(vk::DescriptorType::STORAGE_BUFFER)
                .descriptor_count(1)
                .stage_flags(vk::ShaderStageFlags::COMPUTE)
        };
        let bindings: Vec<_> = (0..variant.bindings.len() as u32).map(binding).collect();
        let set = vk::DescriptorSetLayoutCreateInfo::default().bindings(&bindings);
        let range = vk::PushConstantRange::default().stage_flags(vk::ShaderStageFlags::COMPUTE).size(variant.argument_bytes);
        // SAFETY: by the caller.
        unsafe {
            let sets = [self.raw.create_descriptor_set_layout(&set, None)?];
            let info = vk::PipelineLayoutCreateInfo::default().set_layouts(&sets);
            let ranges = [range];
            let info = if variant.argument_bytes > 0 { info.push_constant_ranges(&ranges) } else { info };
            Ok((sets[0], self.raw.create_pipeline_layout(&info, None)?))
        }
    }

    unsafe fn pipeline(
        &self,
        variant: &KernelVariant,
        module: vk::ShaderModule,
        layout: vk::PipelineLayout,
    ) -> Result<Vec<Statistic>, vk::Result> {
        let entry = CString::new(variant.entry).expect("bug: an entry point has no zero byte");
        let stage = vk::PipelineShaderStageCreateInfo::default()
            .flags(self.stage_flags)
            .stage(vk::ShaderStageFlags::COMPUTE)
            .module(module)
            .name(&entry);
        let mut info = vk::ComputePipelineCreateInfo::default().layout(layout).stage(stage);
        if self.executables.is_some() {
            info = info.flags(vk::PipelineCreateFlags::CAPTURE_STATISTICS_KHR);
        }
        // SAFETY: by the caller.
        unsafe {
            let made = self.raw.create_compute_pipelines(vk::PipelineCache::null(), &[info], None);
            let pipelines = made.map_err(|(_, error)| error)?;
            let statistics = self.statistics(pipelines[0]);
            self.raw.destroy_pipeline(pipelines[0], None);
            statistics
        }
    }

    unsafe fn statistics(&self, pipeline: vk::Pipeline) -> Result<Vec<Statistic>, vk::Result> {
        let Some(executables) = &self.executables else { return Ok(Vec::new()) };
        // SAFETY: by the caller; the format says which field of the value is set.
        unsafe {
            let of = vk::PipelineInfoKHR::default().pipeline(pipeline);
            if executables.get_pipeline_executable_properties(&of)?.is_empty() {
                return Ok(Vec::new());
            }
            // A compute pipeline has one executable.
            let first = vk::PipelineExecutableInfoKHR::default().pipeline(pipeline).executable_index(0);
            let number = |one: &vk::PipelineExecutableStatisticKHR<'_>| match one.format {
                vk::PipelineExecutableStatisticFormatKHR::BOOL32 => f64::from(one.value.b32),
                vk::PipelineExecutableStatisticFormatKHR::INT64 => one.value.i64 as f64,
                vk::PipelineExecutableStatisticFormatKHR::UINT64 => one.value.u64 as f64,
                _ => one.value.f64,
            };
            let told = executables.get_pipeline_executable_statistics(&first)?;
            Ok(told.iter().map(|one| (text(&one.name), number(one))).collect())
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: nothing of either is left.
        unsafe {
            self.raw.destroy_device(None);
            self.instance.destroy_instance(None);
        }
    }
}

fn failed(what: &'static str) -> impl Fn(vk::Result) -> String {
    move |error| format!("{what}: {error}")
}

/// A device with the features that wgpu enables and that change a kernel's code: robustness above all.
unsafe fn create(
    instance: &ash::Instance,
    physical: vk::PhysicalDevice,
    adapter: &AdapterSummary,
    has: &dyn Fn(&CStr) -> bool,
) -> Result<ash::Device, vk::Result> {
    let (f16, matrices) = (Features::SHADER_F16, Features::EXPERIMENTAL_COOPERATIVE_MATRIX);
    let (f16, matrices) = (adapter.features.contains(f16), adapter.features.contains(f16 | matrices));
    let mut robustness = vk::PhysicalDeviceRobustness2FeaturesEXT::default();
    let mut subgroups = vk::PhysicalDeviceSubgroupSizeControlFeatures::default().subgroup_size_control(true);
    let mut half = vk::PhysicalDeviceShaderFloat16Int8Features::default().shader_float16(true);
    let mut storage = vk::PhysicalDevice16BitStorageFeatures::default()
        .storage_buffer16_bit_access(true)
        .uniform_and_storage_buffer16_bit_access(true);
    let mut memory_model = vk::PhysicalDeviceVulkanMemoryModelFeatures::default().vulkan_memory_model(true);
    let mut cooperative = vk::PhysicalDeviceCooperativeMatrixFeaturesKHR::default().cooperative_matrix(true);
    let mut executables = vk::PhysicalDevicePipelineExecutablePropertiesFeaturesKHR::default().pipeline_executable_info(true);
    let mut extensions = Vec::new();
    let core = vk::PhysicalDeviceFeatures::default().robust_buffer_access(true);
    let priority = [1.0];
    let queues = [vk::DeviceQueueCreateInfo::default().queue_priorities(&priority)];
    let mut info = vk::DeviceCreateInfo::default().queue_create_infos(&queues).enabled_features(&core);
    if has(ext::robustness2::NAME) {
        let mut asked = vk::PhysicalDeviceFeatures2::default().push_next(&mut robustness);
        // SAFETY: by the caller.
        unsafe { instance.get_physical_device_features2(physical, &mut asked) };
        // wgpu has no use for null descriptors.
        robustness.null_descriptor = vk::FALSE;
        robustness.p_next = std::ptr::null_mut();
        extensions.push(ext::robustness2::NAME.as_ptr());
        info = info.push_next(&mut robustness);
    }
    if adapter.features.contains(Features::SUBGROUP) {
        extensions.push(ext::subgroup_size_control::NAME.as_ptr());
        info = info.push_next(&mut subgroups);
    }
    if f16 {
        info = info.push_next(&mut half).push_next(&mut storage);
    }
    if matrices {
        extensions.push(khr::cooperative_matrix::NAME.as_ptr());
        info = info.push_next(&mut memory_model).push_next(&mut cooperative);
    }
    if has(khr::pipeline_executable_properties::NAME) {
        extensions.push(khr::pipeline_executable_properties::NAME.as_ptr());
        info = info.push_next(&mut executables);
    }
    // SAFETY: by the caller.
    unsafe { instance.create_device(physical, &info.enabled_extension_names(&extensions), None) }
}

/// How wgpu writes SPIR-V for shaders without runtime checks on such an adapter.
fn spirv_options(features: Features, api_version: u32) -> spv::Options<'static> {
    use spv::Capability as Can;
    let mut capabilities = vec![Can::Shader, Can::Matrix];
    if features.contains(Features::SUBGROUP) {
        capabilities.extend([
            Can::GroupNonUniform,
            Can::GroupNonUniformVote,
            Can::GroupNonUniformArithmetic,
            Can::GroupNonUniformBallot,
            Can::GroupNonUniformShuffle,
            Can::GroupNonUniformShuffleRelative,
            Can::GroupNonUniformQuad,
        ]);
    }
    if features.contains(Features::SHADER_F16) {
        capabilities.push(Can::Float16);
    }
    if features.contains(Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
        capabilities.extend([Can::CooperativeMatrixKHR, Can::VulkanMemoryModel]);
    }
    let lang_version = match api_version {
        ..vk::API_VERSION_1_2 => (1, 3),
        vk::API_VERSION_1_2..vk::API_VERSION_1_3 => (1, 5),
        _ => (1, 6),
    };
    spv::Options { lang_version, capabilities: Some(capabilities.into_iter().collect()), ..unchecked() }
}

/// A zero-terminated text of the driver.
fn text(characters: &[std::ffi::c_char]) -> String {
    let bytes: Vec<u8> = characters.iter().take_while(|&&c| c != 0).map(|&c| c as u8).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}
