//! Host overhead per dispatch: checks, pipeline lookup, bind group, recording, and its share of a submit.

use std::time::Instant;

use polytape::gpu::{Access, Gpu, Kernel, Launch};
use polytape::{Result, Tensor};

static ADD: Kernel = Kernel::new(
    "add",
    "@group(0) @binding(0) var<storage, read> a: array<f32>;
     @group(0) @binding(1) var<storage, read> b: array<f32>;
     @group(0) @binding(2) var<storage, read_write> out: array<f32>;
     struct Args { count: u32 }
     var<immediate> args: Args;
     @compute @workgroup_size(1)
     fn main(@builtin(global_invocation_id) id: vec3u) { if (id.x < args.count) { out[id.x] = a[id.x] + b[id.x]; } }",
    "main",
    &[Access::Read, Access::Read, Access::ReadWrite],
);

/// Dispatches recorded per measurement: fewer than trigger an automatic submit.
const RECORDED: usize = 100;

pub fn run(gpu: &Gpu) -> Result<()> {
    println!("\n| {RECORDED} dispatches of one invocation | µs each |\n|---|---:|");
    let tensors = (0..8).map(|_| Tensor::zeros(gpu, &[64])).collect::<Result<Vec<_>>>()?;
    let mut recorded = f64::INFINITY;
    let mut submitted = f64::INFINITY;
    for _ in 0..50 {
        gpu.synchronize()?;
        let start = Instant::now();
        for i in 0..RECORDED {
            let buffers = [&tensors[i % 3], &tensors[3 + i % 2], &tensors[5 + i % 3]].map(Tensor::slice);
            gpu.launch(&Launch {
                kernel: &ADD,
                constants: &[],
                buffers: &buffers,
                arguments: &1_u32.to_le_bytes(),
                workgroups: [1, 1, 1],
                iterations: 0,
                work: 0,
            })?;
        }
        recorded = recorded.min(start.elapsed().as_secs_f64());
        gpu.flush()?;
        submitted = submitted.min(start.elapsed().as_secs_f64());
    }
    let each = |seconds: f64| 1e6 * seconds / RECORDED as f64;
    println!("| recorded | {:.2} |\n| recorded and submitted | {:.2} |", each(recorded), each(submitted));
    Ok(())
}
