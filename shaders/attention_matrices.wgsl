// The parts of a chain of products of f16 tiles on matrix units, accumulated in f32, for a workgroup as in attention_workgroup.wgsl.
//
// Both products give NEAR_ROWS × 4·FAR_LANES results, which are divided into REGIONS regions, ACROSS per row, of REGION_ROWS ×
// REGION_COLUMNS blocks; one subgroup computes each, see matmul_matrix.wgsl. FAR is 4, and NEAR_LANES is FAR_LANES. Results go
// through shared memory, because the lane layout of a cooperative matrix is opaque: scores to the lanes that hold them, sums to be
// added to theirs. What a tile of far rows gives a sum is one such product; the tiles add up in order. Windows of queries begin at
// whole tiles (windows.rs), so that they change no bit, unless a binding holds fewer than 64 queries.
//
// Constants: those of attention_workgroup.wgsl, PAIRS (near operands), STEPS = ⌈DIM / BLOCK⌉, FAR_STEPS = FAR_ROWS / BLOCK, and of
// matmul_matrix.wgsl LARGE, SCALARS, REGIONS, ACROSS, REGION_ROWS, REGION_COLUMNS, BLOCKS, WHOLE, HARDWARE_F16 and F16_TERMS.

// vec4s of a row, whole groups of 4·FAR_LANES columns; from row to row, padded by eight f16 against bank conflicts.
const WIDE: u32 = COLUMNS * FAR_LANES;
const PITCH: u32 = WIDE + 2u;
const WEIGHT_PITCH: u32 = FAR_ROWS / 4u + 2u;

// [PAIRS][NEAR_ROWS][PITCH], [FAR_ROWS][PITCH], [NEAR_ROWS][WEIGHT_PITCH].
var<workgroup> near_tile: array<Halves, UNIT * PAIRS * NEAR_ROWS * PITCH>;
var<workgroup> far_tile: array<Halves, UNIT * FAR_ROWS * PITCH>;
var<workgroup> weights: array<Halves, UNIT * NEAR_ROWS * WEIGHT_PITCH>;
// Results [NEAR_ROWS][FAR_LANES], or what lanes exchange about their rows.
var<workgroup> tile: array<Singles, UNIT * NEAR_ROWS * FAR_LANES>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
    walk(group, lane_of(index, subgroup));
}

@if SCALARS {
    fn put_near(to: u32, x: vec4<f16>) { @unroll for (var e = 0u; e < 4; e++) { near_tile[4u * to + e] = x[e]; } }
    fn put_far(to: u32, x: vec4<f16>) { @unroll for (var e = 0u; e < 4; e++) { far_tile[4u * to + e] = x[e]; } }
    fn put_weight(to: u32, x: vec4<f16>) { @unroll for (var e = 0u; e < 4; e++) { weights[4u * to + e] = x[e]; } }
    fn weight(at: u32) -> vec4<f16> {
        return vec4<f16>(weights[4u * at], weights[4u * at + 1u], weights[4u * at + 2u], weights[4u * at + 3u]);
    }
    fn exchange(to: u32, x: vec4f) { @unroll for (var e = 0u; e < 4; e++) { tile[4u * to + e] = x[e]; } }
    fn exchanged(at: u32) -> vec4f { return vec4f(tile[4u * at], tile[4u * at + 1u], tile[4u * at + 2u], tile[4u * at + 3u]); }
} @else {
    fn put_near(to: u32, x: vec4<f16>) { near_tile[to] = x; }
    fn put_far(to: u32, x: vec4<f16>) { far_tile[to] = x; }
    fn put_weight(to: u32, x: vec4<f16>) { weights[to] = x; }
    fn weight(at: u32) -> vec4<f16> { return weights[at]; }
    fn exchange(to: u32, x: vec4f) { tile[to] = x; }
    fn exchanged(at: u32) -> vec4f { return tile[at]; }
}

fn weight_place(lane: Lane, i: u32, quarter: u32) -> u32 { return (i * NEAR_LANES + lane.near) * WEIGHT_PITCH + quarter; }

fn weights_at(lane: Lane, i: u32, quarter: u32) -> vec4f { return vec4f(weight(weight_place(lane, i, quarter))); }

fn put_weights(lane: Lane, i: u32, quarter: u32, value: vec4f) { put_weight(weight_place(lane, i, quarter), half(value)); }

// What a row has at a quarter: zero beyond its end.
fn within(value: vec4f, quarter: u32) -> vec4f { return select(vec4f(), value, quarter < QUARTERS); }

// Fetches the near rows of all pairs, to stay.
fn hold_near(near: Rows, lane: Lane) {
    @unroll for (var pair = 0u; pair < PAIRS; pair++) {
        for (var c = 0u; c < rolled(COLUMNS); c++) {
            let quarter = c * FAR_LANES + lane.far;
            @unroll for (var i = 0u; i < OWN; i++) {
                let row = i * NEAR_LANES + lane.near;
                let value = load_near(pair, place(near, row), min(quarter, QUARTERS - 1u));
                put_near((pair * NEAR_ROWS + row) * PITCH + quarter, half(within(value, quarter)));
            }
        }
    }
}

// Fetches a tile of far rows.
fn fetch_far(pair: u32, far: Rows, lane: Lane) {
    workgroupBarrier();
    for (var c = 0u; c < rolled(COLUMNS); c++) {
        let quarter = c * FAR_LANES + lane.far;
        var next: array<vec4<f16>, FAR>;
        @unroll for (var j = 0u; j < FAR; j++) {
            let value = load_far(pair, place(far, j * NEAR_LANES + lane.near), min(quarter, QUARTERS - 1u));
            next[j] = half(within(value, quarter));
        }
        @unroll for (var j = 0u; j < FAR; j++) { put_far((j * NEAR_LANES + lane.near) * PITCH + quarter, next[j]); }
    }
    workgroupBarrier();
}

// The first row and column of a subgroup's region.
fn region_row(lane: Lane) -> u32 { return lane.subgroup / ACROSS * REGION_ROWS * BLOCK; }

fn region_column(lane: Lane) -> u32 { return lane.subgroup % ACROSS * REGION_COLUMNS * BLOCK; }

fn store_region(lane: Lane, product: ptr<function, array<Sum, BLOCKS>>) {
    @unroll for (var j = 0u; j < REGION_COLUMNS; j++) {
        @unroll for (var i = 0u; i < REGION_ROWS; i++) {
            let at = (region_row(lane) + i * BLOCK) * FAR_LANES + (region_column(lane) + j * BLOCK) / 4u;
            coopStoreT((*product)[j * REGION_ROWS + i], &tile[UNIT * at], UNIT * FAR_LANES);
        }
    }
}

// A lane's results of its own row i.
fn result(lane: Lane, i: u32) -> vec4f { return exchanged((i * NEAR_LANES + lane.near) * FAR_LANES + lane.far); }

// The scores of a tile.
fn score_pair(pair: u32, near: Rows, far: Rows, lane: Lane, score: ptr<function, array<f32, OWN * FAR>>) {
    fetch_far(pair, far, lane);
    score_held(pair, near, far, lane, score);
}

// The same of the tile that was fetched last.
fn score_held(pair: u32, near: Rows, far: Rows, lane: Lane, score: ptr<function, array<f32, OWN * FAR>>) {
    @unless WHOLE for (var turn = lane.subgroup; turn < REGIONS; turn += REGIONS) {
        var product: array<Sum, BLOCKS>;
        var left: array<Left, REGION_ROWS>;
        for (var s = 0u; s < STEPS; s++) {
            @unroll for (var i = 0u; i < REGION_ROWS; i++) {
                let at = (pair * NEAR_ROWS + region_row(lane) + i * BLOCK) * PITCH + s * BLOCK / 4u;
                left[i] = coopLoadT<Left>(&near_tile[UNIT * at], UNIT * PITCH);
            }
            @unroll for (var j = 0u; j < REGION_COLUMNS; j++) {
                let at = (region_column(lane) + j * BLOCK) * PITCH + s * BLOCK / 4u;
                let right = coopLoad<Right>(&far_tile[UNIT * at], UNIT * PITCH);
                @unroll for (var i = 0u; i < REGION_ROWS; i++) {
                    product[j * REGION_ROWS + i] = coopMultiplyAdd(left[i], right, product[j * REGION_ROWS + i]);
                }
            }
        }
        store_region(lane, &product);
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
    @unroll for (var c = 0u; c < COLUMNS; c++) {
        @unless WHOLE for (var turn = lane.subgroup; turn < REGIONS; turn += REGIONS) {
            var product: array<Sum, BLOCKS>;
            var left: array<Left, REGION_ROWS>;
            for (var s = 0u; s < FAR_STEPS; s++) {
                @unroll for (var i = 0u; i < REGION_ROWS; i++) {
                    let at = (region_row(lane) + i * BLOCK) * WEIGHT_PITCH + s * BLOCK / 4u;
                    left[i] = coopLoadT<Left>(&weights[UNIT * at], UNIT * WEIGHT_PITCH);
                }
                @unroll for (var j = 0u; j < REGION_COLUMNS; j++) {
                    let at = s * BLOCK * PITCH + c * FAR_LANES + (region_column(lane) + j * BLOCK) / 4u;
                    let right = coopLoadT<Right>(&far_tile[UNIT * at], UNIT * PITCH);
                    @unroll for (var i = 0u; i < REGION_ROWS; i++) {
                        product[j * REGION_ROWS + i] = coopMultiplyAdd(left[i], right, product[j * REGION_ROWS + i]);
                    }
                }
            }
            store_region(lane, &product);
        }
        workgroupBarrier();
        @unroll for (var i = 0u; i < OWN; i++) { (*sum)[i * COLUMNS + c] += result(lane, i); }
        workgroupBarrier();
    }
}
