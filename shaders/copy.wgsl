// y[y_offset + i·y_strides] = x[x_offset + i·x_strides] for every index i below sizes: transposes, slices, concatenations.

struct Args { sizes: vec4u, x_strides: vec4u, y_strides: vec4u, x_offset: u32, y_offset: u32 }

var<immediate> args: Args;

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) local: u32) {
    let i = linear_index(group, groups, local, 64u);
    let s = args.sizes;
    if (i >= s.x * s.y * s.z * s.w) { return; }
    let at = vec4u(i / (s.y * s.z * s.w), i / (s.z * s.w) % s.y, i / s.w % s.z, i % s.w);
    let read = at * args.x_strides;
    let written = at * args.y_strides;
    y[args.y_offset + written.x + written.y + written.z + written.w] = x[args.x_offset + read.x + read.y + read.z + read.w];
}
