//! `devices`: the adapters of this machine.

use polytape::gpu::{AdapterSummary, Features, KernelTier, adapters};

use crate::terminal::failure::Failure;
use crate::terminal::output;

/// Runs the command.
pub fn run() -> Result<(), Failure> {
    let found = adapters();
    if found.is_empty() {
        let failure = Failure::other("found no Vulkan, Metal or DX12 adapter, expected one or more");
        return Err(
            failure.hint("on Linux without a GPU, install Mesa's Vulkan drivers (Debian and Ubuntu: mesa-vulkan-drivers)")
        );
    }
    let text: Vec<String> = found.iter().map(describe).collect();
    output::print(&text.join("\n"))
}

fn describe(adapter: &AdapterSummary) -> String {
    let limits = &adapter.limits;
    let has = |feature: Features, name: &'static str| adapter.features.contains(feature).then_some(name);
    let features: Vec<&str> = [
        has(Features::SUBGROUP, "subgroups"),
        has(Features::SHADER_F16, "f16"),
        has(Features::EXPERIMENTAL_COOPERATIVE_MATRIX, "cooperative matrices"),
        has(Features::TIMESTAMP_QUERY_INSIDE_PASSES, "timestamps"),
    ]
    .into_iter()
    .flatten()
    .collect();
    let kernels = match (&adapter.kernel_tier, adapter.missing()) {
        (Some(tier), _) => {
            let other: Vec<String> =
                adapter.kernel_tiers().filter(|other| other != tier).map(|other| other.to_string()).collect();
            let other = if other.is_empty() { String::new() } else { format!(" (can also run {})", other.join(", ")) };
            format!("{tier}{other}")
        }
        (None, missing) => format!("cannot be used: {}", missing.unwrap_or_default()),
    };
    let f16 = match adapter.kernel_tier {
        Some(KernelTier::Matrix) => "on matrix units",
        _ => "without matrix units, slower",
    };
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    let memory = match (adapter.memory, adapter.memory_budget()) {
        (Some(memory), Some(budget)) => format!("{}, of which a run uses at most {}", mib(memory), mib(budget)),
        _ if adapter.is_software() => "the host's".into(),
        _ => "not reported by the driver; its own limit applies".into(),
    };
    let speed = adapter.assumed_speed() / 1e9;
    format!(
        "{} {}\n  kind      {:?}, {:?}, {}\n  limits    {} MiB a binding, {} MiB a buffer, {} KiB shared, {} invocations a workgroup\n  \
         features  {} (subgroups of {} to {})\n  memory    {memory}\n  kernels   {kernels}\n  precision f32; f16x3 and f16 {f16}\n  \
         watchdog  dispatches of at most 100 ms, at {speed:.0} GFLOP/s until a kernel's first long ones are timed\n",
        adapter.index,
        adapter.name,
        adapter.kind,
        adapter.backend,
        adapter.driver,
        limits.max_storage_buffer_binding_size >> 20,
        limits.max_buffer_size >> 20,
        limits.max_compute_workgroup_storage_size >> 10,
        limits.max_compute_invocations_per_workgroup,
        if features.is_empty() { "none".to_owned() } else { features.join(", ") },
        adapter.subgroup_lanes.0,
        adapter.subgroup_lanes.1,
    )
}
