// out = α·a + β·b + δ·I for a batch of square matrices; with TRANSPOSED b is transposed. One element per invocation.

struct Args { size: u32, matrices: u32, alpha: f32, beta: f32, delta: f32 }

var<immediate> args: Args;

@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read> b: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) local: u32) {
    let i = linear_index(group, groups, local, 64u);
    let n = args.size;
    if (i >= args.matrices * n * n) { return; }
    let row = i / n % n;
    let column = i % n;
    var other = i;
    if (TRANSPOSED == 1u) { other = i - row * n - column + column * n + row; }
    var value = args.alpha * a[i] + args.beta * b[other];
    if (row == column) { value += args.delta; }
    out[i] = value;
}
