// What the matmul kernels share: bindings, arguments, guarded loads, and the epilogue. Strides, offsets and batches count floats. With
// VECTORS all of them, the columns, the inner size and (for a transposed A) the rows are multiples of four.
//
// The constants ADDEND, DIAGONAL, BETA and SYMMETRIC say which parts of the epilogue a product needs. The GPU kernels have a copy
// of it for each of their outputs, so that an unused part would cost seconds of compilation. With SYMMETRIC the result is known to
// be symmetric: only its lower triangle is computed, and mirrored.
//
// HALVES says how many f16 stand for an operand: 0 leaves it f32, 1 rounds it, 2 (SPLIT) adds a second for what the first lost.
// The sums and the epilogue are f32.

@group(0) @binding(0) var<storage, read> a: array<Element>;
@group(0) @binding(1) var<storage, read> b: array<Element>;
@group(0) @binding(2) var<storage, read> c: array<Element>;
@group(0) @binding(3) var<storage, read> factor: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<Element>;

struct Args {
    rows: u32, columns: u32, inner: u32,
    a_stride: u32, b_stride: u32, c_stride: u32, out_stride: u32,
    a_offset: u32, b_offset: u32, c_offset: u32, out_offset: u32,
    a_batch: u32, b_batch: u32, c_batch: u32, out_batch: u32,
    // α is multiplied by factor[factor_index + batch·factor_batch] where has_factor is 1.
    has_factor: u32, factor_index: u32, factor_batch: u32,
    alpha: f32, addend_scale: f32, delta: f32, beta: f32,
    first_group: u32, // added to the workgroup's y
    // The inner dimension in parts of `depth`; a workgroup's z is that of the matrix times `parts` and the part.
    parts: u32, depth: u32,
}

var<immediate> args: Args;

// Which matrix of the batch and which inner indices a workgroup multiplies.
struct Share { batch: u32, first: u32, end: u32 }

fn share(z: u32) -> Share {
    let first = z % args.parts * args.depth;
    return Share(z / args.parts, first, min(first + args.depth, args.inner));
}

@if VECTORS {
    fn load_a(at: u32, valid: u32) -> vec4f { return a[at / 4u]; }
    fn load_b(at: u32, valid: u32) -> vec4f { return b[at / 4u]; }
    fn load_c(at: u32, valid: u32) -> vec4f { return c[at / 4u]; }
    fn load_out(at: u32, valid: u32) -> vec4f { return out[at / 4u]; }
    fn store_out(at: u32, valid: u32, value: vec4f) { out[at / 4u] = value; }
    fn store_one(at: u32, value: f32) { out[at / 4u][at % 4u] = value; }
} @else {
    // The first `valid` of four floats from `at`, and zeros.
    fn load_a(at: u32, valid: u32) -> vec4f {
        var value = vec4f();
        @unroll for (var q = 0u; q < 4; q++) { if (q < valid) { value[q] = a[at + q]; } }
        return value;
    }
    fn load_b(at: u32, valid: u32) -> vec4f {
        var value = vec4f();
        @unroll for (var q = 0u; q < 4; q++) { if (q < valid) { value[q] = b[at + q]; } }
        return value;
    }
    fn load_c(at: u32, valid: u32) -> vec4f {
        var value = vec4f();
        @unroll for (var q = 0u; q < 4; q++) { if (q < valid) { value[q] = c[at + q]; } }
        return value;
    }
    fn load_out(at: u32, valid: u32) -> vec4f {
        var value = vec4f();
        @unroll for (var q = 0u; q < 4; q++) { if (q < valid) { value[q] = out[at + q]; } }
        return value;
    }
    fn store_out(at: u32, valid: u32, value: vec4f) {
        @unroll for (var q = 0u; q < 4; q++) { if (q < valid) { out[at + q] = value[q]; } }
    }
    fn store_one(at: u32, value: f32) { out[at] = value; }
}

@if HALVES {
    // The nearest f16, ties to even, as an f32; from 65,520 on an infinity. In integers, because pack2x16float may round as the
    // adapter likes and gives anything beyond its range; Mesa 25 drops it together with unpack2x16float.
    fn to_half(x: vec4f) -> vec4f {
        let bits = bitcast<vec4u>(x);
        let magnitude = bits & vec4u(0x7fffffffu);
        // An f16 has 13 bits less, and from 2⁻¹⁴ down one less for every halving.
        let shift = 126u - clamp(magnitude >> vec4u(23u), vec4u(103u), vec4u(113u));
        let unit = vec4u(1u) << shift;
        var rounded = (magnitude + (unit >> vec4u(1u)) - 1u + ((magnitude >> shift) & vec4u(1u))) & ~(unit - 1u);
        // Below the least f16, 2⁻²⁴, more than half of it is one and the rest nothing.
        rounded = select(rounded, vec4u(0x33800000u), magnitude < vec4u(0x33800000u));
        rounded = select(rounded, vec4u(0u), magnitude <= vec4u(0x33000000u));
        // 65,536 and more; the larger of the two keeps a NaN.
        rounded = select(rounded, max(magnitude, vec4u(0x7f800000u)), rounded >= vec4u(0x47800000u));
        return bitcast<vec4f>(rounded | (bits & vec4u(0x80000000u)));
    }
} @else {
    fn to_half(x: vec4f) -> vec4f { return x; }
}

// What `high` = to_half(x) lost. Times 2¹¹ while it is rounded, where it has the range of `high`; exact otherwise.
fn low_half(x: vec4f, high: vec4f) -> vec4f { return to_half((x - high) * 2048.0) * 0.00048828125; }

// The epilogue for four outputs of one row: α·sum + β·C + δ·I + κ·out.
fn finish(row: u32, column: u32, batch: u32, sum: vec4f) {
    if (row >= args.rows || column >= args.columns) { return; }
    let valid = args.columns - column;
    var alpha = args.alpha;
    if (args.has_factor == 1u) { alpha *= factor[args.factor_index + batch * args.factor_batch]; }
    var value = alpha * sum;
    if (ADDEND == 1u) {
        value = fma(vec4f(args.addend_scale), load_c(args.c_offset + batch * args.c_batch + row * args.c_stride + column, valid), value);
    }
    if (DIAGONAL == 1u) {
        value += args.delta * vec4f(vec4u(row) == vec4u(column) + vec4u(0u, 1u, 2u, 3u));
    }
    let base = args.out_offset + batch * args.out_batch;
    let at = base + row * args.out_stride + column;
    if (BETA == 1u) {
        value = fma(vec4f(args.beta), load_out(at, valid), value);
    }
    @if SYMMETRIC {
        for (var q = 0u; q < 4u; q++) {
            if (column + q <= row) {
                store_one(at + q, value[q]);
                store_one(base + (column + q) * args.out_stride + row, value[q]);
            }
        }
    } @else {
        store_out(at, valid, value);
    }
}
