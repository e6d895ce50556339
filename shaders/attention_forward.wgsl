// o = softmax(scale·q·kᵀ)·v with an online softmax; keeps lse = log Σ exp(scale·q·kᵀ) per query and head.

@group(0) @binding(0) var<storage, read> q: array<Element>;
@group(0) @binding(1) var<storage, read> k: array<Element>;
@group(0) @binding(2) var<storage, read> v: array<Element>;
@group(0) @binding(3) var<storage, read_write> o: array<Element>;
@group(0) @binding(4) var<storage, read_write> lse: array<f32>;

@if VECTORS {
    fn load_q(row: u32, d: u32) -> vec4f { return q[(args.query_start + row) / 4u + d]; }
    fn load_k(row: u32, d: u32) -> vec4f { return k[(args.key_start + row) / 4u + d]; }
    fn load_v(row: u32, d: u32) -> vec4f { return v[(args.key_start + row) / 4u + d]; }
    fn store_o(row: u32, d: u32, value: vec4f) { o[(args.query_start + row) / 4u + d] = value; }
} @else {
    fn load_q(row: u32, d: u32) -> vec4f {
        var value = vec4f();
        @unroll for (var i = 0u; i < 4; i++) { if (4u * d + i < DIM) { value[i] = q[args.query_start + row + 4u * d + i]; } }
        return value;
    }
    fn load_k(row: u32, d: u32) -> vec4f {
        var value = vec4f();
        @unroll for (var i = 0u; i < 4; i++) { if (4u * d + i < DIM) { value[i] = k[args.key_start + row + 4u * d + i]; } }
        return value;
    }
    fn load_v(row: u32, d: u32) -> vec4f {
        var value = vec4f();
        @unroll for (var i = 0u; i < 4; i++) { if (4u * d + i < DIM) { value[i] = v[args.key_start + row + 4u * d + i]; } }
        return value;
    }
    fn store_o(row: u32, d: u32, value: vec4f) {
        @unroll for (var i = 0u; i < 4; i++) { if (4u * d + i < DIM) { o[args.query_start + row + 4u * d + i] = value[i]; } }
    }
}

// Fetches the keys and values first .. first + BLOCK.
fn fetch(first: u32, batch: u32, heads: u32, head: u32, lane: u32) {
    @if ONE_SUBGROUP {
        @unroll for (var p = 0u; p < PARTS; p++) {
            let element = p * LANES + lane;
            let row = head_row(batch, args.keys, first + element / QUARTERS, heads, head);
            first_part[p] = load_k(row, element % QUARTERS);
            second_part[p] = load_v(row, element % QUARTERS);
        }
    } @else {
        workgroupBarrier();
        for (var element = lane; element < TOTAL; element += LANES) {
            let row = head_row(batch, args.keys, first + element / QUARTERS, heads, head);
            first_tile[element] = load_k(row, element % QUARTERS);
            second_tile[element] = load_v(row, element % QUARTERS);
        }
        workgroupBarrier();
    }
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
    let head = group.y;
    let batch = group.z;
    let kv_heads = args.heads / args.group;
    let first = (args.first_group + group.x) * LANES * OWN;
    var own_q: array<vec4f, OWN * QUARTERS>;
    var sum: array<vec4f, OWN * QUARTERS>;
    var top: array<f32, OWN>;
    var mass: array<f32, OWN>;
    @unroll for (var i = 0u; i < OWN; i++) {
        let row = head_row(batch, args.queries, first + i * LANES + lane, args.heads, head);
        @unroll for (var d = 0u; d < QUARTERS; d++) {
            own_q[i * QUARTERS + d] = args.scale * load_q(row, d);
            sum[i * QUARTERS + d] = vec4f();
        }
        top[i] = MASKED;
        mass[i] = 0.0;
    }
    let end = min(args.keys, first + LANES * OWN + args.offset);
    for (var key = 0u; key < end; key += BLOCK) {
        fetch(key, batch, kv_heads, head / args.group, lane);
        var score: array<f32, OWN * BLOCK>;
        @unroll for (var j = 0u; j < BLOCK; j++) {
            @unroll for (var i = 0u; i < OWN; i++) { score[i * BLOCK + j] = 0.0; }
            @unroll for (var d = 0u; d < QUARTERS; d++) {
                @if ONE_SUBGROUP {
                    let x = subgroupShuffle(first_part[(j * QUARTERS + d) / LANES], (j * QUARTERS + d) % LANES);
                } @else {
                    let x = first_tile[j * QUARTERS + d];
                }
                @unroll for (var i = 0u; i < OWN; i++) {
                    let y = own_q[i * QUARTERS + d];
                    score[i * BLOCK + j] = fma(x.x, y.x, fma(x.y, y.y, fma(x.z, y.z, fma(x.w, y.w, score[i * BLOCK + j]))));
                }
            }
        }
        @unroll for (var i = 0u; i < OWN; i++) {
            let last = first + i * LANES + lane + args.offset;
            var highest = top[i];
            @unroll for (var j = 0u; j < BLOCK; j++) {
                score[i * BLOCK + j] = select(score[i * BLOCK + j], MASKED, key + j > last || key + j >= args.keys);
                highest = max(highest, score[i * BLOCK + j]);
            }
            let shrink = exp(top[i] - highest);
            top[i] = highest;
            mass[i] *= shrink;
            @unroll for (var d = 0u; d < QUARTERS; d++) { sum[i * QUARTERS + d] *= shrink; }
            @unroll for (var j = 0u; j < BLOCK; j++) {
                score[i * BLOCK + j] = exp(score[i * BLOCK + j] - highest);
                mass[i] += score[i * BLOCK + j];
            }
        }
        @unroll for (var j = 0u; j < BLOCK; j++) {
            @unroll for (var d = 0u; d < QUARTERS; d++) {
                @if ONE_SUBGROUP {
                    let x = subgroupShuffle(second_part[(j * QUARTERS + d) / LANES], (j * QUARTERS + d) % LANES);
                } @else {
                    let x = second_tile[j * QUARTERS + d];
                }
                @unroll for (var i = 0u; i < OWN; i++) {
                    sum[i * QUARTERS + d] = fma(vec4f(score[i * BLOCK + j]), x, sum[i * QUARTERS + d]);
                }
            }
        }
    }
    @unroll for (var i = 0u; i < OWN; i++) {
        let query = first + i * LANES + lane;
        if (query < args.queries) {
            let row = head_row(batch, args.queries, query, args.heads, head);
            @unroll for (var d = 0u; d < QUARTERS; d++) { store_o(row, d, sum[i * QUARTERS + d] / mass[i]); }
            lse[args.statistic_start + (batch * args.queries + query) * args.heads + head] = top[i] + log(mass[i]);
        }
    }
}
