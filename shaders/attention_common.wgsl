// Causal attention with grouped heads, never holding a queries × keys matrix. Every lane owns a few rows (queries, or keys in the
// backward for keys and values) in registers and walks the other side in blocks of BLOCK rows, which the workgroup fetches
// together: with ONE_SUBGROUP the block is spread over the lanes' registers and broadcast by shuffles with constant indices, else
// it stands in shared memory.
//
// q, o, dy, dq: [batch·queries, heads·DIM]; k, v, dk, dv: [batch·keys, heads/group·DIM]; lse, delta: [batch·queries, heads].
// Query i sees the keys 0 ..= i + offset. A dispatch may be bound to windows of them, of some sequences or of some queries of one: a
// window begins at `query_start` in q, o, dy and dq, at `key_start` in k, v, dk and dv, at `statistic_start` in lse and delta.
//
// Constants: DIM, QUARTERS = ⌈DIM/4⌉, LANES, OWN rows per lane, BLOCK, TOTAL = BLOCK·QUARTERS, PARTS = ⌈TOTAL/LANES⌉.

struct Args {
    queries: u32, keys: u32, offset: u32, heads: u32, group: u32, scale: f32,
    first_group: u32, // added to the workgroup's x
    query_start: u32, key_start: u32, statistic_start: u32,
    group_first: u32, group_end: u32, // of the query heads of a key head, those that the backward for keys and values walks
}

var<immediate> args: Args;

const MASKED: f32 = -1e30;

// The place of a head's row in a window with `count` rows per sequence and `heads` heads.
fn head_row(batch: u32, count: u32, row: u32, heads: u32, head: u32) -> u32 {
    return ((batch * count + min(row, count - 1u)) * heads + head) * DIM;
}

@if ONE_SUBGROUP {
    var<private> first_part: array<vec4f, PARTS>;
    var<private> second_part: array<vec4f, PARTS>;
} @else {
    var<workgroup> first_tile: array<vec4f, TOTAL>;
    var<workgroup> second_tile: array<vec4f, TOTAL>;
}
