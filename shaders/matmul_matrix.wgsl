// out = α·op(A)·op(B) + β·C + δ·I + κ·out with cooperative matrices: operands rounded to f16 (SPLIT: two of them), sums f32.
//
// A workgroup of 256 invocations computes TILE × TILE outputs. It brings tiles of TILE × DEPTH to shared memory, in the order in
// which their matrices hold them, so that neither needs to be transposed. The tile of outputs is divided into REGIONS regions,
// ACROSS of them side by side, of REGION_ROWS × REGION_COLUMNS blocks; a subgroup holds the sums of one region. REGIONS is the
// number of subgroups where they are as large as they may be; where they are smaller, some only help to load. Conditions on the
// subgroup are loops of one round: naga takes an `if` for a branch between lanes, where matrices may not be touched.
//
// Constants: TILE, GROUPS = TILE / 64, LARGE (blocks of 16 × 16, else 8 × 8), STEPS = DEPTH / BLOCK, REGIONS, ACROSS, REGION_ROWS,
// REGION_COLUMNS, BLOCKS = REGION_ROWS · REGION_COLUMNS, QUOTA (vec4s of one block of every region, per invocation), TRANSPOSE_A, TRANSPOSE_B, VECTORS, HALVES, SPLIT.

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
// From one line of a tile to the next: along the inner dimension, or along the tile's side. Eight more spread them over the banks.
const DEEP: u32 = DEPTH + 8u;
const WIDE: u32 = TILE + 8u;

// op(A): [TILE][DEEP], or [DEPTH][WIDE] where A is transposed. op(B): [DEPTH][WIDE], or [TILE][DEEP] where B is transposed.
var<workgroup> a_tile: array<f16, TILE * DEEP>;
var<workgroup> b_tile: array<f16, TILE * DEEP>;
@if SPLIT {
    // What the halves lost, times 2¹¹.
    var<workgroup> a_low: array<f16, TILE * DEEP>;
    var<workgroup> b_low: array<f16, TILE * DEEP>;
}
// A block of sums of every region.
var<workgroup> made: array<f32, REGIONS * BLOCK * BLOCK>;

// The vec4 of an operand that an invocation brings, and its place in the tile: four neighbours along the tile's side at one inner
// index (`along_side`), or four inner indices at one place of the side.
struct Place { side: u32, depth: u32, spot: u32 }

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

// The values are halves already, which f16() keeps however the adapter rounds.
fn keep_a(index: u32, values: vec4f) {
    let spot = place(index, TRANSPOSE_A == 1u).spot;
    let high = to_half(values);
    @unroll for (var q = 0u; q < 4; q++) { a_tile[spot + q] = f16(high[q]); }
    @if SPLIT {
        let low = to_half((values - high) * 2048.0);
        @unroll for (var q = 0u; q < 4; q++) { a_low[spot + q] = f16(low[q]); }
    }
}

fn keep_b(index: u32, values: vec4f) {
    let spot = place(index, TRANSPOSE_B == 0u).spot;
    let high = to_half(values);
    @unroll for (var q = 0u; q < 4; q++) { b_tile[spot + q] = f16(high[q]); }
    @if SPLIT {
        let low = to_half((values - high) * 2048.0);
        @unroll for (var q = 0u; q < 4; q++) { b_low[spot + q] = f16(low[q]); }
    }
}

// Four neighbours of the blocks that were made, or any where there are no more.
fn made_vec4(index: u32) -> vec4f {
    let at = min(index * 4u, REGIONS * BLOCK * BLOCK - 4u);
    return vec4f(made[at], made[at + 1u], made[at + 2u], made[at + 3u]);
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(local_invocation_index) local: u32,
    @builtin(subgroup_id) region: u32,
) {
    let row = (args.first_group + group.y) * TILE;
    let column = group.x * TILE;
    let share = share(group.z);
    let a_base = args.a_offset + share.batch * args.a_batch;
    let b_base = args.b_offset + share.batch * args.b_batch;
    @if SYMMETRIC { if (column >= row + TILE) { return; } }
    let first_row = region / ACROSS * REGION_ROWS * BLOCK;
    let first_column = region % ACROSS * REGION_COLUMNS * BLOCK;
    var sum: array<Sum, BLOCKS>;
    var left: array<Left, REGION_ROWS>;
    @if SPLIT {
        var rest: array<Sum, BLOCKS>; // times 2¹¹
        var left_low: array<Left, REGION_ROWS>;
        var low: array<vec4f, QUOTA>;
    }
    var next_a: array<vec4f, GROUPS>;
    var next_b: array<vec4f, GROUPS>;
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
        while (region < REGIONS) {
            @unroll for (var s = 0u; s < STEPS; s++) {
                @unroll for (var i = 0u; i < REGION_ROWS; i++) {
                    @if TRANSPOSE_A {
                        let at = s * BLOCK * WIDE + first_row + i * BLOCK;
                        left[i] = coopLoad<Left>(&a_tile[at], WIDE);
                        @if SPLIT { left_low[i] = coopLoad<Left>(&a_low[at], WIDE); }
                    } @else {
                        let at = (first_row + i * BLOCK) * DEEP + s * BLOCK;
                        left[i] = coopLoadT<Left>(&a_tile[at], DEEP);
                        @if SPLIT { left_low[i] = coopLoadT<Left>(&a_low[at], DEEP); }
                    }
                }
                @unroll for (var j = 0u; j < REGION_COLUMNS; j++) {
                    @if TRANSPOSE_B {
                        let at = (first_column + j * BLOCK) * DEEP + s * BLOCK;
                        let right = coopLoad<Right>(&b_tile[at], DEEP);
                        @if SPLIT { let right_low = coopLoad<Right>(&b_low[at], DEEP); }
                    } @else {
                        let at = s * BLOCK * WIDE + first_column + j * BLOCK;
                        let right = coopLoadT<Right>(&b_tile[at], WIDE);
                        @if SPLIT { let right_low = coopLoadT<Right>(&b_low[at], WIDE); }
                    }
                    @unroll for (var i = 0u; i < REGION_ROWS; i++) {
                        sum[j * REGION_ROWS + i] = coopMultiplyAdd(left[i], right, sum[j * REGION_ROWS + i]);
                        @if SPLIT {
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
    // One block of every region at a time, through shared memory: which lane holds what of a matrix is the adapter's business.
    @unroll for (var j = 0u; j < REGION_COLUMNS; j++) {
        @unroll for (var i = 0u; i < REGION_ROWS; i++) {
            @if SPLIT {
                while (region < REGIONS) {
                    coopStoreT(rest[j * REGION_ROWS + i], &made[region * BLOCK * BLOCK], BLOCK);
                    break;
                }
                workgroupBarrier();
                @unroll for (var n = 0u; n < QUOTA; n++) { low[n] = made_vec4(n * 256u + local); }
                workgroupBarrier();
            }
            while (region < REGIONS) {
                coopStoreT(sum[j * REGION_ROWS + i], &made[region * BLOCK * BLOCK], BLOCK);
                break;
            }
            workgroupBarrier();
            @unroll for (var n = 0u; n < QUOTA; n++) {
                let index = n * 256u + local;
                var value = made_vec4(index);
                @if SPLIT { value = fma(low[n], vec4f(0.00048828125), value); }
                let maker = index / (BLOCK * BLOCK / 4u);
                let block_row = maker / ACROSS * REGION_ROWS + i;
                let block_column = maker % ACROSS * REGION_COLUMNS + j;
                let spot = index % (BLOCK * BLOCK / 4u);
                if (maker < REGIONS) {
                    let at = row + block_row * BLOCK + spot / (BLOCK / 4u);
                    finish(at, column + block_column * BLOCK + spot % (BLOCK / 4u) * 4u, group.z, value);
                }
            }
            workgroupBarrier();
        }
    }
}
