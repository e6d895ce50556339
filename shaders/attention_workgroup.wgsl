// For GPUs: attention as a chain of products of tiles. NEAR_LANES × FAR_LANES invocations hold the scores of NEAR_ROWS near rows with
// FAR_ROWS far rows in registers, OWN × FAR of them each, and walk the far side tile by tile:
//   score_pair(pair):  near·farᵀ;
//   score_held(pair):  the same right after an accumulate with the same far rows;
//   accumulate(pair):  sum += weights·far, from the weights in shared memory, which lanes put there.
// `exchange` and `exchanged` are for what lanes tell each other between these.
// A lane has the near rows i·NEAR_LANES + its own, FAR far rows in a run, and the columns c·FAR_LANES + its own of a sum, in vec4s.
// The files attention_tiles.wgsl (f32) and attention_matrices.wgsl (f16, on matrix units) have these parts.
//
// Constants: DIM, QUARTERS = ⌈DIM/4⌉, NEAR_LANES, FAR_LANES, OWN, FAR, COLUMNS (vec4s of a sum's row per lane); the bounds of unrolled
// loops, OWN_GROUPS = ⌈OWN/4⌉ and FAR_GROUPS = FAR/4.

const LANES: u32 = NEAR_LANES * FAR_LANES;
const NEAR_ROWS: u32 = NEAR_LANES * OWN;
const FAR_ROWS: u32 = FAR_LANES * FAR;

// A head's rows from `first` on; those beyond `last` are replaced by it.
struct Rows { start: u32, stride: u32, first: u32, last: u32 }

fn place(rows: Rows, row: u32) -> u32 { return rows.start + min(rows.first + row, rows.last) * rows.stride; }

// A lane's place in the workgroup.
struct Lane { index: u32, near: u32, far: u32, subgroup: u32 }

fn lane_of(index: u32, subgroup: u32) -> Lane { return Lane(index, index / FAR_LANES, index % FAR_LANES, subgroup); }

// `count`, which compilers cannot know: they would unroll a loop over tiles, overflow the instruction cache and spend registers.
fn rolled(count: u32) -> u32 { return min(count, args.heads * count); }
