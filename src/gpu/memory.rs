//! How much memory an adapter has.

/// Bytes of its largest heap of device memory that this process may use, as far as the driver tells: what the driver expects to be able
/// to give (VK_EXT_memory_budget), or else the heap's size.
#[cfg(not(target_vendor = "apple"))]
pub(super) fn of(adapter: &wgpu::Adapter) -> Option<u64> {
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

#[cfg(target_vendor = "apple")]
pub(super) fn of(_adapter: &wgpu::Adapter) -> Option<u64> {
    None
}
