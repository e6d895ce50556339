// Product with cooperative matrices: f16 inputs (two per element with F16X3), f32 accumulation.
//
// A workgroup computes an output tile of ROWS × COLUMNS. It loads operand tiles of DEPTH inner indices to shared memory in their
// storage order; the cooperative loads transpose. The output tile is divided into REGIONS regions, ACROSS per row, of
// REGION_ROWS × REGION_COLUMNS blocks; one subgroup accumulates each region. REGIONS is at most the number of subgroups at
// the maximum subgroup size; with smaller subgroups, unless WHOLE, the surplus ones only load. That condition is written as a loop that runs
// once: naga treats an `if` as divergent control flow, where cooperative operations are not allowed.
//
// Constants: ROWS, COLUMNS, DEPTH, INVOCATIONS, A_LOADS and B_LOADS (vec4s per invocation of an operand tile), LARGE, SCALARS, STEPS =
// DEPTH / BLOCK, REGIONS, ACROSS, REGION_ROWS, REGION_COLUMNS, BLOCKS = REGION_ROWS · REGION_COLUMNS, QUOTA (vec4s per invocation of
// one staged block per region), HARDWARE_F16 (the adapter rounds to f16 as to_half does), TRANSPOSE_A, TRANSPOSE_B, VECTORS,
// F16_TERMS, F16X3.

// Row strides, in vec4s, of a tile stored along the inner dimension, or along its side; padded by eight f16 against bank conflicts.
const DEEP: u32 = DEPTH / 4u + 2u;
const WIDE_A: u32 = ROWS / 4u + 2u;
const WIDE_B: u32 = COLUMNS / 4u + 2u;

// op(A): [ROWS][DEEP], or [DEPTH][WIDE_A] if A is transposed. op(B): [DEPTH][WIDE_B], or [COLUMNS][DEEP] if B is transposed.
var<workgroup> a_tile: array<Halves, UNIT * max(ROWS * DEEP, DEPTH * WIDE_A)>;
var<workgroup> b_tile: array<Halves, UNIT * max(COLUMNS * DEEP, DEPTH * WIDE_B)>;
@if F16X3 {
    // Rounding residuals, times 2¹¹.
    var<workgroup> a_low: array<Halves, UNIT * max(ROWS * DEEP, DEPTH * WIDE_A)>;
    var<workgroup> b_low: array<Halves, UNIT * max(COLUMNS * DEEP, DEPTH * WIDE_B)>;
}
// Staging: one block of sums per region.
var<workgroup> staged: array<Singles, UNIT * REGIONS * BLOCK * BLOCK / 4u>;

@if SCALARS {
    fn put_a(to: u32, x: vec4<f16>) { @unroll for (var e = 0u; e < 4; e++) { a_tile[4u * to + e] = x[e]; } }
    fn put_b(to: u32, x: vec4<f16>) { @unroll for (var e = 0u; e < 4; e++) { b_tile[4u * to + e] = x[e]; } }
    @if F16X3 {
        fn put_a_low(to: u32, x: vec4<f16>) { @unroll for (var e = 0u; e < 4; e++) { a_low[4u * to + e] = x[e]; } }
        fn put_b_low(to: u32, x: vec4<f16>) { @unroll for (var e = 0u; e < 4; e++) { b_low[4u * to + e] = x[e]; } }
    }
} @else {
    fn put_a(to: u32, x: vec4<f16>) { a_tile[to] = x; }
    fn put_b(to: u32, x: vec4<f16>) { b_tile[to] = x; }
    @if F16X3 {
        fn put_a_low(to: u32, x: vec4<f16>) { a_low[to] = x; }
        fn put_b_low(to: u32, x: vec4<f16>) { b_low[to] = x; }
    }
}

// Zeros from `end` on: those inner indices are of the next slice.
fn store_a(index: u32, fetched: Loaded, k: u32, end: u32) {
    let at = place_a(index);
    let to = select(at.side * DEEP + at.depth / 4u, at.depth * WIDE_A + at.side / 4u, TRANSPOSE_A == 1u);
    let values = select(Loaded(), fetched, k + at.depth < end);
    @if F16_OPERANDS { let high = values; } @else { let high = half(values); }
    put_a(to, high);
    @if F16X3 { put_a_low(to, half((values - vec4f(high)) * 2048.0)); }
}

fn store_b(index: u32, fetched: Loaded, k: u32, end: u32) {
    let at = place_b(index);
    let to = select(at.side * DEEP + at.depth / 4u, at.depth * WIDE_B + at.side / 4u, TRANSPOSE_B == 0u);
    let values = select(Loaded(), fetched, k + at.depth < end);
    @if F16_OPERANDS { let high = values; } @else { let high = half(values); }
    put_b(to, high);
    @if F16X3 { put_b_low(to, half((values - vec4f(high)) * 2048.0)); }
}

// Clamped beyond the end.
fn staged_vec4(index: u32) -> vec4f {
    let at = min(index, REGIONS * BLOCK * BLOCK / 4u - 1u);
    @if SCALARS {
        return vec4f(staged[4u * at], staged[4u * at + 1u], staged[4u * at + 2u], staged[4u * at + 3u]);
    } @else {
        return staged[at];
    }
}

@compute @workgroup_size(INVOCATIONS)
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(local_invocation_index) local: u32,
    @builtin(subgroup_id) region: u32,
) {
    let row = (args.first_group + group.y) * ROWS;
    let column = group.x * COLUMNS;
    let range = k_range(group.z);
    let a_base = args.a_offset + range.batch * args.a_batch;
    let b_base = args.b_offset + range.batch * args.b_batch;
    @if SYMMETRIC { if (column >= row + ROWS) { return; } }
    let first_row = region / ACROSS * REGION_ROWS * BLOCK;
    let first_column = region % ACROSS * REGION_COLUMNS * BLOCK;
    var sum: array<Sum, BLOCKS>;
    var left: array<Left, REGION_ROWS>;
    @if F16X3 {
        var rest: array<Sum, BLOCKS>; // sums of the residual products, times 2¹¹
        var left_low: array<Left, REGION_ROWS>;
        var low: array<vec4f, QUOTA>;
    }
    var next_a: array<Loaded, A_LOADS>;
    var next_b: array<Loaded, B_LOADS>;
    @unroll for (var g = 0u; g < A_LOADS; g++) { next_a[g] = fetch_a(g * INVOCATIONS + local, row, range.first, a_base); }
    @unroll for (var g = 0u; g < B_LOADS; g++) { next_b[g] = fetch_b(g * INVOCATIONS + local, column, range.first, b_base); }
    for (var k = range.first; k < range.end; k += DEPTH) {
        @unroll for (var g = 0u; g < A_LOADS; g++) { store_a(g * INVOCATIONS + local, next_a[g], k, range.end); }
        @unroll for (var g = 0u; g < B_LOADS; g++) { store_b(g * INVOCATIONS + local, next_b[g], k, range.end); }
        workgroupBarrier();
        @unroll for (var g = 0u; g < A_LOADS; g++) { next_a[g] = fetch_a(g * INVOCATIONS + local, row, k + DEPTH, a_base); }
        @unroll for (var g = 0u; g < B_LOADS; g++) { next_b[g] = fetch_b(g * INVOCATIONS + local, column, k + DEPTH, b_base); }
        @unless WHOLE for (var turn = region; turn < REGIONS; turn += REGIONS) {
            @unroll for (var s = 0u; s < STEPS; s++) {
                @unroll for (var i = 0u; i < REGION_ROWS; i++) {
                    @if TRANSPOSE_A {
                        let at = s * BLOCK * WIDE_A + (first_row + i * BLOCK) / 4u;
                        left[i] = coopLoad<Left>(&a_tile[UNIT * at], UNIT * WIDE_A);
                        @if F16X3 { left_low[i] = coopLoad<Left>(&a_low[UNIT * at], UNIT * WIDE_A); }
                    } @else {
                        let at = (first_row + i * BLOCK) * DEEP + s * BLOCK / 4u;
                        left[i] = coopLoadT<Left>(&a_tile[UNIT * at], UNIT * DEEP);
                        @if F16X3 { left_low[i] = coopLoadT<Left>(&a_low[UNIT * at], UNIT * DEEP); }
                    }
                }
                @unroll for (var j = 0u; j < REGION_COLUMNS; j++) {
                    @if TRANSPOSE_B {
                        let at = (first_column + j * BLOCK) * DEEP + s * BLOCK / 4u;
                        let right = coopLoad<Right>(&b_tile[UNIT * at], UNIT * DEEP);
                        @if F16X3 { let right_low = coopLoad<Right>(&b_low[UNIT * at], UNIT * DEEP); }
                    } @else {
                        let at = s * BLOCK * WIDE_B + (first_column + j * BLOCK) / 4u;
                        let right = coopLoadT<Right>(&b_tile[UNIT * at], UNIT * WIDE_B);
                        @if F16X3 { let right_low = coopLoadT<Right>(&b_low[UNIT * at], UNIT * WIDE_B); }
                    }
                    @unroll for (var i = 0u; i < REGION_ROWS; i++) {
                        sum[j * REGION_ROWS + i] = coopMultiplyAdd(left[i], right, sum[j * REGION_ROWS + i]);
                        @if F16X3 {
                            rest[j * REGION_ROWS + i] = coopMultiplyAdd(left[i], right_low, rest[j * REGION_ROWS + i]);
                            rest[j * REGION_ROWS + i] = coopMultiplyAdd(left_low[i], right, rest[j * REGION_ROWS + i]);
                        }
                    }
                }
            }
        }
        workgroupBarrier();
    }
    let alpha = alpha_of(group.z);
    // One block per region at a time through shared memory: the lane layout of a cooperative matrix is opaque.
    @unroll for (var j = 0u; j < REGION_COLUMNS; j++) {
        @unroll for (var i = 0u; i < REGION_ROWS; i++) {
            @if F16X3 {
                @unless WHOLE for (var turn = region; turn < REGIONS; turn += REGIONS) {
                    coopStoreT(rest[j * REGION_ROWS + i], &staged[UNIT * region * BLOCK * BLOCK / 4u], UNIT * BLOCK / 4u);
                }
                workgroupBarrier();
                @unroll for (var n = 0u; n < QUOTA; n++) { low[n] = staged_vec4(n * INVOCATIONS + local); }
                workgroupBarrier();
            }
            @unless WHOLE for (var turn = region; turn < REGIONS; turn += REGIONS) {
                coopStoreT(sum[j * REGION_ROWS + i], &staged[UNIT * region * BLOCK * BLOCK / 4u], UNIT * BLOCK / 4u);
            }
            workgroupBarrier();
            @unroll for (var n = 0u; n < QUOTA; n++) {
                let index = n * INVOCATIONS + local;
                var value = staged_vec4(index);
                @if F16X3 { value = fma(low[n], vec4f(0.00048828125), value); }
                let source = index / (BLOCK * BLOCK / 4u);
                let block_row = source / ACROSS * REGION_ROWS + i;
                let block_column = source % ACROSS * REGION_COLUMNS + j;
                let offset = index % (BLOCK * BLOCK / 4u);
                if (source < REGIONS) {
                    let at = row + block_row * BLOCK + offset / (BLOCK / 4u);
                    finish(at, column + block_column * BLOCK + offset % (BLOCK / 4u) * 4u, group.z, alpha, value);
                }
            }
            workgroupBarrier();
        }
    }
}
