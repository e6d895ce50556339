// y[i] = x[i] rounded to f16, ties to even: for products that read an operand many times.
//
// Constants: F16_TERMS = 1, HARDWARE_F16.

enable f16;

struct Args { count: u32 } // vec4s

var<immediate> args: Args;

@group(0) @binding(0) var<storage, read> x: array<vec4f>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f16>>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) local: u32) {
    let i = linear_index(group, groups, local, 256u);
    if (i < args.count) { y[i] = half(x[i]); }
}
