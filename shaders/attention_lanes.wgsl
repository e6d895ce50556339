// For software rasterizers: every lane holds OWN near rows in registers. A block of BLOCK far rows is spread over the registers of
// the lanes, which are one subgroup, and broadcast by shuffles with constant indices.
//
// Constants: DIM, QUARTERS = ⌈DIM/4⌉, LANES, OWN rows per lane, BLOCK, PARTS = ⌈BLOCK·QUARTERS/LANES⌉.

var<private> first_part: array<vec4f, PARTS>;
var<private> second_part: array<vec4f, PARTS>;
