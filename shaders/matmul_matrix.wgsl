// Product with cooperative matrices: f16 inputs (two per element with F16X3), f32 accumulation.
//
// A workgroup of 256 invocations computes a TILE × TILE output tile. It loads operand tiles of TILE × DEPTH to shared memory in
// their storage order; the cooperative loads transpose. The output tile is divided into REGIONS regions, ACROSS per row, of
// REGION_ROWS × REGION_COLUMNS blocks; one subgroup accumulates each region. REGIONS is the number of subgroups at the maximum
// subgroup size; with smaller subgroups, the surplus ones only load. Conditions on the subgroup are written as loops that run
// once: naga treats an `if` as divergent control flow, where cooperative operations are not allowed.
//
// Constants: TILE, GROUPS = TILE / 64, LARGE (blocks of 16 × 16, else 8 × 8), STEPS = DEPTH / BLOCK, REGIONS, ACROSS, REGION_ROWS,
// REGION_COLUMNS, BLOCKS = REGION_ROWS · REGION_COLUMNS, QUOTA (vec4s per invocation of one staged block per region), TRANSPOSE_A,
// TRANSPOSE_B, VECTORS, F16_TERMS, F16X3.

enable f16;
enable wgpu_cooperative_matrix;

@if LARGE {
    const BLOCK: u32 = 16u;
    alias Left = coop_mat16x16<f16, A>;
    alias Right = coop_mat16x16<f16, B>;
    alias Sum = coop_mat16x16<f32, C>;
} @else {
    const BLOCK: u32 = 8u;
    alias Left = coop_mat8x8<f16, A>;
    alias Right = coop_mat8x8<f16, B>;
    alias Sum = coop_mat8x8<f32, C>;
}

const DEPTH: u32 = 16u;
// Row strides of a tile stored along the inner dimension, or along its side; padded by eight against bank conflicts.
const DEEP: u32 = DEPTH + 8u;
const WIDE: u32 = TILE + 8u;

// op(A): [TILE][DEEP], or [DEPTH][WIDE] if A is transposed. op(B): [DEPTH][WIDE], or [TILE][DEEP] if B is transposed.
var<workgroup> a_tile: array<f16, TILE * DEEP>;
var<workgroup> b_tile: array<f16, TILE * DEEP>;
@if F16X3 {
    // Rounding residuals, times 2¹¹.
    var<workgroup> a_low: array<f16, TILE * DEEP>;
    var<workgroup> b_low: array<f16, TILE * DEEP>;
}
// Staging: one block of sums per region.
var<workgroup> staged: array<f32, REGIONS * BLOCK * BLOCK>;

// Tile coordinates and shared-memory offset of the vec4 that an invocation loads: four consecutive rows or columns at one inner
// index (`along_side`), or four consecutive inner indices of one row or column.
struct Place { side: u32, depth: u32, offset: u32 }

fn place(index: u32, along_side: bool) -> Place {
    if (along_side) {
        let side = (index % (TILE / 4u)) * 4u;
        let depth = index / (TILE / 4u);
        return Place(side, depth, depth * WIDE + side);
    }
    let side = index / (DEPTH / 4u);
    let depth = (index % (DEPTH / 4u)) * 4u;
    return Place(side, depth, side * DEEP + depth);
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

// The values are already rounded to f16, so the conversion f16() is exact in any rounding mode.
fn store_a(index: u32, values: vec4f) {
    let offset = place(index, TRANSPOSE_A == 1u).offset;
    let high = to_half(values);
    @unroll for (var q = 0u; q < 4; q++) { a_tile[offset + q] = f16(high[q]); }
    @if F16X3 {
        let low = to_half((values - high) * 2048.0);
        @unroll for (var q = 0u; q < 4; q++) { a_low[offset + q] = f16(low[q]); }
    }
}

fn store_b(index: u32, values: vec4f) {
    let offset = place(index, TRANSPOSE_B == 0u).offset;
    let high = to_half(values);
    @unroll for (var q = 0u; q < 4; q++) { b_tile[offset + q] = f16(high[q]); }
    @if F16X3 {
        let low = to_half((values - high) * 2048.0);
        @unroll for (var q = 0u; q < 4; q++) { b_low[offset + q] = f16(low[q]); }
    }
}

// Four consecutive staged sums; clamped beyond the end.
fn staged_vec4(index: u32) -> vec4f {
    let at = min(index * 4u, REGIONS * BLOCK * BLOCK - 4u);
    return vec4f(staged[at], staged[at + 1u], staged[at + 2u], staged[at + 3u]);
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(local_invocation_index) local: u32,
    @builtin(subgroup_id) region: u32,
) {
    let row = (args.first_group + group.y) * TILE;
    let column = group.x * TILE;
    let range = k_range(group.z);
    let a_base = args.a_offset + range.batch * args.a_batch;
    let b_base = args.b_offset + range.batch * args.b_batch;
    @if SYMMETRIC { if (column >= row + TILE) { return; } }
    let first_row = region / ACROSS * REGION_ROWS * BLOCK;
    let first_column = region % ACROSS * REGION_COLUMNS * BLOCK;
    var sum: array<Sum, BLOCKS>;
    var left: array<Left, REGION_ROWS>;
    @if F16X3 {
        var rest: array<Sum, BLOCKS>; // sums of the residual products, times 2¹¹
        var left_low: array<Left, REGION_ROWS>;
        var low: array<vec4f, QUOTA>;
    }
    var next_a: array<vec4f, GROUPS>;
    var next_b: array<vec4f, GROUPS>;
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
        while (region < REGIONS) {
            @unroll for (var s = 0u; s < STEPS; s++) {
                @unroll for (var i = 0u; i < REGION_ROWS; i++) {
                    @if TRANSPOSE_A {
                        let at = s * BLOCK * WIDE + first_row + i * BLOCK;
                        left[i] = coopLoad<Left>(&a_tile[at], WIDE);
                        @if F16X3 { left_low[i] = coopLoad<Left>(&a_low[at], WIDE); }
                    } @else {
                        let at = (first_row + i * BLOCK) * DEEP + s * BLOCK;
                        left[i] = coopLoadT<Left>(&a_tile[at], DEEP);
                        @if F16X3 { left_low[i] = coopLoadT<Left>(&a_low[at], DEEP); }
                    }
                }
                @unroll for (var j = 0u; j < REGION_COLUMNS; j++) {
                    @if TRANSPOSE_B {
                        let at = (first_column + j * BLOCK) * DEEP + s * BLOCK;
                        let right = coopLoad<Right>(&b_tile[at], DEEP);
                        @if F16X3 { let right_low = coopLoad<Right>(&b_low[at], DEEP); }
                    } @else {
                        let at = s * BLOCK * WIDE + first_column + j * BLOCK;
                        let right = coopLoadT<Right>(&b_tile[at], WIDE);
                        @if F16X3 { let right_low = coopLoadT<Right>(&b_low[at], WIDE); }
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
            break;
        }
        workgroupBarrier();
    }
    // One block per region at a time through shared memory: the lane layout of a cooperative matrix is opaque.
    @unroll for (var j = 0u; j < REGION_COLUMNS; j++) {
        @unroll for (var i = 0u; i < REGION_ROWS; i++) {
            @if F16X3 {
                while (region < REGIONS) {
                    coopStoreT(rest[j * REGION_ROWS + i], &staged[region * BLOCK * BLOCK], BLOCK);
                    break;
                }
                workgroupBarrier();
                @unroll for (var n = 0u; n < QUOTA; n++) { low[n] = staged_vec4(n * 256u + local); }
                workgroupBarrier();
            }
            while (region < REGIONS) {
                coopStoreT(sum[j * REGION_ROWS + i], &staged[region * BLOCK * BLOCK], BLOCK);
                break;
            }
            workgroupBarrier();
            @unroll for (var n = 0u; n < QUOTA; n++) {
                let index = n * 256u + local;
                var value = staged_vec4(index);
                @if F16X3 { value = fma(low[n], vec4f(0.00048828125), value); }
                let source = index / (BLOCK * BLOCK / 4u);
                let block_row = source / ACROSS * REGION_ROWS + i;
                let block_column = source % ACROSS * REGION_COLUMNS + j;
                let offset = index % (BLOCK * BLOCK / 4u);
                if (source < REGIONS) {
                    let at = row + block_row * BLOCK + offset / (BLOCK / 4u);
                    finish(at, column + block_column * BLOCK + offset % (BLOCK / 4u) * 4u, group.z, value);
                }
            }
            workgroupBarrier();
        }
    }
}
