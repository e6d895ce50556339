//! How much memory an adapter has.

/// Bytes of device memory that this process may use, as far as the driver tells: on Vulkan what it expects to be able to give of the
/// largest heap (VK_EXT_memory_budget), or else that heap's size; on DX12 the operating system's budget for the adapter's own memory
/// (`QueryVideoMemoryInfo`); on Metal the working set that does not hurt performance (`recommendedMaxWorkingSetSize`).
#[cfg(not(target_vendor = "apple"))]
pub(super) fn of(adapter: &wgpu::Adapter) -> Option<u64> {
    #[cfg(windows)]
    if let Some(budget) = dx12(adapter) {
        return Some(budget);
    }
    vulkan(adapter)
}

#[cfg(target_vendor = "apple")]
pub(super) fn of(adapter: &wgpu::Adapter) -> Option<u64> {
    use objc2_metal::MTLDevice;
    // SAFETY: the device is that of wgpu's own adapter, which outlives this function, and is only asked for a property.
    let bytes = unsafe { adapter.as_hal::<wgpu::hal::api::Metal>()?.raw_device().recommendedMaxWorkingSetSize() };
    (bytes > 0).then_some(bytes)
}

#[cfg(windows)]
fn dx12(adapter: &wgpu::Adapter) -> Option<u64> {
    // SAFETY: as for Metal.
    let adapter = unsafe { adapter.as_hal::<wgpu::hal::api::Dx12>()? };
    // The default is zero, DXGI_MEMORY_SEGMENT_GROUP_LOCAL.
    let info = adapter.raw_adapter().query_video_memory_info(Default::default()).ok()?;
    (info.Budget > 0).then_some(info.Budget)
}

#[cfg(not(target_vendor = "apple"))]
fn vulkan(adapter: &wgpu::Adapter) -> Option<u64> {
    use ash::vk;
    // SAFETY: the handles are those of wgpu's own adapter, which outlives this function, and are only asked for properties.
    unsafe {
        let adapter = adapter.as_hal::<wgpu::hal::api::Vulkan>()?;
        let instance = adapter.shared_instance().raw_instance();
        let device = adapter.raw_physical_device();
        let has_budget = adapter.physical_device_capabilities().supports_extension(ash::ext::memory_budget::NAME);
        let mut budget = vk::PhysicalDeviceMemoryBudgetPropertiesEXT::default();
        let mut properties = vk::PhysicalDeviceMemoryProperties2::default();
        if has_budget {
            properties = properties.push_next(&mut budget);
        }
        instance.get_physical_device_memory_properties2(device, &mut properties);
        let memory = properties.memory_properties;
        let heaps = memory.memory_heaps_as_slice().iter().zip(budget.heap_budget);
        let local = heaps.filter(|(heap, _)| heap.flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL));
        local.map(|(heap, budget)| if budget > 0 { budget.min(heap.size) } else { heap.size }).max()
    }
}
