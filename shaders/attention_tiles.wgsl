// The parts of a chain of tiled products in f32, for a workgroup as in attention_workgroup.wgsl.
//
// Near rows are dealt out in turn (a lane's OWN rows are i·NEAR_LANES + its own), far rows in runs of FAR, so that a lane's weights of
// one near row are vec4s. All shared memory is read in vec4s, by lanes that share an address or have banks of their own: per
// multiply-add, (OWN + FAR) / (4·OWN·FAR) loads for a score and (OWN + 4·COLUMNS) / (16·OWN·COLUMNS) for a sum.
//
// Every sum is one chain of fused multiply-adds in the order of the far rows, and a masked pair adds zero: neither windows nor the
// place of a row in its tile change a bit.
//
// Constants: DIM, QUARTERS, DEPTH, VALUE_ROWS, the vec4s that a lane fetches, NEAR_PARTS, FAR_PARTS and VALUE_PARTS, and those of
// attention_workgroup.wgsl.

// vec4s from row to row: odd, for the banks.
const PITCH: u32 = DEPTH + 1u;
const WIDE: u32 = COLUMNS * FAR_LANES;
const PAIR_TILE: u32 = (NEAR_ROWS + FAR_ROWS) * PITCH;
const VALUE_TILE: u32 = VALUE_PARTS * LANES;
const WEIGHT_QUARTERS: u32 = FAR_ROWS / 4u;

// A pair's rows, near then far; or far rows [VALUE_ROWS][WIDE]; or what lanes exchange about their rows.
var<workgroup> tile: array<vec4f, max(max(PAIR_TILE, VALUE_TILE), LANES * OWN_GROUPS)>;
// [NEAR_ROWS][WEIGHT_QUARTERS], each row's quarters swizzled.
var<workgroup> weights: array<vec4f, NEAR_ROWS * WEIGHT_QUARTERS>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) index: u32) { walk(group, lane_of(index, 0u)); }

// Near rows are fetched with the far rows.
fn hold_near(near: Rows, lane: Lane) {}

fn weight_place(lane: Lane, i: u32, quarter: u32) -> u32 {
    return (i * NEAR_LANES + lane.near) * WEIGHT_QUARTERS + (quarter ^ (lane.near % min(8u, WEIGHT_QUARTERS)));
}

fn weights_at(lane: Lane, i: u32, quarter: u32) -> vec4f { return weights[weight_place(lane, i, quarter)]; }

fn put_weights(lane: Lane, i: u32, quarter: u32, value: vec4f) { weights[weight_place(lane, i, quarter)] = value; }

fn exchange(to: u32, x: vec4f) { tile[to] = x; }

fn exchanged(at: u32) -> vec4f { return tile[at]; }

// What a row has at a quarter: zero beyond its end.
fn within(value: vec4f, quarter: u32) -> vec4f {
    if (QUARTERS % DEPTH == 0u) { return value; }
    return select(vec4f(), value, quarter < QUARTERS);
}

// Fetches the quarters from `first` on of all near and far rows of a pair.
fn fetch_pair(pair: u32, near: Rows, far: Rows, first: u32, lane: Lane) {
    let quarter = first + lane.index % DEPTH;
    let row = lane.index / DEPTH;
    var near_next: array<vec4f, NEAR_PARTS>;
    var far_next: array<vec4f, FAR_PARTS>;
    @unroll for (var p = 0u; p < NEAR_PARTS; p++) {
        near_next[p] = load_near(pair, place(near, p * (LANES / DEPTH) + row), min(quarter, QUARTERS - 1u));
    }
    @unroll for (var p = 0u; p < FAR_PARTS; p++) {
        far_next[p] = load_far(pair, place(far, p * (LANES / DEPTH) + row), min(quarter, QUARTERS - 1u));
    }
    workgroupBarrier();
    @unroll for (var p = 0u; p < NEAR_PARTS; p++) {
        tile[(p * (LANES / DEPTH) + row) * PITCH + lane.index % DEPTH] = within(near_next[p], quarter);
    }
    @unroll for (var p = 0u; p < FAR_PARTS; p++) {
        // The first far row of each lane, then the second of each, …: lanes read neighbours.
        let far_row = p * (LANES / DEPTH) + row;
        let slot = NEAR_ROWS + far_row % FAR * FAR_LANES + far_row / FAR;
        tile[slot * PITCH + lane.index % DEPTH] = within(far_next[p], quarter);
    }
    workgroupBarrier();
}

// Adds what the fetched quarters give the scores.
fn multiply_pair(lane: Lane, score: ptr<function, array<f32, OWN * FAR>>) {
    for (var d = 0u; d < DEPTH; d++) {
        var x: array<vec4f, OWN>;
        @unroll for (var i = 0u; i < OWN; i++) { x[i] = tile[(i * NEAR_LANES + lane.near) * PITCH + d]; }
        @unroll for (var j = 0u; j < FAR; j++) {
            let y = tile[(NEAR_ROWS + j * FAR_LANES + lane.far) * PITCH + d];
            @unroll for (var i = 0u; i < OWN; i++) {
                let sum = fma(x[i].z, y.z, fma(x[i].w, y.w, (*score)[i * FAR + j]));
                (*score)[i * FAR + j] = fma(x[i].x, y.x, fma(x[i].y, y.y, sum));
            }
        }
    }
}

// The scores of a tile.
fn score_pair(pair: u32, near: Rows, far: Rows, lane: Lane, score: ptr<function, array<f32, OWN * FAR>>) {
    @unroll for (var i = 0u; i < OWN; i++) {
        @unroll for (var j = 0u; j < FAR; j++) { (*score)[i * FAR + j] = 0.0; }
    }
    for (var first = 0u; first < rolled(QUARTERS); first += DEPTH) {
        fetch_pair(pair, near, far, first, lane);
        multiply_pair(lane, score);
    }
}

// The same: no tile is held.
fn score_held(pair: u32, near: Rows, far: Rows, lane: Lane, score: ptr<function, array<f32, OWN * FAR>>) {
    score_pair(pair, near, far, lane, score);
}

// Fetches VALUE_ROWS far rows from `first` on.
fn fetch_values(pair: u32, far: Rows, first: u32, lane: Lane) {
    var next: array<vec4f, VALUE_PARTS>;
    @unroll for (var p = 0u; p < VALUE_PARTS; p++) {
        let at = p * LANES + lane.index;
        next[p] = load_far(pair, place(far, first + at / WIDE), min(at % WIDE, QUARTERS - 1u));
    }
    workgroupBarrier();
    @unroll for (var p = 0u; p < VALUE_PARTS; p++) { tile[p * LANES + lane.index] = next[p]; }
    workgroupBarrier();
}

// Adds what the fetched rows give the sums, by the weights from a quarter of theirs on.
fn multiply_values(quarter: u32, lane: Lane, sum: ptr<function, array<vec4f, OWN * COLUMNS>>) {
    for (var four = 0u; four < VALUE_ROWS; four += 4u) {
        var weight: array<vec4f, OWN>;
        @unroll for (var i = 0u; i < OWN; i++) { weight[i] = weights_at(lane, i, quarter + four / 4u); }
        @unroll for (var r = 0u; r < 4; r++) {
            @unroll for (var c = 0u; c < COLUMNS; c++) {
                let y = tile[(four + r) * WIDE + c * FAR_LANES + lane.far];
                @unroll for (var i = 0u; i < OWN; i++) {
                    (*sum)[i * COLUMNS + c] = fma(vec4f(weight[i][r]), y, (*sum)[i * COLUMNS + c]);
                }
            }
        }
    }
}

// sum += weights·far.
fn accumulate(pair: u32, far: Rows, lane: Lane, sum: ptr<function, array<vec4f, OWN * COLUMNS>>) {
    for (var first = 0u; first < rolled(FAR_ROWS); first += VALUE_ROWS) {
        fetch_values(pair, far, first, lane);
        multiply_values(first / 4u, lane, sum);
    }
}
