// Nothing but multiply-adds in registers: eight independent chains of vec4s, bound by neither latency nor memory. Every chain is
// a ← ½·a + ½, which ends at 1 exactly, and out = 8; the arguments keep a compiler from knowing that.

@group(0) @binding(0) var<storage, read_write> out: array<vec4f>;

struct Args {
    count: u32, // values: four per invocation
    steps: u32,
    half: f32,
}
var<immediate> args: Args;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let index = linear_index(group, groups, local, 64u);
    if (index >= args.count / 4u) { return; }
    let x = vec4f(args.half);
    var a = vec4f(f32(index) * 1e-9);
    var b = a + 0.1; var c = a + 0.2; var d = a + 0.3; var e = a + 0.4; var f = a + 0.5; var g = a + 0.6; var h = a + 0.7;
    for (var i = 0u; i < args.steps; i++) {
        @unroll for (var j = 0u; j < 8; j++) {
            a = fma(a, x, x); b = fma(b, x, x); c = fma(c, x, x); d = fma(d, x, x);
            e = fma(e, x, x); f = fma(f, x, x); g = fma(g, x, x); h = fma(h, x, x);
        }
    }
    out[index] = ((a + b) + (c + d)) + ((e + f) + (g + h));
}
