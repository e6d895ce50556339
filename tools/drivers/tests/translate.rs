//! Every kernel of every class of adapters, as SPIR-V, HLSL and MSL: a refusal, or more than a platform allows, fails.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use naga::ShaderStage;
use naga::back::{hlsl, msl, spv};
use polytape::gpu::{KernelTier, KernelVariant, Limits};
use polytape_drivers::translate::{Parsed, UNCHECKED, unchecked};
use polytape_drivers::variants_by_class;

/// Widths of heads that are tried: all narrow ones, those around each power of two, and those of published models.
const HEADS: [u32; 27] =
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 80, 96, 100, 127, 128, 129, 192, 255, 256];

#[test]
fn every_kernel_translates_to_every_shading_language_in_some_combinations() {
    translate(|variant| variant.constant("DIM").is_none_or(|dim| HEADS.contains(&dim)), SAMPLE);
}

#[test]
#[ignore = "takes minutes: every combination of constants"]
fn every_combination_translates() {
    translate(|variant| variant.constant("DIM").is_none_or(|dim| HEADS.contains(&dim)), 1);
}

#[test]
#[ignore = "takes longer: attention at every width of a head"]
fn every_kernel_at_every_width_of_a_head_translates() {
    translate(|_| true, 1);
}

/// The default test translates the first combination of each kernel and then one in this many: all of them take minutes.
const SAMPLE: usize = 96;

/// A kernel with the limits that it must keep.
struct Case {
    class: String,
    variant: KernelVariant,
    limits: Limits,
}

fn translate(is_wanted: impl Fn(&KernelVariant) -> bool, one_in: usize) {
    // Each text once, with the first class that has it: those with the least limits come first.
    let mut cases: BTreeMap<String, Case> = BTreeMap::new();
    for (class, variants) in variants_by_class().unwrap_or_else(|error| panic!("{error}")) {
        for variant in variants.into_iter().filter(&is_wanted) {
            let text = variant.text().unwrap_or_else(|error| panic!("{}: {error}", class.name));
            let key = format!("{} {text}", variant.entry);
            let (class, limits) = (class.name.clone(), class.adapter.limits.clone());
            cases.entry(key).or_insert(Case { class, variant, limits });
        }
    }
    // Kernels on matrix units have the names of others, and texts of their own on Metal.
    let mut seen: BTreeMap<(&str, KernelTier, Option<u32>), usize> = BTreeMap::new();
    let is_due = |case: &Case| {
        let count = seen.entry((case.variant.kernel, case.variant.tier, case.variant.constant("SCALARS"))).or_default();
        *count += 1;
        (*count - 1).is_multiple_of(one_in)
    };
    let cases: Vec<Case> = cases.into_values().filter(is_due).collect();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (next, problems) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, |count| count.get()) {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(problem) = check(case, folder.path()) {
                        let Case { class, variant, .. } = case;
                        let line = format!("{class}: {} {:?}: {problem}", variant.kernel, variant.constants);
                        problems.lock().expect("no panic").push(line);
                    }
                }
            });
        }
    });
    let problems = problems.into_inner().expect("no panic");
    assert!(problems.is_empty(), "{} of {} kernels:\n{}", problems.len(), cases.len(), problems.join("\n"));
    println!("{} kernels", cases.len());
}

fn check(case: &Case, folder: &Path) -> Result<(), String> {
    let variant = &case.variant;
    let parsed = Parsed::new(variant)?;
    limits(&parsed, variant, &case.limits)?;
    for options in [unchecked(), checked()] {
        let words = parsed.spirv(&options)?;
        // The same words everywhere; scripts/test installs the validator on Linux.
        if cfg!(target_os = "linux") {
            validate(&words, folder)?;
        }
    }
    let has_matrices = variant.text().is_ok_and(|text| text.contains("coop_mat"));
    // wgpu has cooperative matrices on Vulkan and on Metal.
    if !has_matrices {
        for model in [hlsl::ShaderModel::V6_0, hlsl::ShaderModel::V6_2] {
            to_hlsl(&parsed, variant, model)?;
        }
    }
    if !has_matrices || variant.constant("SCALARS") == Some(1) {
        let versions: &[(u8, u8)] = if has_matrices { &[(2, 4), (3, 1), (3, 2)] } else { &[(2, 4), (3, 0), (3, 2)] };
        versions.iter().try_for_each(|version| to_msl(&parsed, variant, *version))?;
    }
    Ok(())
}

/// The options for shaders with every check, as debug builds have them.
fn checked() -> spv::Options<'static> {
    let policy = naga::proc::BoundsCheckPolicy::Restrict;
    spv::Options {
        bounds_check_policies: naga::proc::BoundsCheckPolicies { index: policy, buffer: policy, ..UNCHECKED },
        force_loop_bounding: true,
        emit_int_div_checks: true,
        ..unchecked()
    }
}

/// SPIR-V's number of the capability CooperativeMatrixKHR.
const COOPERATIVE_MATRIX: u32 = 6022;

/// With SPIRV-Tools.
fn validate(words: &[u32], folder: &Path) -> Result<(), String> {
    let path = folder.join(format!("{:?}.spv", std::thread::current().id()));
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    std::fs::write(&path, bytes).map_err(|error| error.to_string())?;
    let run = Command::new("spirv-val").args(["--target-env", "vulkan1.3"]).arg(&path).output();
    let output = run.map_err(|error| format!("spirv-val, which scripts/test installs: {error}"))?;
    let problem = String::from_utf8_lossy(&output.stderr);
    // Debian 12's SPIRV-Tools are older than cooperative matrices.
    let is_known = !problem.contains(&format!("Invalid capability operand: {COOPERATIVE_MATRIX}"));
    if output.status.success() || !is_known { Ok(()) } else { Err(format!("spirv-val: {problem}")) }
}

fn to_hlsl(parsed: &Parsed, variant: &KernelVariant, shader_model: hlsl::ShaderModel) -> Result<(), String> {
    let target = |register: u32| hlsl::BindTarget { space: 0, register, ..Default::default() };
    let binding = |at: u32| (naga::ResourceBinding { group: 0, binding: at }, target(at));
    let options = hlsl::Options {
        shader_model,
        binding_map: (0..variant.bindings.len() as u32).map(binding).collect(),
        fake_missing_bindings: false,
        immediates_target: Some(target(100)),
        special_constants_binding: Some(target(101)),
        zero_initialize_workgroup_memory: false,
        restrict_indexing: false,
        force_loop_bounding: false,
        ..Default::default()
    };
    let entry = hlsl::PipelineOptions { entry_point: Some((ShaderStage::Compute, variant.entry.into())) };
    let mut text = String::new();
    let written = hlsl::Writer::new(&mut text, &options, &entry).write(&parsed.module, &parsed.info, None);
    let names = written.map_err(|error| format!("HLSL {}: {error}", shader_model.to_str()))?.entry_point_names;
    names.into_iter().try_for_each(|name| name.map(drop)).map_err(|error| format!("HLSL {}: {error}", shader_model.to_str()))
}

fn to_msl(parsed: &Parsed, variant: &KernelVariant, lang_version: (u8, u8)) -> Result<(), String> {
    let target = |at: u32| msl::BindTarget { buffer: Some(at as u8), mutable: true, ..Default::default() };
    let binding = |at: u32| (naga::ResourceBinding { group: 0, binding: at }, target(at));
    let count = variant.bindings.len() as u8;
    let resources = msl::EntryPointResources {
        resources: (0..u32::from(count)).map(binding).collect(),
        immediates_buffer: Some(count),
        sizes_buffer: Some(count + 1),
    };
    let options = msl::Options {
        lang_version,
        per_entry_point_map: [(variant.entry.to_owned(), resources)].into(),
        fake_missing_bindings: false,
        bounds_check_policies: UNCHECKED,
        zero_initialize_workgroup_memory: false,
        force_loop_bounding: false,
        emit_int_div_checks: false,
        ..Default::default()
    };
    let entry = msl::PipelineOptions { entry_point: Some((ShaderStage::Compute, variant.entry.into())), ..Default::default() };
    let failed = |error: String| format!("MSL {}.{}: {error}", lang_version.0, lang_version.1);
    let written = msl::write_string(&parsed.module, &parsed.info, &options, &entry);
    let (_, info) = written.map_err(|error| failed(error.to_string()))?;
    info.entry_point_names.into_iter().try_for_each(|name| name.map(drop)).map_err(|error| failed(error.to_string()))
}

/// What an adapter of the class allows, which is at most what DX12 and Metal allow.
fn limits(parsed: &Parsed, variant: &KernelVariant, class: &Limits) -> Result<(), String> {
    let [x, y, z] = parsed.workgroup_size();
    let bindings = variant.bindings.len() as u32;
    // Root constants: the arguments, three of wgpu's own, and a table of descriptors, of 64 in all.
    let root = variant.argument_bytes.div_ceil(4) + 3 + 1;
    let rows = [
        ("bytes of shared memory", parsed.shared_bytes(), class.max_compute_workgroup_storage_size),
        ("invocations", x * y * z, class.max_compute_invocations_per_workgroup),
        ("invocations in x", x, class.max_compute_workgroup_size_x),
        ("invocations in y", y, class.max_compute_workgroup_size_y),
        ("invocations in z", z, class.max_compute_workgroup_size_z),
        ("storage buffers", bindings, class.max_storage_buffers_per_shader_stage),
        // Beside them, Metal passes the arguments and the sizes of the buffers in two more.
        ("buffers on Metal", bindings + 2, 31),
        ("bytes of arguments", variant.argument_bytes, class.max_immediate_size),
        ("words of the root signature on DX12", root, 64),
    ];
    rows.iter()
        .find(|(_, found, most)| found > most)
        .map_or(Ok(()), |(what, found, most)| Err(format!("{found} {what}, at most {most}")))
}
