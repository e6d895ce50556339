//! The adapter's peak FLOP/s, measured with a synthetic kernel.

use polytape::gpu::{Access, Gpu, Kernel, Launch, grid};
use polytape::{Result, Tensor};

use crate::fastest;

/// Eight independent chains of vec4 multiply-adds: bound by neither latency nor memory.
static MULTIPLY_ADD: Kernel = Kernel::new(
    "multiply-add",
    "@group(0) @binding(0) var<storage, read_write> out: array<vec4f>;
     struct Args { steps: u32 }
     var<immediate> args: Args;
     @compute @workgroup_size(64)
     fn main(@builtin(global_invocation_id) id: vec3u) {
         let x = vec4f(f32(id.x) * 1e-9);
         var a = x; var b = x + 0.1; var c = x + 0.2; var d = x + 0.3;
         var e = x + 0.4; var f = x + 0.5; var g = x + 0.6; var h = x + 0.7;
         for (var i = 0u; i < args.steps; i++) {
             @unroll for (var j = 0u; j < 8; j++) {
                 a = fma(a, x, x); b = fma(b, x, x); c = fma(c, x, x); d = fma(d, x, x);
                 e = fma(e, x, x); f = fma(f, x, x); g = fma(g, x, x); h = fma(h, x, x);
             }
         }
         out[id.x] = ((a + b) + (c + d)) + ((e + f) + (g + h));
     }",
    "main",
    &[Access::ReadWrite],
);

/// FLOP/s of multiply-adds in registers.
pub fn measure(gpu: &Gpu) -> Result<f64> {
    let invocations = if gpu.adapter().is_software() { 1 << 10 } else { 1 << 18 };
    let steps = 4000_u32;
    let out = Tensor::zeros(gpu, &[4 * invocations])?;
    let seconds = fastest(gpu, || {
        gpu.launch(&Launch {
            kernel: &MULTIPLY_ADD,
            constants: &[],
            buffers: &[out.slice()],
            arguments: &steps.to_le_bytes(),
            workgroups: grid(invocations as u64, 64),
            iterations: u64::from(steps),
            work: 0,
        })
    })?;
    let operations = invocations as f64 * f64::from(steps) * 8.0 * 8.0 * 4.0 * 2.0;
    Ok(operations / seconds)
}
