// Attention of one query per sequence over a cache: o = softmax(scale·q·kᵀ)·v. A workgroup has a sequence and a head. In turn, its
// lanes own a key each, for the scores of LANES keys at a time, and a few columns each, for the sum of their values.
//
// q, o: [batch, heads·DIM]; k, v: [batch·key_stride, heads/group·DIM], of which the first `keys` rows per sequence are seen.
//
// Constants: DIM, QUARTERS = ⌈DIM/4⌉, PARTS = ⌈QUARTERS/WORKGROUP⌉, WORKGROUP, ONE_SUBGROUP, VECTORS.

struct Args { keys: u32, key_stride: u32, heads: u32, group: u32, scale: f32 }

var<immediate> args: Args;

@group(0) @binding(0) var<storage, read> q: array<Element>;
@group(0) @binding(1) var<storage, read> k: array<Element>;
@group(0) @binding(2) var<storage, read> v: array<Element>;
@group(0) @binding(3) var<storage, read_write> o: array<Element>;

const MASKED: f32 = -1e30;

@if VECTORS {
    fn load_q(row: u32, d: u32) -> vec4f { return q[row / 4u + d]; }
    fn load_k(row: u32, d: u32) -> vec4f { return k[row / 4u + d]; }
    fn load_v(row: u32, d: u32) -> vec4f { return v[row / 4u + d]; }
    fn store_o(row: u32, d: u32, value: vec4f) { o[row / 4u + d] = value; }
} @else {
    fn load_q(row: u32, d: u32) -> vec4f {
        var value = vec4f();
        @unroll for (var i = 0u; i < 4; i++) { if (4u * d + i < DIM) { value[i] = q[row + 4u * d + i]; } }
        return value;
    }
    fn load_k(row: u32, d: u32) -> vec4f {
        var value = vec4f();
        @unroll for (var i = 0u; i < 4; i++) { if (4u * d + i < DIM) { value[i] = k[row + 4u * d + i]; } }
        return value;
    }
    fn load_v(row: u32, d: u32) -> vec4f {
        var value = vec4f();
        @unroll for (var i = 0u; i < 4; i++) { if (4u * d + i < DIM) { value[i] = v[row + 4u * d + i]; } }
        return value;
    }
    fn store_o(row: u32, d: u32, value: vec4f) {
        @unroll for (var i = 0u; i < 4; i++) { if (4u * d + i < DIM) { o[row + 4u * d + i] = value[i]; } }
    }
}

// The query, times the scale.
@if ONE_SUBGROUP {
} @else {
    var<workgroup> query: array<vec4f, PARTS * WORKGROUP>;
    var<workgroup> weights: array<f32, WORKGROUP>;
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
    let query_row = (group.y * args.heads + group.x) * DIM;
    let first_row = group.y * args.key_stride;
    let kv_heads = args.heads / args.group;
    let kv_head = group.x / args.group;
    @if ONE_SUBGROUP {
        var query: array<vec4f, QUARTERS>;
        @unroll for (var d = 0u; d < QUARTERS; d++) { query[d] = args.scale * load_q(query_row, d); }
    } @else {
        // A wide head would take all registers of a lane.
        @unroll for (var p = 0u; p < PARTS; p++) {
            query[p * WORKGROUP + lane] = args.scale * load_q(query_row, min(p * WORKGROUP + lane, QUARTERS - 1u));
        }
        workgroupBarrier();
    }
    var sum: array<vec4f, PARTS>;
    @unroll for (var p = 0u; p < PARTS; p++) { sum[p] = vec4f(); }
    var top = MASKED;
    var mass = 0.0;
    for (var first = 0u; first < args.keys; first += WORKGROUP) {
        let own = ((first_row + min(first + lane, args.keys - 1u)) * kv_heads + kv_head) * DIM;
        var score = 0.0;
        @unroll for (var d = 0u; d < QUARTERS; d++) {
            let x = load_k(own, d);
            let y = query[d];
            score = fma(x.x, y.x, fma(x.y, y.y, fma(x.z, y.z, fma(x.w, y.w, score))));
        }
        score = select(score, MASKED, first + lane >= args.keys);
        let highest = max(top, workgroup_max(score, lane));
        let shrink = exp(top - highest);
        let weight = exp(score - highest);
        top = highest;
        mass = fma(mass, shrink, weight);
        @unroll for (var p = 0u; p < PARTS; p++) { sum[p] *= shrink; }
        @if ONE_SUBGROUP {
            @unroll for (var j = 0u; j < WORKGROUP; j++) {
                let row = ((first_row + min(first + j, args.keys - 1u)) * kv_heads + kv_head) * DIM;
                let share = vec4f(subgroupShuffle(weight, j));
                @unroll for (var p = 0u; p < PARTS; p++) {
                    sum[p] = fma(share, load_v(row, min(p * WORKGROUP + lane, QUARTERS - 1u)), sum[p]);
                }
            }
        } @else {
            weights[lane] = weight;
            workgroupBarrier();
            let count = min(WORKGROUP, args.keys - first);
            for (var j = 0u; j < count; j++) {
                let row = ((first_row + first + j) * kv_heads + kv_head) * DIM;
                let share = vec4f(weights[j]);
                @unroll for (var p = 0u; p < PARTS; p++) {
                    sum[p] = fma(share, load_v(row, min(p * WORKGROUP + lane, QUARTERS - 1u)), sum[p]);
                }
            }
            workgroupBarrier();
        }
    }
    let total = workgroup_sum(mass, lane);
    @unroll for (var p = 0u; p < PARTS; p++) {
        let quarter = p * WORKGROUP + lane;
        if (quarter < QUARTERS) { store_o(query_row, quarter, sum[p] / total); }
    }
}
