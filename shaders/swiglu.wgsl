// y = silu(gate)·up, silu(g) = g·σ(g).

struct Args { count: u32, first: u32 }

var<immediate> args: Args;

@group(0) @binding(0) var<storage, read> gate: array<vec4f>;
@group(0) @binding(1) var<storage, read> up: array<vec4f>;
@group(0) @binding(2) var<storage, read> dy: array<vec4f>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4f>;
@group(0) @binding(3) var<storage, read_write> dgate: array<vec4f>;
@group(0) @binding(4) var<storage, read_write> dup: array<vec4f>;

@compute @workgroup_size(64)
fn forward(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) local: u32) {
    let i = linear_index(group, groups, local, 64u);
    if (i * 4u >= args.count) { return; }
    let g = gate[i];
    y[i] = g / (1.0 + exp(-g)) * up[i];
}

@compute @workgroup_size(64)
fn backward(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) local: u32) {
    let i = linear_index(group, groups, local, 64u);
    if (i * 4u >= args.count) { return; }
    let g = gate[i];
    let s = 1.0 / (1.0 + exp(-g));
    let d = dy[i];
    dgate[i] = d * up[i] * s * (1.0 + g * (1.0 - s));
    dup[i] = d * g * s;
}
