// out = α·op(A)·op(B) + β·C + δ·I + κ·out for GPUs: a workgroup of 16 × 16 invocations computes TILE × TILE outputs from tiles of
// TILE × DEPTH in shared memory (8 KiB at 64, 16 with SPLIT or at 128). An invocation owns TILE / 16 rows and columns, in fours
// that lie 64 apart, so that neighbours read neighbouring vec4s. What the next step needs is loaded before the multiply of the
// current. Every output is one chain of fused multiply-adds in the order of the inner index, whatever the tile: the choice never
// changes a bit.
//
// Constants: TILE, GROUPS = TILE / 64, TRANSPOSE_A, TRANSPOSE_B, VECTORS, HALVES, SPLIT.

const DEPTH: u32 = 16u;
const SIDE: u32 = TILE / 4u;

// Both as [DEPTH][SIDE]: four rows of op(A), four columns of op(B), at one inner index.
var<workgroup> a_tile: array<vec4f, DEPTH * SIDE>;
var<workgroup> b_tile: array<vec4f, DEPTH * SIDE>;
@if SPLIT {
    var<workgroup> a_low: array<vec4f, DEPTH * SIDE>;
    var<workgroup> b_low: array<vec4f, DEPTH * SIDE>;
}

// The place of four neighbours in a tile. Every four inner indices the order changes, which spreads over the banks what the
// lanes of a subgroup write where an operand comes along the inner dimension.
fn spot(depth: u32, quarter: u32) -> u32 { return depth * SIDE + (quarter ^ (depth / 4u * 2u)); }

// The vec4 of an operand that an invocation brings: four neighbours along the tile's side at one inner index (`along_side`),
// or four inner indices at one place of the side.
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

fn keep_a(index: u32, values: vec4f) {
    let at = place(index, TRANSPOSE_A == 1u);
    let high = to_half(values);
    @if SPLIT { let low = low_half(values, high); }
    if (TRANSPOSE_A == 1u) {
        let to = spot(at.depth, at.side / 4u);
        a_tile[to] = high;
        @if SPLIT { a_low[to] = low; }
    } else {
        @unroll for (var q = 0u; q < 4; q++) {
            let to = spot(at.depth + q, at.side / 4u);
            a_tile[to][at.side % 4u] = high[q];
            @if SPLIT { a_low[to][at.side % 4u] = low[q]; }
        }
    }
}

fn keep_b(index: u32, values: vec4f) {
    let at = place(index, TRANSPOSE_B == 0u);
    let high = to_half(values);
    @if SPLIT { let low = low_half(values, high); }
    if (TRANSPOSE_B == 0u) {
        let to = spot(at.depth, at.side / 4u);
        b_tile[to] = high;
        @if SPLIT { b_low[to] = low; }
    } else {
        @unroll for (var q = 0u; q < 4; q++) {
            let to = spot(at.depth + q, at.side / 4u);
            b_tile[to][at.side % 4u] = high[q];
            @if SPLIT { b_low[to][at.side % 4u] = low[q]; }
        }
    }
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let row = (args.first_group + group.y) * TILE;
    let column = group.x * TILE;
    let share = share(group.z);
    let a_base = args.a_offset + share.batch * args.a_batch;
    let b_base = args.b_offset + share.batch * args.b_batch;
    let mine_row = local / 16u;
    let mine_column = local % 16u;
    if (SYMMETRIC == 1u && column >= row + TILE) { return; }
    // Four rows of one group by four columns of another: sum[(rows·4 + row)·GROUPS + columns].
    var sum: array<vec4f, 4u * GROUPS * GROUPS>;
    var next_a: array<vec4f, GROUPS>;
    var next_b: array<vec4f, GROUPS>;
    var x: array<vec4f, GROUPS>;
    var y: array<vec4f, GROUPS>;
    @if SPLIT {
        var x_low: array<vec4f, GROUPS>;
        var y_low: array<vec4f, GROUPS>;
    }
    @unroll for (var g = 0u; g < GROUPS; g++) {
        next_a[g] = fetch_a(g * 256u + local, row, share.first, a_base);
        next_b[g] = fetch_b(g * 256u + local, column, share.first, b_base);
    }
    for (var k = share.first; k < share.end; k += DEPTH) {
        @unroll for (var g = 0u; g < GROUPS; g++) {
            keep_a(g * 256u + local, next_a[g]);
            keep_b(g * 256u + local, next_b[g]);
        }
        workgroupBarrier();
        @unroll for (var g = 0u; g < GROUPS; g++) {
            next_a[g] = fetch_a(g * 256u + local, row, k + DEPTH, a_base);
            next_b[g] = fetch_b(g * 256u + local, column, k + DEPTH, b_base);
        }
        // Written out by four: all sixteen cost lavapipe seconds to compile, and GPUs the cache of their instructions.
        for (var quarter = 0u; quarter < DEPTH; quarter += 4u) {
            @unroll for (var d = 0u; d < 4; d++) {
                @unroll for (var g = 0u; g < GROUPS; g++) {
                    x[g] = a_tile[spot(quarter + d, g * 16u + mine_row)];
                    y[g] = b_tile[spot(quarter + d, g * 16u + mine_column)];
                    @if SPLIT {
                        x_low[g] = a_low[spot(quarter + d, g * 16u + mine_row)];
                        y_low[g] = b_low[spot(quarter + d, g * 16u + mine_column)];
                    }
                }
                @unroll for (var i = 0u; i < GROUPS; i++) {
                    @unroll for (var q = 0u; q < 4; q++) {
                        @unroll for (var j = 0u; j < GROUPS; j++) {
                            sum[(i * 4u + q) * GROUPS + j] = fma(vec4f(x[i][q]), y[j], sum[(i * 4u + q) * GROUPS + j]);
                            @if SPLIT {
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
