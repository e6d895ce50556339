// One Adam step on JOINED parameters in one dispatch, in place. g is scaled by clip[1], the clipping factor of the global norm.
//   m ← m + (1 - β1)(g - m),  v ← v + (1 - β2)(g² - v),  c1 = 1 - β1ᵗ,  c2 = 1 - β2ᵗ
//   (1 - β is computed on the host in f64: in f32, 1 - 0.999 has a relative error of 1e-5)
//   AdamW:      w ← w(1 - lr·weight_decay) - lr·(m/c1) / (√(v/c2) + eps)
//   AUXILIARY:  w ← w(1 - lr·weight_decay) - lr·(√c2/c1)·m / (√v + eps)

struct Args {
    lr: f32, weight1: f32, weight2: f32, eps: f32, correction1: f32, correction2: f32,
    // Per parameter: the invocation of its first vec4, and its decay. Not arrays, which DX12 would pad.
    @declare for (var k = 0u; k < JOINED; k++) { start$k: u32, weight_decay$k: f32, }
}

var<immediate> args: Args;

@group(0) @binding(0) var<storage, read> clip: array<f32>;
@declare for (var k = 0u; k < JOINED; k++) {
    @group(0) @binding(1u + 4u * k) var<storage, read> g$k: array<vec4f>;
    @group(0) @binding(2u + 4u * k) var<storage, read_write> w$k: array<vec4f>;
    @group(0) @binding(3u + 4u * k) var<storage, read_write> m$k: array<vec4f>;
    @group(0) @binding(4u + 4u * k) var<storage, read_write> v$k: array<vec4f>;
}

struct Values { w: vec4f, m: vec4f, v: vec4f }

fn updated(old: Values, g: vec4f, weight_decay: f32) -> Values {
    let gradient = g * clip[1];
    let m = old.m + args.weight1 * (gradient - old.m);
    let v = old.v + args.weight2 * (gradient * gradient - old.v);
    var step = vec4f();
    if (AUXILIARY == 1u) {
        step = sqrt(args.correction2) / args.correction1 * m / (sqrt(v) + args.eps);
    } else {
        step = m / args.correction1 / (sqrt(v / args.correction2) + args.eps);
    }
    return Values(old.w * (1.0 - args.lr * weight_decay) - args.lr * step, m, v);
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) local: u32) {
    let invocation = linear_index(group, groups, local, 64u);
    @unroll for (var k = 0u; k < JOINED; k++) {
        let i = invocation - args.start$k;
        // Wraps around before the parameter's start.
        if (i < arrayLength(&w$k)) {
            let next = updated(Values(w$k[i], m$k[i], v$k[i]), g$k[i], args.weight_decay$k);
            w$k[i] = next.w;
            m$k[i] = next.m;
            v$k[i] = next.v;
        }
    }
}
