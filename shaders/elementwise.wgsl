// Elementwise maps in vec4. Buffers are padded, so the last vec4 may extend beyond the last element.

struct Args { count: u32, first: u32, alpha: f32, beta: f32 }

var<immediate> args: Args;

@group(0) @binding(0) var<storage, read> a: array<vec4f>;
@group(0) @binding(1) var<storage, read> b: array<vec4f>;
@group(0) @binding(1) var<storage, read> factor: array<f32>;
@group(0) @binding(1) var<storage, read_write> out_of_one: array<vec4f>;
@group(0) @binding(2) var<storage, read_write> out_of_two: array<vec4f>;

struct Invocation {
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
}

fn index(at: Invocation) -> u32 { return linear_index(at.group, at.groups, at.local, 64u); }

fn is_outside(i: u32) -> bool { return i * 4u >= args.count; }

@compute @workgroup_size(64)
fn weighted_sum(at: Invocation) { // α·a + β·b
    let i = index(at);
    if (is_outside(i)) { return; }
    out_of_two[i] = args.alpha * a[i] + args.beta * b[i];
}

@compute @workgroup_size(64)
fn product(at: Invocation) { // a·b
    let i = index(at);
    if (is_outside(i)) { return; }
    out_of_two[i] = a[i] * b[i];
}

@compute @workgroup_size(64)
fn scaled(at: Invocation) { // α·a
    let i = index(at);
    if (is_outside(i)) { return; }
    out_of_one[i] = args.alpha * a[i];
}

@compute @workgroup_size(64)
fn scaled_by(at: Invocation) { // α·factor[0]·a
    let i = index(at);
    if (is_outside(i)) { return; }
    out_of_two[i] = args.alpha * factor[0] * a[i];
}

@compute @workgroup_size(64)
fn accumulate(at: Invocation) { // out += a
    let i = index(at);
    if (is_outside(i)) { return; }
    out_of_one[i] += a[i];
}

@compute @workgroup_size(64)
fn accumulate_scaled(at: Invocation) { // out += factor[0]·a, with the product rounded first, as in `scaled_by`
    let i = index(at);
    if (is_outside(i)) { return; }
    out_of_two[i] = fma(vec4f(1.0), out_of_two[i], factor[0] * a[i]);
}

@compute @workgroup_size(64)
fn filled_by(at: Invocation) { // α·a[0] everywhere
    let i = index(at);
    if (is_outside(i)) { return; }
    out_of_one[i] = vec4f(args.alpha * a[0].x);
}
