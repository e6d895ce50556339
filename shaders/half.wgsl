// Rounding to f16, for kernels with f16 operands (F16_TERMS).

@if F16_TERMS {
    // Rounds to f16, ties to even, as an f32; infinite from 65,520. In integer arithmetic, because the rounding of pack2x16float
    // is implementation-defined and its overflow undefined; Mesa 25 also optimizes it away together with unpack2x16float.
    fn to_half(x: vec4f) -> vec4f {
        let bits = bitcast<vec4u>(x);
        let magnitude = bits & vec4u(0x7fffffffu);
        // f16 has 13 mantissa bits less, and below 2⁻¹⁴ (subnormal) one less per power of two.
        let shift = 126u - clamp(magnitude >> vec4u(23u), vec4u(103u), vec4u(113u));
        let unit = vec4u(1u) << shift;
        var rounded = (magnitude + (unit >> vec4u(1u)) - 1u + ((magnitude >> shift) & vec4u(1u))) & ~(unit - 1u);
        // Below the smallest subnormal, 2⁻²⁴: more than half of it rounds up, the rest to zero.
        rounded = select(rounded, vec4u(0x33800000u), magnitude < vec4u(0x33800000u));
        rounded = select(rounded, vec4u(0u), magnitude <= vec4u(0x33000000u));
        // Overflow to infinity; max keeps a NaN.
        rounded = select(rounded, max(magnitude, vec4u(0x7f800000u)), rounded >= vec4u(0x47800000u));
        return bitcast<vec4f>(rounded | (bits & vec4u(0x80000000u)));
    }
} @else {
    fn to_half(x: vec4f) -> vec4f { return x; }
}
