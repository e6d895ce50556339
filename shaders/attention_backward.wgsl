// With p = exp(scale·q·kᵀ - lse) recomputed and ds = p·(dy·vᵀ - delta)·scale:
//   QUERY_SIDE:  dq = ds·k, each lane owns queries and walks the keys;
//   otherwise:   dk = dsᵀ·q, dv = pᵀ·dy, each lane owns keys and walks the queries of all heads of its group.
// With CONTINUED the latter begins with the sums of an earlier dispatch, for other queries or heads, instead of zeros.
// The side that is owned is called near, the side that is walked far; on either, `first` is q or k and `second` dy or v.

@group(0) @binding(0) var<storage, read> q: array<Element>;
@group(0) @binding(1) var<storage, read> k: array<Element>;
@group(0) @binding(2) var<storage, read> v: array<Element>;
@group(0) @binding(3) var<storage, read> dy: array<Element>;
@group(0) @binding(4) var<storage, read> lse: array<f32>;
@group(0) @binding(5) var<storage, read> delta: array<f32>;
@group(0) @binding(6) var<storage, read_write> dfirst: array<Element>;
@if QUERY_SIDE {} @else {
    @group(0) @binding(7) var<storage, read_write> dsecond: array<Element>;
}

@if VECTORS {
    fn load_query(row: u32, d: u32) -> vec4f { return q[(args.query_start + row) / 4u + d]; }
    fn load_dy(row: u32, d: u32) -> vec4f { return dy[(args.query_start + row) / 4u + d]; }
    fn load_key(row: u32, d: u32) -> vec4f { return k[(args.key_start + row) / 4u + d]; }
    fn load_value(row: u32, d: u32) -> vec4f { return v[(args.key_start + row) / 4u + d]; }
    fn store_first(row: u32, d: u32, value: vec4f) { dfirst[(near_start() + row) / 4u + d] = value; }
    @if CONTINUED {
        fn load_first(row: u32, d: u32) -> vec4f { return dfirst[(near_start() + row) / 4u + d]; }
        fn load_second(row: u32, d: u32) -> vec4f { return dsecond[(near_start() + row) / 4u + d]; }
    }
    @if QUERY_SIDE {} @else {
        fn store_second(row: u32, d: u32, value: vec4f) { dsecond[(near_start() + row) / 4u + d] = value; }
    }
} @else {
    fn load_query(row: u32, d: u32) -> vec4f {
        var value = vec4f();
        @unroll for (var i = 0u; i < 4; i++) { if (4u * d + i < DIM) { value[i] = q[args.query_start + row + 4u * d + i]; } }
        return value;
    }
    fn load_dy(row: u32, d: u32) -> vec4f {
        var value = vec4f();
        @unroll for (var i = 0u; i < 4; i++) { if (4u * d + i < DIM) { value[i] = dy[args.query_start + row + 4u * d + i]; } }
        return value;
    }
    fn load_key(row: u32, d: u32) -> vec4f {
        var value = vec4f();
        @unroll for (var i = 0u; i < 4; i++) { if (4u * d + i < DIM) { value[i] = k[args.key_start + row + 4u * d + i]; } }
        return value;
    }
    fn load_value(row: u32, d: u32) -> vec4f {
        var value = vec4f();
        @unroll for (var i = 0u; i < 4; i++) { if (4u * d + i < DIM) { value[i] = v[args.key_start + row + 4u * d + i]; } }
        return value;
    }
    @if CONTINUED {
        fn load_first(row: u32, d: u32) -> vec4f {
            var value = vec4f();
            @unroll for (var i = 0u; i < 4; i++) { if (4u * d + i < DIM) { value[i] = dfirst[near_start() + row + 4u * d + i]; } }
            return value;
        }
        fn load_second(row: u32, d: u32) -> vec4f {
            var value = vec4f();
            @unroll for (var i = 0u; i < 4; i++) { if (4u * d + i < DIM) { value[i] = dsecond[near_start() + row + 4u * d + i]; } }
            return value;
        }
    }
    fn store_first(row: u32, d: u32, value: vec4f) {
        @unroll for (var i = 0u; i < 4; i++) { if (4u * d + i < DIM) { dfirst[near_start() + row + 4u * d + i] = value[i]; } }
    }
    @if QUERY_SIDE {} @else {
        fn store_second(row: u32, d: u32, value: vec4f) {
            @unroll for (var i = 0u; i < 4; i++) { if (4u * d + i < DIM) { dsecond[near_start() + row + 4u * d + i] = value[i]; } }
        }
    }
}

@if QUERY_SIDE {
    fn near_start() -> u32 { return args.query_start; }
    fn near_count() -> u32 { return args.queries; }
    fn far_count() -> u32 { return args.keys; }
    fn near_heads() -> u32 { return args.heads; }
    fn far_heads() -> u32 { return args.heads / args.group; }
    fn load_near_first(row: u32, d: u32) -> vec4f { return load_query(row, d); }
    fn load_near_second(row: u32, d: u32) -> vec4f { return load_dy(row, d); }
    fn load_far_first(row: u32, d: u32) -> vec4f { return load_key(row, d); }
    fn load_far_second(row: u32, d: u32) -> vec4f { return load_value(row, d); }
} @else {
    fn near_start() -> u32 { return args.key_start; }
    fn near_count() -> u32 { return args.keys; }
    fn far_count() -> u32 { return args.queries; }
    fn near_heads() -> u32 { return args.heads / args.group; }
    fn far_heads() -> u32 { return args.heads; }
    fn load_near_first(row: u32, d: u32) -> vec4f { return load_key(row, d); }
    fn load_near_second(row: u32, d: u32) -> vec4f { return load_value(row, d); }
    fn load_far_first(row: u32, d: u32) -> vec4f { return load_query(row, d); }
    fn load_far_second(row: u32, d: u32) -> vec4f { return load_dy(row, d); }
}

// Fetches the far rows first .. first + BLOCK of one head.
fn fetch(first: u32, batch: u32, head: u32, lane: u32) {
    @if ONE_SUBGROUP {
        @unroll for (var p = 0u; p < PARTS; p++) {
            let element = p * LANES + lane;
            let row = head_row(batch, far_count(), first + element / QUARTERS, far_heads(), head);
            first_part[p] = load_far_first(row, element % QUARTERS);
            second_part[p] = load_far_second(row, element % QUARTERS);
        }
    } @else {
        workgroupBarrier();
        for (var element = lane; element < TOTAL; element += LANES) {
            let row = head_row(batch, far_count(), first + element / QUARTERS, far_heads(), head);
            first_tile[element] = load_far_first(row, element % QUARTERS);
            second_tile[element] = load_far_second(row, element % QUARTERS);
        }
        workgroupBarrier();
    }
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
    let head = group.y;
    let batch = group.z;
    let first = (args.first_group + group.x) * LANES * OWN;
    var near_first: array<vec4f, OWN * QUARTERS>;
    var near_second: array<vec4f, OWN * QUARTERS>;
    var sum_first: array<vec4f, OWN * QUARTERS>;
    @if QUERY_SIDE {
        var own_lse: array<f32, OWN>;
        var own_delta: array<f32, OWN>;
    } @else {
        var sum_second: array<vec4f, OWN * QUARTERS>;
    }
    @unroll for (var i = 0u; i < OWN; i++) {
        let near = first + i * LANES + lane;
        let row = head_row(batch, near_count(), near, near_heads(), head);
        @unroll for (var d = 0u; d < QUARTERS; d++) {
            near_first[i * QUARTERS + d] = load_near_first(row, d);
            near_second[i * QUARTERS + d] = load_near_second(row, d);
            @if CONTINUED {
                sum_first[i * QUARTERS + d] = load_first(row, d);
                sum_second[i * QUARTERS + d] = load_second(row, d);
            } @else {
                sum_first[i * QUARTERS + d] = vec4f();
                @if QUERY_SIDE {} @else { sum_second[i * QUARTERS + d] = vec4f(); }
            }
        }
        @if QUERY_SIDE {
            own_lse[i] = lse[args.statistic_start + row / DIM];
            own_delta[i] = delta[args.statistic_start + row / DIM];
        }
    }
    @if QUERY_SIDE {
        let far_head_first = head / args.group;
        let far_head_end = far_head_first + 1u;
        let begin = 0u;
        let end = min(args.keys, first + LANES * OWN + args.offset);
    } @else {
        let far_head_first = head * args.group + args.group_first;
        let far_head_end = head * args.group + args.group_end;
        let begin = max(first, args.offset) - args.offset;
        let end = args.queries;
    }
    for (var far_head = far_head_first; far_head < far_head_end; far_head++) {
        for (var far = begin; far < end; far += BLOCK) {
            fetch(far, batch, far_head, lane);
            @unroll if ONE_SUBGROUP for (var j = 0u; j < BLOCK; j++) {
                @if QUERY_SIDE {} @else {
                    let statistic = args.statistic_start + head_row(batch, args.queries, far + j, args.heads, far_head) / DIM;
                    let far_lse = lse[statistic];
                    let far_delta = delta[statistic];
                }
                var score: array<f32, OWN>;
                var dscore: array<f32, OWN>;
                @unroll for (var i = 0u; i < OWN; i++) { score[i] = 0.0; dscore[i] = 0.0; }
                @unroll for (var d = 0u; d < QUARTERS; d++) {
                    @if ONE_SUBGROUP {
                        let x = subgroupShuffle(first_part[(j * QUARTERS + d) / LANES], (j * QUARTERS + d) % LANES);
                        let z = subgroupShuffle(second_part[(j * QUARTERS + d) / LANES], (j * QUARTERS + d) % LANES);
                    } @else {
                        let x = first_tile[j * QUARTERS + d];
                        let z = second_tile[j * QUARTERS + d];
                    }
                    @unroll for (var i = 0u; i < OWN; i++) {
                        let a = near_first[i * QUARTERS + d];
                        let b = near_second[i * QUARTERS + d];
                        score[i] = fma(x.x, a.x, fma(x.y, a.y, fma(x.z, a.z, fma(x.w, a.w, score[i]))));
                        dscore[i] = fma(z.x, b.x, fma(z.y, b.y, fma(z.z, b.z, fma(z.w, b.w, dscore[i]))));
                    }
                }
                @unroll for (var i = 0u; i < OWN; i++) {
                    let near = first + i * LANES + lane;
                    @if QUERY_SIDE {
                        let seen = far + j <= near + args.offset && far + j < args.keys;
                        let p = select(0.0, exp(args.scale * score[i] - own_lse[i]), seen);
                        dscore[i] = p * (dscore[i] - own_delta[i]) * args.scale;
                    } @else {
                        let seen = near <= far + j + args.offset && far + j < args.queries;
                        let p = select(0.0, exp(args.scale * score[i] - far_lse), seen);
                        dscore[i] = p * (dscore[i] - far_delta) * args.scale;
                        score[i] = p;
                    }
                }
                @unroll for (var d = 0u; d < QUARTERS; d++) {
                    @if ONE_SUBGROUP {
                        let x = subgroupShuffle(first_part[(j * QUARTERS + d) / LANES], (j * QUARTERS + d) % LANES);
                    } @else {
                        let x = first_tile[j * QUARTERS + d];
                    }
                    @unroll for (var i = 0u; i < OWN; i++) {
                        sum_first[i * QUARTERS + d] = fma(vec4f(dscore[i]), x, sum_first[i * QUARTERS + d]);
                    }
                    @if QUERY_SIDE {} @else {
                        @if ONE_SUBGROUP {
                            let z = subgroupShuffle(second_part[(j * QUARTERS + d) / LANES], (j * QUARTERS + d) % LANES);
                        } @else {
                            let z = second_tile[j * QUARTERS + d];
                        }
                        @unroll for (var i = 0u; i < OWN; i++) {
                            sum_second[i * QUARTERS + d] = fma(vec4f(score[i]), z, sum_second[i * QUARTERS + d]);
                        }
                    }
                }
            }
        }
    }
    @unroll for (var i = 0u; i < OWN; i++) {
        let near = first + i * LANES + lane;
        if (near < near_count()) {
            let row = head_row(batch, near_count(), near, near_heads(), head);
            @unroll for (var d = 0u; d < QUARTERS; d++) {
                store_first(row, d, sum_first[i * QUARTERS + d]);
                @if QUERY_SIDE {} @else { store_second(row, d, sum_second[i * QUARTERS + d]); }
            }
        }
    }
}
