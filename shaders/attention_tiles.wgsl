// For GPUs: attention as a chain of tiled products. NEAR_LANES × FAR_LANES invocations hold the scores of NEAR_ROWS near rows with
// FAR_ROWS far rows in registers, OWN × FAR of them each, and walk the far side tile by tile:
//   score(pair):  near·farᵀ, from DEPTH quarters (vec4s of a row) at a time of both sides in shared memory;
//   accumulate:   sum += weights·far, from the weights in shared memory and VALUE_ROWS far rows at a time.
// Near rows are dealt out in turn (row i·NEAR_LANES + near of a lane's OWN), far rows in runs of FAR, so that a lane's weights of
// one near row are vec4s. Every shared-memory access is a vec4 whose lanes either share an address or have banks of their own:
// four rows by eight per 32 lanes. Per multiply-add, that is (OWN + FAR) / (4·OWN·FAR) and (OWN + 4·COLUMNS) / (16·OWN·COLUMNS) loads.
//
// Every sum is one chain of fused multiply-adds in the order of the far rows, and a masked pair adds zero: neither windows nor the
// place of a row in its tile change a bit.
//
// Constants: DIM, QUARTERS = ⌈DIM/4⌉, NEAR_LANES, FAR_LANES, OWN, FAR, DEPTH, VALUE_ROWS, COLUMNS vec4s of a sum's row per lane; and the bounds
// of unrolled loops: OWN_GROUPS = ⌈OWN/4⌉, FAR_GROUPS = FAR/4, and vec4s to fetch per lane, NEAR_PARTS, FAR_PARTS,
// VALUE_PARTS. With PREFETCH, a lane loads its next vec4s before it multiplies those in the tile, else after.

const LANES: u32 = NEAR_LANES * FAR_LANES;
const NEAR_ROWS: u32 = NEAR_LANES * OWN;
const FAR_ROWS: u32 = FAR_LANES * FAR;
// vec4s from row to row: odd, for the banks.
const PITCH: u32 = DEPTH + 1u;
const WIDE: u32 = COLUMNS * FAR_LANES;
const PAIR_TILE: u32 = (NEAR_ROWS + FAR_ROWS) * PITCH;
const PAIR_PARTS: u32 = NEAR_PARTS + FAR_PARTS;
const VALUE_TILE: u32 = VALUE_PARTS * LANES;
const WEIGHT_QUARTERS: u32 = FAR_ROWS / 4u;

// A pair's rows, near then far; or far rows [VALUE_ROWS][WIDE]; or what lanes exchange about their rows.
var<workgroup> tile: array<vec4f, max(max(PAIR_TILE, VALUE_TILE), LANES * OWN_GROUPS)>;
// [NEAR_ROWS][WEIGHT_QUARTERS], each row's quarters swizzled.
var<workgroup> weights: array<vec4f, NEAR_ROWS * WEIGHT_QUARTERS>;

// A head's rows from `first` on; those beyond `last` are replaced by it.
struct Rows { start: u32, stride: u32, first: u32, last: u32 }

fn place(rows: Rows, row: u32) -> u32 { return rows.start + min(rows.first + row, rows.last) * rows.stride; }

// A lane's place in the workgroup.
struct Lane { index: u32, near: u32, far: u32 }

fn lane_of(index: u32) -> Lane { return Lane(index, index / FAR_LANES, index % FAR_LANES); }

// `count`, which compilers cannot know: they would unroll a loop over tiles, overflow the instruction cache and spend registers.
fn rolled(count: u32) -> u32 { return min(count, args.heads * count); }

fn weight_place(lane: Lane, i: u32, quarter: u32) -> u32 {
    return (i * NEAR_LANES + lane.near) * WEIGHT_QUARTERS + (quarter ^ (lane.near % min(8u, WEIGHT_QUARTERS)));
}

// What a row has at a quarter: zero beyond its end.
fn within(value: vec4f, quarter: u32) -> vec4f {
    if (QUARTERS % DEPTH == 0u) { return value; }
    return select(vec4f(), value, quarter < QUARTERS);
}

// Loads the quarters from `first` on of all near and far rows of a pair.
fn load_pair(pair: u32, near: Rows, far: Rows, first: u32, lane: Lane, next: ptr<function, array<vec4f, PAIR_PARTS>>) {
    let quarter = min(first + lane.index % DEPTH, QUARTERS - 1u);
    let row = lane.index / DEPTH;
    @unroll for (var p = 0u; p < NEAR_PARTS; p++) {
        (*next)[p] = load_near(pair, place(near, p * (LANES / DEPTH) + row), quarter);
    }
    @unroll for (var p = 0u; p < FAR_PARTS; p++) {
        (*next)[NEAR_PARTS + p] = load_far(pair, place(far, p * (LANES / DEPTH) + row), quarter);
    }
}

// Shares what all lanes have loaded, once all are done with what the tile had.
fn share_pair(first: u32, lane: Lane, next: ptr<function, array<vec4f, PAIR_PARTS>>) {
    let d = lane.index % DEPTH;
    let row = lane.index / DEPTH;
    workgroupBarrier();
    @unroll for (var p = 0u; p < NEAR_PARTS; p++) {
        tile[(p * (LANES / DEPTH) + row) * PITCH + d] = within((*next)[p], first + d);
    }
    @unroll for (var p = 0u; p < FAR_PARTS; p++) {
        // The first far row of each lane, then the second of each, …: lanes read neighbours.
        let far_row = p * (LANES / DEPTH) + row;
        let slot = NEAR_ROWS + far_row % FAR * FAR_LANES + far_row / FAR;
        tile[slot * PITCH + d] = within((*next)[NEAR_PARTS + p], first + d);
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
    var next: array<vec4f, PAIR_PARTS>;
    @if PREFETCH { load_pair(pair, near, far, 0u, lane, &next); }
    for (var first = 0u; first < rolled(QUARTERS); first += DEPTH) {
        @if PREFETCH {} @else { load_pair(pair, near, far, first, lane, &next); }
        share_pair(first, lane, &next);
        @if PREFETCH { load_pair(pair, near, far, first + DEPTH, lane, &next); }
        multiply_pair(lane, score);
    }
}

// Loads VALUE_ROWS far rows from `first` on.
fn load_values(pair: u32, far: Rows, first: u32, lane: Lane, next: ptr<function, array<vec4f, VALUE_PARTS>>) {
    @unroll for (var p = 0u; p < VALUE_PARTS; p++) {
        let at = p * LANES + lane.index;
        (*next)[p] = load_far(pair, place(far, first + at / WIDE), min(at % WIDE, QUARTERS - 1u));
    }
}

fn share_values(lane: Lane, next: ptr<function, array<vec4f, VALUE_PARTS>>) {
    workgroupBarrier();
    @unroll for (var p = 0u; p < VALUE_PARTS; p++) { tile[p * LANES + lane.index] = (*next)[p]; }
    workgroupBarrier();
}

// Adds what the fetched rows give the sums, by the weights from a quarter of theirs on.
fn multiply_values(quarter: u32, lane: Lane, sum: ptr<function, array<vec4f, OWN * COLUMNS>>) {
    for (var four = 0u; four < VALUE_ROWS; four += 4u) {
        var weight: array<vec4f, OWN>;
        @unroll for (var i = 0u; i < OWN; i++) { weight[i] = weights[weight_place(lane, i, quarter + four / 4u)]; }
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
    var next: array<vec4f, VALUE_PARTS>;
    @if PREFETCH { load_values(pair, far, 0u, lane, &next); }
    for (var first = 0u; first < rolled(FAR_ROWS); first += VALUE_ROWS) {
        @if PREFETCH {} @else { load_values(pair, far, first, lane, &next); }
        share_values(lane, &next);
        @if PREFETCH { load_values(pair, far, first + VALUE_ROWS, lane, &next); }
        multiply_values(first / 4u, lane, sum);
    }
}
