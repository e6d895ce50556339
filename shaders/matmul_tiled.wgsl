// Product for GPUs: a workgroup of 16 × 16 invocations computes a TILE × TILE output tile from operand tiles of TILE × DEPTH in
// shared memory (8 KiB at 64, 16 KiB with F16X3 or at 128). Each invocation accumulates TILE / 16 rows and columns, in groups of
// four with stride 64, so that shared-memory reads are consecutive vec4s. The next operand tile is prefetched into registers
// during the multiply. Every output is one chain of fused multiply-adds in inner order, so the tile size never changes a bit.
//
// Constants: TILE, GROUPS = TILE / 64, TRANSPOSE_A, TRANSPOSE_B, VECTORS, F16_TERMS, F16X3.

const DEPTH: u32 = 16u;
const SIDE: u32 = TILE / 4u;

// Both [DEPTH][SIDE]: an element is four rows of op(A), or four columns of op(B), at one inner index.
var<workgroup> a_tile: array<vec4f, DEPTH * SIDE>;
var<workgroup> b_tile: array<vec4f, DEPTH * SIDE>;
@if F16X3 {
    var<workgroup> a_low: array<vec4f, DEPTH * SIDE>;
    var<workgroup> b_low: array<vec4f, DEPTH * SIDE>;
}

// Index of a vec4 in a tile, XOR-swizzled every four inner indices: avoids bank conflicts on stores of an operand that is
// contiguous along the inner dimension.
fn swizzle(depth: u32, quarter: u32) -> u32 { return depth * SIDE + (quarter ^ (depth / 4u * 2u)); }

// Tile coordinates of the vec4 that an invocation loads: four consecutive rows or columns at one inner index (`along_side`), or
// four consecutive inner indices of one row or column.
struct Place { side: u32, depth: u32 }

fn place(index: u32, along_side: bool) -> Place {
    if (along_side) { return Place((index % SIDE) * 4u, index / SIDE); }
    return Place(index / (DEPTH / 4u), (index % (DEPTH / 4u)) * 4u);
}

fn fetch_a(index: u32, row: u32, k: u32, base: u32) -> vec4f {
    let at = place(index, TRANSPOSE_A == 1u);
    let inner = k + at.depth;
    let side = row + at.side;
    if (inner >= args.inner || side >= args.rows) { return vec4f(); }
    if (TRANSPOSE_A == 1u) { return load_a(base + inner * args.a_stride + side, args.rows - side); }
    return load_a(base + side * args.a_stride + inner, args.inner - inner);
}

fn fetch_b(index: u32, column: u32, k: u32, base: u32) -> vec4f {
    let at = place(index, TRANSPOSE_B == 0u);
    let inner = k + at.depth;
    let side = column + at.side;
    if (inner >= args.inner || side >= args.columns) { return vec4f(); }
    if (TRANSPOSE_B == 0u) { return load_b(base + inner * args.b_stride + side, args.columns - side); }
    return load_b(base + side * args.b_stride + inner, args.inner - inner);
}

fn store_a(index: u32, values: vec4f) {
    let at = place(index, TRANSPOSE_A == 1u);
    let high = to_half(values);
    @if F16X3 { let low = low_half(values, high); }
    if (TRANSPOSE_A == 1u) {
        let to = swizzle(at.depth, at.side / 4u);
        a_tile[to] = high;
        @if F16X3 { a_low[to] = low; }
    } else {
        @unroll for (var q = 0u; q < 4; q++) {
            let to = swizzle(at.depth + q, at.side / 4u);
            a_tile[to][at.side % 4u] = high[q];
            @if F16X3 { a_low[to][at.side % 4u] = low[q]; }
        }
    }
}

fn store_b(index: u32, values: vec4f) {
    let at = place(index, TRANSPOSE_B == 0u);
    let high = to_half(values);
    @if F16X3 { let low = low_half(values, high); }
    if (TRANSPOSE_B == 0u) {
        let to = swizzle(at.depth, at.side / 4u);
        b_tile[to] = high;
        @if F16X3 { b_low[to] = low; }
    } else {
        @unroll for (var q = 0u; q < 4; q++) {
            let to = swizzle(at.depth + q, at.side / 4u);
            b_tile[to][at.side % 4u] = high[q];
            @if F16X3 { b_low[to][at.side % 4u] = low[q]; }
        }
    }
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let row = (args.first_group + group.y) * TILE;
    let column = group.x * TILE;
    let range = k_range(group.z);
    let a_base = args.a_offset + range.batch * args.a_batch;
    let b_base = args.b_offset + range.batch * args.b_batch;
    let mine_row = local / 16u;
    let mine_column = local % 16u;
    if (SYMMETRIC == 1u && column >= row + TILE) { return; }
    // Four rows of group i by four columns of group j: sum[(i·4 + row)·GROUPS + j].
    var sum: array<vec4f, 4u * GROUPS * GROUPS>;
    var next_a: array<vec4f, GROUPS>;
    var next_b: array<vec4f, GROUPS>;
    var x: array<vec4f, GROUPS>;
    var y: array<vec4f, GROUPS>;
    @if F16X3 {
        var x_low: array<vec4f, GROUPS>;
        var y_low: array<vec4f, GROUPS>;
    }
    @unroll for (var g = 0u; g < GROUPS; g++) {
        next_a[g] = fetch_a(g * 256u + local, row, range.first, a_base);
        next_b[g] = fetch_b(g * 256u + local, column, range.first, b_base);
    }
    for (var k = range.first; k < range.end; k += DEPTH) {
        @unroll for (var g = 0u; g < GROUPS; g++) {
            store_a(g * 256u + local, next_a[g]);
            store_b(g * 256u + local, next_b[g]);
        }
        workgroupBarrier();
        @unroll for (var g = 0u; g < GROUPS; g++) {
            next_a[g] = fetch_a(g * 256u + local, row, k + DEPTH, a_base);
            next_b[g] = fetch_b(g * 256u + local, column, k + DEPTH, b_base);
        }
        // Unrolled by four: all sixteen take lavapipe seconds to compile and overflow the instruction cache of GPUs.
        for (var quarter = 0u; quarter < DEPTH; quarter += 4u) {
            @unroll for (var d = 0u; d < 4; d++) {
                @unroll for (var g = 0u; g < GROUPS; g++) {
                    x[g] = a_tile[swizzle(quarter + d, g * 16u + mine_row)];
                    y[g] = b_tile[swizzle(quarter + d, g * 16u + mine_column)];
                    @if F16X3 {
                        x_low[g] = a_low[swizzle(quarter + d, g * 16u + mine_row)];
                        y_low[g] = b_low[swizzle(quarter + d, g * 16u + mine_column)];
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
    @unroll for (var i = 0u; i < GROUPS; i++) {
        @unroll for (var q = 0u; q < 4; q++) {
            @unroll for (var j = 0u; j < GROUPS; j++) {
                let first = row + i * 64u + mine_row * 4u;
                finish(first + q, column + j * 64u + mine_column * 4u, group.z, sum[(i * 4u + q) * GROUPS + j]);
            }
        }
    }
}
