// Causal attention with grouped heads, never holding a queries × keys matrix. A workgroup owns some rows of a head (queries, or keys in
// the backward for keys and values), called near, and walks the rows of the other side, called far.
//
// q, o, dy, dq: [batch·queries, heads·DIM]; k, v, dk, dv: [batch·keys, heads/group·DIM]; lse, delta: [batch·queries, heads].
// Query i sees the keys 0 ..= i + offset. A dispatch may be bound to windows of them, of some sequences or of some queries of one: a
// window begins at `query_start` in q, o, dy and dq, at `key_start` in k, v, dk and dv, at `statistic_start` in lse and delta.
// k and v may have room for more than `keys` rows per sequence: key_stride.

struct Args {
    queries: u32, keys: u32, offset: u32, heads: u32, group: u32, scale: f32,
    first_group: u32, // added to the workgroup's x
    query_start: u32, key_start: u32, statistic_start: u32,
    group_first: u32, group_end: u32, // of the query heads of a key head, those that the backward for keys and values walks
    key_stride: u32, // rows of k and v from one sequence to the next
}

var<immediate> args: Args;

const MASKED: f32 = -1e30;

// The place of a head's row in a window with `count` rows per sequence and `heads` heads.
fn head_row(batch: u32, count: u32, row: u32, heads: u32, head: u32) -> u32 {
    return ((batch * count + min(row, count - 1u)) * heads + head) * DIM;
}

// The same in k and v.
fn key_row(batch: u32, row: u32, heads: u32, head: u32) -> u32 {
    return ((batch * args.key_stride + min(row, args.keys - 1u)) * heads + head) * DIM;
}
