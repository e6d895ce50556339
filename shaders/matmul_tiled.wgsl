// out = α·op(A)·op(B) + β·C + δ·I + κ·out for GPUs: a workgroup of 16 × 16 invocations computes 64 × 64 outputs, 4 × 4 each,
// from tiles of 64 × 16 in shared memory (8 KiB, twice that with SPLIT).
//
// Constants: TRANSPOSE_A, TRANSPOSE_B, VECTORS, HALVES, SPLIT.

@group(0) @binding(0) var<storage, read> a: array<Element>;
@group(0) @binding(1) var<storage, read> b: array<Element>;
@group(0) @binding(2) var<storage, read> c: array<Element>;
@group(0) @binding(3) var<storage, read> factor: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<Element>;

const TILE: u32 = 64u;
const DEPTH: u32 = 16u;

// Both as [DEPTH][TILE / 4]: four rows of op(A), four columns of op(B), at one inner index.
var<workgroup> a_tile: array<vec4f, DEPTH * TILE / 4u>;
var<workgroup> b_tile: array<vec4f, DEPTH * TILE / 4u>;
@if SPLIT {
    var<workgroup> a_low: array<vec4f, DEPTH * TILE / 4u>;
    var<workgroup> b_low: array<vec4f, DEPTH * TILE / 4u>;
}

// One vec4 of an operand's tile per invocation: four neighbours along the tile's side at one inner index (`along_side`), or
// four inner indices at one place of the side.
struct Place { side: u32, depth: u32 }

fn place(local: u32, along_side: bool) -> Place {
    if (along_side) { return Place((local % (TILE / 4u)) * 4u, local / (TILE / 4u)); }
    return Place(local / (DEPTH / 4u), (local % (DEPTH / 4u)) * 4u);
}

fn fill_a(row: u32, k: u32, local: u32, base: u32) {
    if (TRANSPOSE_A == 1u) {
        let at = place(local, true);
        var values = vec4f();
        if (k + at.depth < args.inner && row + at.side < args.rows) {
            values = load_a(base + (k + at.depth) * args.a_stride + row + at.side, args.rows - row - at.side);
        }
        let high = to_half(values);
        a_tile[at.depth * (TILE / 4u) + at.side / 4u] = high;
        @if SPLIT { a_low[at.depth * (TILE / 4u) + at.side / 4u] = low_half(values, high); }
        return;
    }
    let at = place(local, false);
    var values = vec4f();
    if (k + at.depth < args.inner && row + at.side < args.rows) {
        values = load_a(base + (row + at.side) * args.a_stride + k + at.depth, args.inner - k - at.depth);
    }
    let high = to_half(values);
    for (var q = 0u; q < 4u; q++) {
        a_tile[(at.depth + q) * (TILE / 4u) + at.side / 4u][at.side % 4u] = high[q];
    }
    @if SPLIT {
        let low = low_half(values, high);
        for (var q = 0u; q < 4u; q++) {
            a_low[(at.depth + q) * (TILE / 4u) + at.side / 4u][at.side % 4u] = low[q];
        }
    }
}

fn fill_b(column: u32, k: u32, local: u32, base: u32) {
    if (TRANSPOSE_B == 0u) {
        let at = place(local, true);
        var values = vec4f();
        if (k + at.depth < args.inner && column + at.side < args.columns) {
            values = load_b(base + (k + at.depth) * args.b_stride + column + at.side, args.columns - column - at.side);
        }
        let high = to_half(values);
        b_tile[at.depth * (TILE / 4u) + at.side / 4u] = high;
        @if SPLIT { b_low[at.depth * (TILE / 4u) + at.side / 4u] = low_half(values, high); }
        return;
    }
    let at = place(local, false);
    var values = vec4f();
    if (k + at.depth < args.inner && column + at.side < args.columns) {
        values = load_b(base + (column + at.side) * args.b_stride + k + at.depth, args.inner - k - at.depth);
    }
    let high = to_half(values);
    for (var q = 0u; q < 4u; q++) {
        b_tile[(at.depth + q) * (TILE / 4u) + at.side / 4u][at.side % 4u] = high[q];
    }
    @if SPLIT {
        let low = low_half(values, high);
        for (var q = 0u; q < 4u; q++) {
            b_low[(at.depth + q) * (TILE / 4u) + at.side / 4u][at.side % 4u] = low[q];
        }
    }
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let row = group.y * TILE;
    let column = group.x * TILE;
    let a_base = args.a_offset + group.z * args.a_batch;
    let b_base = args.b_offset + group.z * args.b_batch;
    let mine_row = local / 16u;
    let mine_column = local % 16u;
    if (SYMMETRIC == 1u && column >= row + TILE) { return; }
    var sum0 = vec4f();
    var sum1 = vec4f();
    var sum2 = vec4f();
    var sum3 = vec4f();
    for (var k = 0u; k < args.inner; k += DEPTH) {
        fill_a(row, k, local, a_base);
        fill_b(column, k, local, b_base);
        workgroupBarrier();
        @unroll for (var d = 0u; d < 16; d++) {
            let x = a_tile[d * (TILE / 4u) + mine_row];
            let y = b_tile[d * (TILE / 4u) + mine_column];
            sum0 = fma(vec4f(x.x), y, sum0);
            sum1 = fma(vec4f(x.y), y, sum1);
            sum2 = fma(vec4f(x.z), y, sum2);
            sum3 = fma(vec4f(x.w), y, sum3);
            @if SPLIT {
                let x_low = a_low[d * (TILE / 4u) + mine_row];
                let y_low = b_low[d * (TILE / 4u) + mine_column];
                sum0 = fma(vec4f(x.x), y_low, fma(vec4f(x_low.x), y, sum0));
                sum1 = fma(vec4f(x.y), y_low, fma(vec4f(x_low.y), y, sum1));
                sum2 = fma(vec4f(x.z), y_low, fma(vec4f(x_low.z), y, sum2));
                sum3 = fma(vec4f(x.w), y_low, fma(vec4f(x_low.w), y, sum3));
            }
        }
        workgroupBarrier();
    }
    finish(row + mine_row * 4u, column + mine_column * 4u, group.z, sum0);
    finish(row + mine_row * 4u + 1u, column + mine_column * 4u, group.z, sum1);
    finish(row + mine_row * 4u + 2u, column + mine_column * 4u, group.z, sum2);
    finish(row + mine_row * 4u + 3u, column + mine_column * 4u, group.z, sum3);
}
