// The parts of a chain of products of f16 tiles on matrix units, accumulated in f32, for a workgroup as in attention_workgroup.wgsl.
//
// Both products give NEAR_ROWS × 4·FAR_LANES results (FAR is 4), which are divided into REGIONS regions, ACROSS per row, of REGION_ROWS ×
// REGION_COLUMNS blocks; one subgroup computes each, see matmul_matrix.wgsl. Results go through shared memory, because the lane
// layout of a cooperative matrix is opaque: scores to the lanes that hold them, sums to be added to theirs. What a tile of far rows
// gives a sum is one such product; the tiles add up in order.
//
// Constants: DIM, QUARTERS, PAIRS (near operands), FAR_PARTS (vec4s of a far tile per lane), LARGE, STEPS = ⌈DIM / BLOCK⌉, FAR_STEPS =
// FAR_ROWS / BLOCK, REGIONS, ACROSS, REGION_ROWS, REGION_COLUMNS, BLOCKS, WHOLE, HARDWARE_F16, F16_TERMS, and those of attention_workgroup.wgsl.

// vec4s of a row, whole groups of 4·FAR_LANES columns; from row to row, padded by eight f16 against bank conflicts.
const WIDE: u32 = COLUMNS * FAR_LANES;
const PITCH: u32 = WIDE + 2u;
const WEIGHT_PITCH: u32 = FAR_ROWS / 4u + 2u;

// [PAIRS][NEAR_ROWS][PITCH], [FAR_ROWS][PITCH], [NEAR_ROWS][WEIGHT_PITCH].
var<workgroup> near_tile: array<vec4<f16>, PAIRS * NEAR_ROWS * PITCH>;
var<workgroup> far_tile: array<vec4<f16>, FAR_ROWS * PITCH>;
var<workgroup> weights: array<vec4<f16>, NEAR_ROWS * WEIGHT_PITCH>;
// Results [NEAR_ROWS][FAR_LANES], or what lanes exchange about their rows.
var<workgroup> tile: array<vec4f, NEAR_ROWS * FAR_LANES>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
    walk(group, lane_of(index, subgroup));
}

fn weight_place(lane: Lane, i: u32, quarter: u32) -> u32 { return (i * NEAR_LANES + lane.near) * WEIGHT_PITCH + quarter; }

fn weights_at(lane: Lane, i: u32, quarter: u32) -> vec4f { return vec4f(weights[weight_place(lane, i, quarter)]); }

fn put_weights(lane: Lane, i: u32, quarter: u32, value: vec4f) { weights[weight_place(lane, i, quarter)] = half(value); }

// What a row has at a quarter: zero beyond its end.
fn within(value: vec4f, quarter: u32) -> vec4f { return select(vec4f(), value, quarter < QUARTERS); }

// Fetches the near rows of all pairs, to stay.
fn hold_near(near: Rows, lane: Lane) {
    @unroll for (var pair = 0u; pair < PAIRS; pair++) {
        for (var at = lane.index; at < NEAR_ROWS * WIDE; at += LANES) {
            let value = load_near(pair, place(near, at / WIDE), min(at % WIDE, QUARTERS - 1u));
            near_tile[(pair * NEAR_ROWS + at / WIDE) * PITCH + at % WIDE] = half(within(value, at % WIDE));
        }
    }
}

// Fetches a tile of far rows.
fn fetch_far(pair: u32, far: Rows, lane: Lane) {
    var next: array<vec4<f16>, FAR_PARTS>;
    @unroll for (var p = 0u; p < FAR_PARTS; p++) {
        let at = p * LANES + lane.index;
        next[p] = half(within(load_far(pair, place(far, at / WIDE), min(at % WIDE, QUARTERS - 1u)), at % WIDE));
    }
    workgroupBarrier();
    @unroll for (var p = 0u; p < FAR_PARTS; p++) {
        let at = p * LANES + lane.index;
        far_tile[at / WIDE * PITCH + at % WIDE] = next[p];
    }
    workgroupBarrier();
}

// A lane's results.
fn result(lane: Lane, i: u32) -> vec4f { return tile[(i * NEAR_LANES + lane.near) * FAR_LANES + lane.far]; }

// The scores of a tile.
fn score_pair(pair: u32, near: Rows, far: Rows, lane: Lane, score: ptr<function, array<f32, OWN * FAR>>) {
    fetch_far(pair, far, lane);
    score_held(pair, near, far, lane, score);
}

// The same of the tile that was fetched last.
fn score_held(pair: u32, near: Rows, far: Rows, lane: Lane, score: ptr<function, array<f32, OWN * FAR>>) {
    let first_row = lane.subgroup / ACROSS * REGION_ROWS * BLOCK;
    let first_column = lane.subgroup % ACROSS * REGION_COLUMNS * BLOCK;
    @unless WHOLE for (var turn = lane.subgroup; turn < REGIONS; turn += REGIONS) {
        var product: array<Sum, BLOCKS>;
        var left: array<Left, REGION_ROWS>;
        for (var s = 0u; s < STEPS; s++) {
            @unroll for (var i = 0u; i < REGION_ROWS; i++) {
                left[i] = coopLoadT<Left>(&near_tile[(pair * NEAR_ROWS + first_row + i * BLOCK) * PITCH + s * BLOCK / 4u], PITCH);
            }
            @unroll for (var j = 0u; j < REGION_COLUMNS; j++) {
                let right = coopLoad<Right>(&far_tile[(first_column + j * BLOCK) * PITCH + s * BLOCK / 4u], PITCH);
                @unroll for (var i = 0u; i < REGION_ROWS; i++) {
                    product[j * REGION_ROWS + i] = coopMultiplyAdd(left[i], right, product[j * REGION_ROWS + i]);
                }
            }
        }
        @unroll for (var j = 0u; j < REGION_COLUMNS; j++) {
            @unroll for (var i = 0u; i < REGION_ROWS; i++) {
                let at = (first_row + i * BLOCK) * FAR_LANES + (first_column + j * BLOCK) / 4u;
                coopStoreT(product[j * REGION_ROWS + i], &tile[at], FAR_LANES);
            }
        }
    }
    workgroupBarrier();
    @unroll for (var i = 0u; i < OWN; i++) {
        let four = result(lane, i);
        @unroll for (var j = 0u; j < FAR; j++) { (*score)[i * FAR + j] = four[j]; }
    }
}

// sum += weights·far, 4·FAR_LANES columns at a time.
fn accumulate(pair: u32, far: Rows, lane: Lane, sum: ptr<function, array<vec4f, OWN * COLUMNS>>) {
    fetch_far(pair, far, lane);
    let first_row = lane.subgroup / ACROSS * REGION_ROWS * BLOCK;
    let first_column = lane.subgroup % ACROSS * REGION_COLUMNS * BLOCK;
    @unroll for (var c = 0u; c < COLUMNS; c++) {
        @unless WHOLE for (var turn = lane.subgroup; turn < REGIONS; turn += REGIONS) {
            var product: array<Sum, BLOCKS>;
            var left: array<Left, REGION_ROWS>;
            for (var s = 0u; s < FAR_STEPS; s++) {
                @unroll for (var i = 0u; i < REGION_ROWS; i++) {
                    left[i] = coopLoadT<Left>(&weights[(first_row + i * BLOCK) * WEIGHT_PITCH + s * BLOCK / 4u], WEIGHT_PITCH);
                }
                @unroll for (var j = 0u; j < REGION_COLUMNS; j++) {
                    let at = s * BLOCK * PITCH + c * FAR_LANES + (first_column + j * BLOCK) / 4u;
                    let right = coopLoadT<Right>(&far_tile[at], PITCH);
                    @unroll for (var i = 0u; i < REGION_ROWS; i++) {
                        product[j * REGION_ROWS + i] = coopMultiplyAdd(left[i], right, product[j * REGION_ROWS + i]);
                    }
                }
            }
            @unroll for (var j = 0u; j < REGION_COLUMNS; j++) {
                @unroll for (var i = 0u; i < REGION_ROWS; i++) {
                    let at = (first_row + i * BLOCK) * FAR_LANES + (first_column + j * BLOCK) / 4u;
                    coopStoreT(product[j * REGION_ROWS + i], &tile[at], FAR_LANES);
                }
            }
        }
        workgroupBarrier();
        @unroll for (var i = 0u; i < OWN; i++) { (*sum)[i * COLUMNS + c] += result(lane, i); }
        workgroupBarrier();
    }
}
