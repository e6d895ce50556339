// One Adam step on a whole parameter, in place. g is scaled by clip[1], the factor of the global norm clipping.
//   m ← m + (1 - β1)(g - m),  v ← v + (1 - β2)(g² - v),  c1 = 1 - β1ᵗ,  c2 = 1 - β2ᵗ
//   AdamW:      w ← w(1 - lr·decay) - lr·(m/c1) / (√(v/c2) + eps)
//   AUXILIARY:  w ← w(1 - lr·decay) - lr·(√c2/c1)·m / (√v + eps)

struct Args {
    count: u32, first: u32,
    rate: f32, decay: f32, beta1: f32, beta2: f32, eps: f32, correction1: f32, correction2: f32,
}

var<immediate> args: Args;

@group(0) @binding(0) var<storage, read> g: array<vec4f>;
@group(0) @binding(1) var<storage, read> clip: array<f32>;
@group(0) @binding(2) var<storage, read_write> w: array<vec4f>;
@group(0) @binding(3) var<storage, read_write> m: array<vec4f>;
@group(0) @binding(4) var<storage, read_write> v: array<vec4f>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) local: u32) {
    let i = linear_index(group, groups, local, 64u);
    if (i * 4u >= args.count) { return; }
    let gradient = g[i] * clip[1];
    let first = m[i] + (1.0 - args.beta1) * (gradient - m[i]);
    let second = v[i] + (1.0 - args.beta2) * (gradient * gradient - v[i]);
    m[i] = first;
    v[i] = second;
    var step = vec4f();
    if (AUXILIARY == 1u) {
        step = sqrt(args.correction2) / args.correction1 * first / (sqrt(second) + args.eps);
    } else {
        step = first / args.correction1 / (sqrt(second / args.correction2) + args.eps);
    }
    w[i] = w[i] * (1.0 - args.rate * args.decay) - args.rate * step;
}
