// The elementwise parts of a Muon step, before and after the Newton–Schulz iteration.
//   momentum:   m ← μ·m + g,  d = g + μ·m,  where g is scaled by clip[1]
//   normalize:  d ← d / (‖d‖ + 1e-7), for matrices of `numel` elements, each with its square of the norm
//   update:     w ← w(1 - lr·weight_decay) - lr·lr_scale·x

struct Args { count: u32, first: u32, momentum: f32, lr: f32, weight_decay: f32, lr_scale: f32, numel: u32 }

var<immediate> args: Args;

@group(0) @binding(0) var<storage, read> g: array<vec4f>;
@group(0) @binding(1) var<storage, read> clip: array<f32>;
@group(0) @binding(2) var<storage, read_write> m: array<vec4f>;
@group(0) @binding(3) var<storage, read_write> d: array<vec4f>;

@group(0) @binding(0) var<storage, read> squares: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4f>;

@group(0) @binding(0) var<storage, read> x: array<vec4f>;
@group(0) @binding(1) var<storage, read_write> w: array<vec4f>;

@compute @workgroup_size(64)
fn momentum(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) local: u32) {
    let i = linear_index(group, groups, local, 64u);
    if (i * 4u >= args.count) { return; }
    let gradient = g[i] * clip[1];
    let next = args.momentum * m[i] + gradient;
    m[i] = next;
    d[i] = gradient + args.momentum * next;
}

@compute @workgroup_size(64)
fn normalize(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) local: u32) {
    let i = linear_index(group, groups, local, 64u);
    if (i * 4u >= args.count) { return; }
    y[i] *= 1.0 / (sqrt(squares[(args.first + i * 4u) / args.numel]) + 1e-7);
}

@compute @workgroup_size(64)
fn update(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) local: u32) {
    let i = linear_index(group, groups, local, 64u);
    if (i * 4u >= args.count) { return; }
    w[i] = w[i] * (1.0 - args.lr * args.weight_decay) - args.lr * args.lr_scale * x[i];
}
