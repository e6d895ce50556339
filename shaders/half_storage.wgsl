// Conversion to f16, for kernels that store f16; after half.wgsl.

@if HARDWARE_F16 {
    fn half(x: vec4f) -> vec4<f16> { return vec4<f16>(x); }
} @else {
    // Exact in any rounding mode, because the value is rounded already.
    fn half(x: vec4f) -> vec4<f16> { return vec4<f16>(to_half(x)); }
}
