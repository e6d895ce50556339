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
