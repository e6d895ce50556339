// delta = Σ o·dy per query and head: what the softmax's backward subtracts. One query and head per invocation.

@group(0) @binding(0) var<storage, read> o: array<Element>;
@group(0) @binding(1) var<storage, read> dy: array<Element>;
@group(0) @binding(2) var<storage, read_write> delta: array<f32>;

struct Args { count: u32, first: u32, dim: u32 }

var<immediate> args: Args;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) local: u32) {
    let i = linear_index(group, groups, local, 64u);
    if (i >= args.count) { return; }
    let width = args.dim / WIDTH;
    var sum = 0.0;
    for (var d = 0u; d < width; d++) { sum += total(o[i * width + d] * dy[i * width + d]); }
    delta[i] = sum;
}
