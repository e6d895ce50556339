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
