// Product for GPUs: a workgroup of INVOCATIONS, 16 of them side by side, computes a ROWS × COLUMNS output tile from operand tiles of ROWS
// and COLUMNS × DEPTH in shared memory (8 KiB at 64 × 64, 16 KiB with F16X3 or at 128 × 128). Each invocation accumulates four rows and
// columns, or at 128 × 128 two groups of four with stride 64, so that shared-memory reads are consecutive vec4s. The next operand tile is prefetched into registers
// during the multiply. Every output is one chain of fused multiply-adds in inner order, so the tile size never changes a bit.
//
// Constants: ROWS, COLUMNS, GROUPS = ⌈ROWS / 64⌉ = COLUMNS / 64, INVOCATIONS = 16·ROWS / (4·GROUPS), A_LOADS and B_LOADS (vec4s that an
// invocation loads of each tile), UNROLLED, TRANSPOSE_A, TRANSPOSE_B, VECTORS, F16_TERMS, F16X3.

const DEPTH: u32 = 16u;
const A_SIDE: u32 = ROWS / 4u;
const B_SIDE: u32 = COLUMNS / 4u;

// [DEPTH][A_SIDE] and [DEPTH][B_SIDE]: an element is four rows of op(A), or four columns of op(B), at one inner index.
var<workgroup> a_tile: array<vec4f, DEPTH * A_SIDE>;
var<workgroup> b_tile: array<vec4f, DEPTH * B_SIDE>;
@if F16X3 {
    var<workgroup> a_low: array<vec4f, DEPTH * A_SIDE>;
    var<workgroup> b_low: array<vec4f, DEPTH * B_SIDE>;
}

// Index of the vec4 at inner index 4·four + d, XOR-swizzled every four inner indices: avoids bank conflicts on stores of an
// operand that is contiguous along the inner dimension. All inner indices of one `four` share the XOR, whose result is an offset.
fn swizzle(four: u32, d: u32, quarter: u32, side: u32) -> u32 {
    return four * 4u * side + (quarter ^ (four * 2u)) + d * side;
}

fn store_a(index: u32, fetched: vec4f, k: u32) {
    let at = place_a(index);
    let values = select(vec4f(), fetched, k + at.depth < args.inner);
    let high = to_half(values);
    @if F16X3 { let low = low_half(values, high); }
    if (TRANSPOSE_A == 1u) {
        let to = swizzle(at.depth / 4u, at.depth % 4u, at.side / 4u, A_SIDE);
        a_tile[to] = high;
        @if F16X3 { a_low[to] = low; }
    } else {
        @unroll for (var q = 0u; q < 4; q++) {
            let to = swizzle(at.depth / 4u, q, at.side / 4u, A_SIDE);
            a_tile[to][at.side % 4u] = high[q];
            @if F16X3 { a_low[to][at.side % 4u] = low[q]; }
        }
    }
}

fn store_b(index: u32, fetched: vec4f, k: u32) {
    let at = place_b(index);
    let values = select(vec4f(), fetched, k + at.depth < args.inner);
    let high = to_half(values);
    @if F16X3 { let low = low_half(values, high); }
    if (TRANSPOSE_B == 0u) {
        let to = swizzle(at.depth / 4u, at.depth % 4u, at.side / 4u, B_SIDE);
        b_tile[to] = high;
        @if F16X3 { b_low[to] = low; }
    } else {
        @unroll for (var q = 0u; q < 4; q++) {
            let to = swizzle(at.depth / 4u, q, at.side / 4u, B_SIDE);
            b_tile[to][at.side % 4u] = high[q];
            @if F16X3 { b_low[to][at.side % 4u] = low[q]; }
        }
    }
}

@compute @workgroup_size(INVOCATIONS)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let row = (args.first_group + group.y) * ROWS;
    let column = group.x * COLUMNS;
    let range = k_range(group.z);
    let a_base = args.a_offset + range.batch * args.a_batch;
    let b_base = args.b_offset + range.batch * args.b_batch;
    let mine_row = local / 16u;
    let mine_column = local % 16u;
    if (SYMMETRIC == 1u && column >= row + ROWS) { return; }
    // Four rows of group i by four columns of group j: sum[(i·4 + row)·GROUPS + j].
    var sum: array<vec4f, 4u * GROUPS * GROUPS>;
    var next_a: array<Loaded, A_LOADS>;
    var next_b: array<Loaded, B_LOADS>;
    var x: array<vec4f, GROUPS>;
    var y: array<vec4f, GROUPS>;
    @if F16X3 {
        var x_low: array<vec4f, GROUPS>;
        var y_low: array<vec4f, GROUPS>;
    }
    @unroll for (var g = 0u; g < A_LOADS; g++) { next_a[g] = fetch_a(g * INVOCATIONS + local, row, range.first, a_base); }
    @unroll for (var g = 0u; g < B_LOADS; g++) { next_b[g] = fetch_b(g * INVOCATIONS + local, column, range.first, b_base); }
    for (var k = range.first; k < range.end; k += DEPTH) {
        @unroll for (var g = 0u; g < A_LOADS; g++) { store_a(g * INVOCATIONS + local, next_a[g], k); }
        @unroll for (var g = 0u; g < B_LOADS; g++) { store_b(g * INVOCATIONS + local, next_b[g], k); }
        workgroupBarrier();
        @unroll for (var g = 0u; g < A_LOADS; g++) { next_a[g] = fetch_a(g * INVOCATIONS + local, row, k + DEPTH, a_base); }
        @unroll for (var g = 0u; g < B_LOADS; g++) { next_b[g] = fetch_b(g * INVOCATIONS + local, column, k + DEPTH, b_base); }
        // On a software adapter unrolled by four only: all sixteen take seconds to compile.
        @unroll if UNROLLED for (var four = 0u; four < 4; four++) {
            @unroll for (var d = 0u; d < 4; d++) {
                @unroll for (var g = 0u; g < GROUPS; g++) {
                    x[g] = a_tile[swizzle(four, d, mine_row, A_SIDE) + g * 16u];
                    y[g] = b_tile[swizzle(four, d, mine_column, B_SIDE) + g * 16u];
                    @if F16X3 {
                        x_low[g] = a_low[swizzle(four, d, mine_row, A_SIDE) + g * 16u];
                        y_low[g] = b_low[swizzle(four, d, mine_column, B_SIDE) + g * 16u];
                    }
                }
                @unroll for (var i = 0u; i < GROUPS; i++) {
                    @unroll for (var q = 0u; q < 4; q++) {
                        @unroll for (var j = 0u; j < GROUPS; j++) {
                            sum[(i * 4u + q) * GROUPS + j] = fma(vec4f(x[i][q]), y[j], sum[(i * 4u + q) * GROUPS + j]);
                            @if F16X3 {
                                let part = fma(vec4f(x_low[i][q]), y[j], sum[(i * 4u + q) * GROUPS + j]);
                                sum[(i * 4u + q) * GROUPS + j] = fma(vec4f(x[i][q]), y_low[j], part);
                            }
                        }
                    }
                }
            }
        }
        workgroupBarrier();
    }
    let alpha = alpha_of(group.z);
    @unroll for (var i = 0u; i < GROUPS; i++) {
        @unroll for (var q = 0u; q < 4; q++) {
            @unroll for (var j = 0u; j < GROUPS; j++) {
                let first = row + i * 64u + mine_row * 4u;
                finish(first + q, column + j * 64u + mine_column * 4u, group.z, alpha, sum[(i * 4u + q) * GROUPS + j]);
            }
        }
    }
}
