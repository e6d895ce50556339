//! The device layer: kernels that fail to compile or do not match, memory budget, copies, adapters, profiling, large tensors.

use polytape::gpu::{Access, Backend, Kernel, KernelTier, Launch, Slice, adapters, grid};
use polytape::{AdapterChoice, Error, Gpu, GpuOptions, Gradients, Indices, Params, Result, Tape, Tensor};

use crate::device;

pub static DOUBLE: Kernel = Kernel::new(
    "double",
    "@group(0) @binding(0) var<storage, read> x: array<f32>;
     @group(0) @binding(1) var<storage, read_write> y: array<f32>;
     struct Args { count: u32 }
     var<immediate> args: Args;
     @compute @workgroup_size(64)
     fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u,
             @builtin(local_invocation_index) local: u32) {
         let i = linear_index(group, groups, local, 64u);
         if (i < args.count) { y[i] = 2.0 * x[i]; }
     }",
    "main",
    &[Access::Read, Access::ReadWrite],
);

pub fn launch(gpu: &Gpu, kernel: &Kernel, buffers: &[Slice<'_>], count: u32) -> Result<()> {
    gpu.launch(&Launch {
        kernel,
        constants: &[],
        buffers,
        arguments: bytemuck::cast_slice(&[count]),
        workgroups: grid(u64::from(count), 64),
        iterations: 0,
        work: 0,
    })
}

/// The error text of a call that must fail.
#[track_caller]
pub fn refusal<T>(result: Result<T>) -> String {
    match result {
        Ok(_) => panic!("an error expected"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_kernel_of_the_users_own_runs_on_every_device() -> Result<()> {
    for gpu in device::all() {
        let x = Tensor::from_slice(gpu, &[1.5; 1001], &[1001])?;
        let y = Tensor::zeros(gpu, &[1001])?;
        launch(gpu, &DOUBLE, &[x.slice(), y.slice()], 1000)?;
        let mut want = vec![3.0; 1000];
        want.push(0.0);
        assert_eq!(y.to_vec()?, want);
    }
    Ok(())
}

#[test]
fn arguments_that_are_not_what_the_kernel_declares_are_refused() -> Result<()> {
    const fn kernel(name: &'static str, source: &'static str) -> Kernel {
        Kernel::new(name, source, "main", &[Access::ReadWrite])
    }
    static NONE: Kernel = kernel("none", "@compute @workgroup_size(1) fn main() {}");
    static MORE: Kernel = kernel(
        "more",
        "struct Args { count: u32, factor: vec2f } var<immediate> args: Args; @compute @workgroup_size(1) fn main() {}",
    );
    static SCALAR: Kernel = kernel("scalar", "var<immediate> count: u32; @compute @workgroup_size(1) fn main() {}");
    static ARRAY: Kernel = kernel(
        "array",
        "struct Args { sizes: array<u32, 1> } var<immediate> args: Args; @compute @workgroup_size(1) fn main() {}",
    );
    static CUT: Kernel = kernel("cut", "@compute @workgroup_size(1) fn main() {}").cut_along(0, 1);
    for gpu in device::all() {
        let y = Tensor::zeros(gpu, &[4])?;
        for (kernel, text) in [
            (&CUT, "kernel cut: found 4 bytes of arguments, expected a u32 at index 1 for the first workgroup"),
            (&NONE, "kernel none: 4 bytes of arguments given, 0 declared"),
            (&MORE, "kernel more: 4 bytes of arguments given, 16 declared"),
            (&SCALAR, "kernel scalar: its `var<immediate>` is not a struct"),
            (&ARRAY, "kernel array: its `var<immediate>` may hold only scalars and vectors"),
        ] {
            assert_eq!(refusal(launch(gpu, kernel, &[y.slice()], 4)), text);
        }
    }
    Ok(())
}

#[test]
#[should_panic(expected = "an axis from 0 to 2 expected")]
fn a_kernel_is_cut_along_one_of_three_axes() {
    let _ = DOUBLE.cut_along(3, 0);
}

#[test]
fn a_kernel_that_does_not_compile_is_an_error_with_the_compilers_text() -> Result<()> {
    static UNPARSABLE: Kernel = Kernel::new("unparsable", "@compute @workgroup_size(1) fn main( {", "main", &[Access::ReadWrite]);
    static UNDEFINED: Kernel =
        Kernel::new("undefined", "@compute @workgroup_size(1) fn main() { let x = nowhere; }", "main", &[Access::ReadWrite]);
    static NO_ENTRY: Kernel = Kernel::new(
        "no_entry",
        "struct Args { count: u32 } var<immediate> args: Args; @compute @workgroup_size(1) fn main() {}",
        "start",
        &[Access::ReadWrite],
    );
    static ENDLESS: Kernel = Kernel::new("endless", "@unroll for (var i = 0u; i < 2u; i++) {", "main", &[Access::ReadWrite]);
    for gpu in device::all() {
        let y = Tensor::zeros(gpu, &[4])?;
        let cases = [
            (&UNPARSABLE, "kernel unparsable: ", "expected"),
            (&UNDEFINED, "kernel undefined: ", "nowhere"),
            (&NO_ENTRY, "kernel no_entry: ", "start"),
            (&ENDLESS, "kernel endless: ", "block"),
        ];
        for (kernel, start, part) in cases {
            let result = launch(gpu, kernel, &[y.slice()], 4);
            assert!(matches!(result, Err(Error::Kernel { .. })));
            let text = refusal(result);
            assert!(text.starts_with(start) && text.contains(part), "{text}");
        }
        assert_eq!(y.to_vec()?, [0.0; 4], "the device goes on");
    }
    Ok(())
}

#[test]
fn buffers_that_do_not_fit_the_bindings_are_refused() -> Result<()> {
    let gpu = device::default();
    let x = Tensor::zeros(gpu, &[4])?;
    for (count, buffers) in [(1, vec![x.slice()]), (3, vec![x.slice(); 3])] {
        let text = format!("kernel double: {count} buffers given, 2 bindings declared");
        assert_eq!(refusal(launch(gpu, &DOUBLE, &buffers, 4)), text);
    }
    let text = "kernel double: bindings 0 and 1 are the same buffer, and one of them is written";
    assert_eq!(refusal(launch(gpu, &DOUBLE, &[x.slice(), x.slice()], 4)), text);
    let stranger = Tensor::zeros(&device::open(&Default::default())?, &[4])?;
    let text = "kernel double: the buffer of binding 0 belongs to another device";
    assert_eq!(refusal(launch(gpu, &DOUBLE, &[stranger.slice(), x.slice()], 4)), text);
    assert_eq!(x.to_vec()?, [0.0; 4], "the device goes on");
    Ok(())
}

#[test]
fn slices_beyond_their_buffer_or_of_another_device_are_refused() -> Result<()> {
    let stranger = Tensor::zeros(&device::open(&Default::default())?, &[64])?;
    for gpu in device::all() {
        let x = Tensor::zeros(gpu, &[64])?;
        let beyond = Slice { size: 260, ..x.slice() };
        assert_eq!(refusal(gpu.read(&[beyond])), "read: the buffer has 256 bytes, fewer than 260 from 0");
        assert_eq!(refusal(gpu.copy(x.slice(), x.slice().buffer, 4)), "copy to: the buffer has 256 bytes, fewer than 256 from 4");
        let endless = Slice { offset: u64::MAX, ..x.slice() };
        assert!(refusal(gpu.copy(endless, x.slice().buffer, 0)).starts_with("copy from: the buffer has 256 bytes"));
        assert_eq!(refusal(gpu.read(&[stranger.slice()])), "read: the buffer belongs to another device");
        assert_eq!(refusal(gpu.clear(stranger.slice().buffer)), "clear: the buffer belongs to another device");
        let y = Tensor::zeros(gpu, &[64])?;
        let text = "kernel double: the buffer of binding 0 has 256 bytes, fewer than 260 from 0";
        assert_eq!(refusal(launch(gpu, &DOUBLE, &[beyond, y.slice()], 64)), text);
        assert_eq!(x.to_vec()?, [0.0; 64], "the device goes on");
    }
    Ok(())
}

#[test]
fn slices_that_cannot_be_bound_or_copied_are_refused() -> Result<()> {
    for gpu in device::all() {
        let [x, y] = [Tensor::zeros(gpu, &[128])?, Tensor::zeros(gpu, &[128])?];
        let part = |offset, size| Slice { offset, size, ..x.slice() };
        for (offset, size) in [(4, 8), (0, 0), (260, 4)] {
            let expected = "expected one or more from a multiple of 256";
            let text = format!("kernel double: binding 0: found {size} bytes from {offset}, {expected}");
            assert_eq!(refusal(launch(gpu, &DOUBLE, &[part(offset, size), y.slice()], 1)), text);
        }
        for (offset, size) in [(2, 4), (0, 6)] {
            let text = format!("found {size} bytes from {offset}, expected multiples of 4");
            assert_eq!(refusal(gpu.copy(part(offset, size), y.slice().buffer, 0)), format!("copy from: {text}"));
            assert_eq!(refusal(gpu.read(&[part(offset, size)])), format!("read: {text}"));
        }
        let text = "copy to: found 4 bytes from 1, expected multiples of 4";
        assert_eq!(refusal(gpu.copy(part(0, 4), y.slice().buffer, 1)), text);
        let text = "copy: found one buffer, expected two; copy through a third";
        assert_eq!(refusal(gpu.copy(part(0, 256), x.slice().buffer, 256)), text);
        gpu.copy(part(4, 8), y.slice().buffer, 500)?;
        assert_eq!(polytape::read_all([&x, &y])?, [[0.0; 128]; 2], "the device goes on");
    }
    Ok(())
}

#[test]
fn an_adapter_that_is_not_there_is_an_error_that_lists_what_is() {
    let open = |adapter| refusal(device::open(&GpuOptions { adapter, ..Default::default() }));
    let index = open(AdapterChoice::Index(99));
    let name = open(AdapterChoice::Name("nonsense".into()));
    assert!(index.ends_with("; expected index 99"), "{index}");
    assert!(name.ends_with("; expected a name containing `nonsense`"), "{name}");
    // Every name contains it.
    let empty = open(AdapterChoice::Name(String::new()));
    assert!(empty.ends_with("; expected a name containing ``"), "{empty}");
    for adapter in adapters() {
        let found = format!("{} {}", adapter.index, adapter.name);
        assert!(index.contains(&found) && name.contains(&found), "{found}: {index}; {name}");
    }
    let parsed = ["best", "CPU", "3", "Radeon"].map(|text| text.parse::<AdapterChoice>().expect("never fails"));
    let choices = [AdapterChoice::Best, AdapterChoice::Cpu, AdapterChoice::Index(3), AdapterChoice::Name("Radeon".into())];
    assert_eq!(parsed, choices);
}

#[test]
fn uploads_of_any_size_come_back() -> Result<()> {
    for gpu in device::all() {
        let sizes = [1, 2, 3, 63, 64, 65, 255, 257, 4099, 100_003];
        let numbers = |count: usize| (0..count).map(|i| i as f32 - 0.5).collect::<Vec<f32>>();
        for count in sizes {
            assert_eq!(Tensor::from_slice(gpu, &numbers(count), &[count])?.to_vec()?, numbers(count));
        }
        for count in [1, 2, 3, 5, 7, 255, 257, 1023_usize] {
            let bytes: Vec<u8> = (0..count).map(|i| (i * 37) as u8).collect();
            let buffer = gpu.upload(&bytes)?;
            let size = count.next_multiple_of(4) as u64;
            let read = gpu.read(&[Slice { buffer: &buffer, offset: 0, size }])?;
            assert_eq!(read[0][..count], bytes);
        }
        let tensors = [1, 7, 130].map(|count| Tensor::from_slice(gpu, &numbers(count), &[count]));
        let [a, b, c] = tensors;
        let read = polytape::read_all([&a?, &b?, &c?])?;
        assert_eq!(read, [numbers(1), numbers(7), numbers(130)], "several at once");
    }
    Ok(())
}

#[test]
fn uploads_and_zeros_do_not_overtake_what_reads_their_buffers() -> Result<()> {
    for gpu in device::all() {
        let mut results = Vec::new();
        for i in 0..300 {
            // Of equal sizes: each takes the buffer that the one before has left.
            let x = Tensor::from_slice(gpu, &[i as f32; 700], &[700])?;
            let y = x.scaled(2.0)?;
            drop(x);
            let zeros = Tensor::zeros(gpu, &[700])?;
            results.push((y.weighted_sum(1.0, &zeros, 1.0)?, y.duplicate()?));
        }
        for (i, (sum, copy)) in results.iter().enumerate() {
            assert_eq!(polytape::read_all([sum, copy])?, [vec![2.0 * i as f32; 700], vec![2.0 * i as f32; 700]]);
        }
    }
    Ok(())
}

#[test]
fn recording_goes_on_while_kernels_compile_and_keeps_the_order() -> Result<()> {
    for kernels in device::all().iter().map(Gpu::kernels) {
        let run = |compile_ahead| -> Result<[Vec<f32>; 2]> {
            let gpu = device::open(&GpuOptions { kernels: Some(kernels), compile_ahead, ..Default::default() })?;
            let x = Tensor::normal(&gpu, &[70, 68], 1.0, 1)?;
            let params = Params::new(&gpu);
            let tape = Tape::new(&params);
            let leaf = tape.leaf(x);
            // Kernels that were never compiled, with uploads, zeros, copies and a user's kernel between them.
            let y = leaf.matmul_nt(&leaf)?.softmax()?.matmul(&leaf)?.gelu()?;
            let doubled = Tensor::zeros(&gpu, &[70, 68])?;
            launch(&gpu, &DOUBLE, &[y.value().slice(), doubled.slice()], 70 * 68)?;
            let seed = Tensor::from_slice(&gpu, &[0.5; 70 * 68], &[70, 68])?.duplicate()?;
            let leaves = tape.backward_from(&[(&y, seed)], &mut Gradients::new())?;
            polytape::read_all([&doubled, leaves.get(&leaf).expect("a gradient")])
        };
        assert!(run(true)? == run(false)?, "{kernels} kernels");
    }
    Ok(())
}

#[test]
fn threads_read_what_they_recorded_while_kernels_compile() -> Result<()> {
    for shared in device::all() {
        let compute = |gpu: &Gpu, seed: u64| -> Result<Vec<f32>> {
            let params = Params::new(gpu);
            let tape = Tape::new(&params);
            let x = tape.leaf(Tensor::normal(gpu, &[40, 61 + seed as usize], 1.0, seed)?);
            let y = x.softmax()?.gelu()?.matmul_nt(&x)?.tanh()?;
            let dy = Tensor::normal(gpu, &[40, 40], 1.0, seed)?;
            tape.backward_from(&[(&y, dy)], &mut Gradients::new())?.get(&x).expect("a gradient").to_vec()
        };
        let want = (0..4).map(|seed| compute(shared, seed)).collect::<Result<Vec<_>>>()?;
        for _ in 0..3 {
            let gpu = &device::open(&GpuOptions { kernels: Some(shared.kernels()), ..Default::default() })?;
            let found = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..4).map(|seed| scope.spawn(move || compute(gpu, seed))).collect();
                threads.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Result<Vec<_>>>()
            })?;
            assert!(found == want, "{} kernels", shared.kernels());
        }
    }
    Ok(())
}

#[test]
fn a_profile_has_the_kernels_that_ran() -> Result<()> {
    for kernels in device::all().iter().map(Gpu::kernels) {
        let gpu = match device::open(&GpuOptions { kernels: Some(kernels), profile: true, ..Default::default() }) {
            Err(Error::Adapter(problem)) if problem.contains("no timestamp queries") => continue,
            opened => opened?,
        };
        assert!(gpu.profile()?.kernels.is_empty());
        let x = Tensor::from_slice(&gpu, &[1.0; 1 << 20], &[1 << 20])?;
        let y = x.scaled(2.0)?.scaled(2.0)?.hadamard(&x)?;
        let table = gpu.profile()?;
        let dispatches: Vec<(&str, u64)> = table.kernels.iter().map(|(name, time)| (*name, time.dispatches)).collect();
        assert_eq!(dispatches, [("product", 1), ("scaled", 2)], "{kernels} kernels");
        assert!(table.kernels.values().all(|time| time.seconds > 0.0 && time.seconds < 60.0), "{kernels} kernels: {table}");
        assert!(table.to_string().contains("scaled"), "{kernels} kernels: {table}");
        // More dispatches than there are queries per submit.
        for _ in 0..300 {
            y.scaled(0.5)?;
        }
        assert_eq!(gpu.profile()?.kernels["scaled"].dispatches, 302, "{kernels} kernels");
    }
    assert!(device::default().profile()?.kernels.is_empty(), "without the option there is none");
    Ok(())
}

#[test]
fn tensors_above_the_binding_limit_are_cut_into_windows() -> Result<()> {
    const COLUMNS: usize = 100;
    let gpu = device::narrow();
    let rows = gpu.binding_limit() as usize / (4 * COLUMNS) + 777;
    let numbers: Vec<f32> = (0..rows * COLUMNS).map(|i| (i % 65_521) as f32).collect();
    let table = Tensor::from_slice(gpu, &numbers, &[rows, COLUMNS])?;
    assert!(table.bytes() > gpu.binding_limit());
    let wrong = table.scaled(2.0)?.to_vec()?.iter().zip(&numbers).position(|(got, x)| *got != 2.0 * x);
    assert_eq!(wrong, None, "element of 2·x");

    let cut = (rows - 777) / 64 * 64;
    let ids = [0, 1, cut - 1, cut, cut + 1, rows - 1, 1];
    let params = Params::new(gpu);
    let tape = Tape::new(&params);
    let x = tape.leaf(table);
    let y = x.embedding(&Indices::from_slice(gpu, &ids.map(|id| id as u32))?)?;
    let want: Vec<f32> = ids.iter().flat_map(|id| &numbers[id * COLUMNS..][..COLUMNS]).copied().collect();
    assert_eq!(y.value().to_vec()?, want);
    let leaves = tape.backward(&y.sum()?, &mut Gradients::new())?;
    let gradient = leaves.get(&x).expect("a gradient of the table").to_vec()?;
    let uses = |row: usize| ids.iter().filter(|id| **id == row).count() as f32;
    let wrong = (0..rows).find(|&row| {
        let uses = uses(row);
        gradient[row * COLUMNS..][..COLUMNS].iter().any(|value| *value != uses)
    });
    assert_eq!(wrong, None, "row of the table's gradient");
    Ok(())
}

#[test]
fn a_software_adapter_of_vulkan_runs_every_tier_but_that_of_matrix_units() {
    let (own, tiers) = (device::default().adapter(), device::all().iter().map(Gpu::kernels).collect::<Vec<_>>());
    if own.is_software() && own.backend == Backend::Vulkan {
        for tier in [KernelTier::Host, KernelTier::Fallback, KernelTier::Portable, KernelTier::Subgroup] {
            assert!(tiers.contains(&tier) || device::is_foreign(own, tier), "{tier} is not tested");
        }
    }
}
