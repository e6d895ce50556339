// Shared by the product kernels, out ← α·f·op(A)·op(B) + β·out + σ·C + δ·I: bindings, arguments, guarded loads, the epilogue.
// Strides, offsets and batch strides are in floats. With VECTORS all of them, the columns, the inner size and (for a transposed A)
// the rows are multiples of four.
//
// The constants ADDEND, DIAGONAL, BETA and SYMMETRIC enable parts of the epilogue: GPU kernels inline a copy of it per output, and
// unused parts would cost seconds of compilation. With ANY_EPILOGUE, for a kernel with one copy, a part is enabled where its factor is not
// 0, so that one pipeline has them all. SYMMETRIC: the result is known to be symmetric, so only its lower triangle is
// computed, then mirrored.
//
// F16_TERMS is the number of f16 values per operand element: 0 keeps f32, 1 rounds, 2 (F16X3) adds the rounding residual.
// Accumulation and epilogue are f32.

// With F16_OPERANDS (and VECTORS), A and B have been rounded to f16 beforehand.
@if F16_OPERANDS { alias Operand = vec4<f16>; } @else { alias Operand = Element; }

@group(0) @binding(0) var<storage, read> a: array<Operand>;
@group(0) @binding(1) var<storage, read> b: array<Operand>;
@group(0) @binding(2) var<storage, read> c: array<Element>;
@group(0) @binding(3) var<storage, read> factor: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<Element>;

struct Args {
    rows: u32, columns: u32, inner: u32,
    a_stride: u32, b_stride: u32, c_stride: u32, out_stride: u32,
    a_offset: u32, b_offset: u32, c_offset: u32, out_offset: u32,
    a_batch: u32, b_batch: u32, c_batch: u32, out_batch: u32,
    // α is multiplied by f = factor[factor_index + batch·factor_batch] if has_factor is 1.
    has_factor: u32, factor_index: u32, factor_batch: u32,
    alpha: f32, addend_scale: f32, delta: f32, beta: f32,
    first_group: u32, // added to the workgroup's y
    // Split-K: slices of the inner dimension, each of size `depth`; a workgroup's z is batch·split_k + slice.
    split_k: u32, depth: u32,
}

var<immediate> args: Args;

// The matrix of the batch and the range of inner indices of a workgroup.
struct KRange { batch: u32, first: u32, end: u32 }

fn k_range(z: u32) -> KRange {
    let first = z % args.split_k * args.depth;
    return KRange(z / args.split_k, first, min(first + args.depth, args.inner));
}

@if VECTORS {
    fn load_a(at: u32, valid: u32) -> Operand { return a[at / 4u]; }
    fn load_b(at: u32, valid: u32) -> Operand { return b[at / 4u]; }
    fn load_c(at: u32, valid: u32) -> vec4f { return c[at / 4u]; }
    fn load_out(at: u32, valid: u32) -> vec4f { return out[at / 4u]; }
    fn store_out(at: u32, valid: u32, value: vec4f) { out[at / 4u] = value; }
    fn store_one(at: u32, value: f32) { out[at / 4u][at % 4u] = value; }
} @else {
    // Four floats from `at`; those from `valid` on are zero.
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

// The residual x - `high`, `high` = to_half(x), rounded to f16 at a scale of 2¹¹ so that it does not underflow.
fn low_half(x: vec4f, high: vec4f) -> vec4f { return to_half((x - high) * 2048.0) * 0.00048828125; }

// α·f: read once, before the epilogues of a tile.
fn alpha_of(batch: u32) -> f32 {
    var alpha = args.alpha;
    if (args.has_factor == 1u) { alpha *= factor[args.factor_index + batch * args.factor_batch]; }
    return alpha;
}

// The epilogue for four outputs of one row: alpha·sum + β·out + σ·C + δ·I.
fn finish(row: u32, column: u32, batch: u32, alpha: f32, sum: vec4f) {
    if (row >= args.rows || column >= args.columns) { return; }
    let valid = args.columns - column;
    @if ANY_EPILOGUE {
        let has_addend = args.addend_scale != 0.0;
        let has_diagonal = args.delta != 0.0;
        let has_old = args.beta != 0.0;
    } @else {
        let has_addend = ADDEND == 1u;
        let has_diagonal = DIAGONAL == 1u;
        let has_old = BETA == 1u;
    }
    var value = alpha * sum;
    if (has_addend) {
        value = fma(vec4f(args.addend_scale), load_c(args.c_offset + batch * args.c_batch + row * args.c_stride + column, valid), value);
    }
    if (has_diagonal) {
        value += args.delta * vec4f(vec4u(row) == vec4u(column) + vec4u(0u, 1u, 2u, 3u));
    }
    let base = args.out_offset + batch * args.out_batch;
    let at = base + row * args.out_stride + column;
    if (has_old) {
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
