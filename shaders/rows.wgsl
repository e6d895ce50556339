// With HELD, a subgroup has a row at a time, and its lanes keep HELD Elements of it each: there are no barriers, and the row is read
// once. Subgroups take the ROWS rows of their workgroup in turn, as they come: that works for any size of subgroups and any mapping of
// lanes to them, and no result depends on who takes a row. Lane `place` of `lanes` has the Elements place, place + lanes, … of the row.
//
// Constants: HELD, enough for the smallest subgroups, or 0 for a row per workgroup; SURE, those of them that even the largest have;
// ROWS, WORKGROUP.
@if HELD {
    var<workgroup> taken: atomic<u32>;

    struct Team { place: u32, lanes: u32 }

    fn team(local: u32) -> Team {
        if (local == 0u) { atomicStore(&taken, 0u); }
        workgroupBarrier();
        return Team(subgroupExclusiveAdd(1u), subgroupAdd(1u));
    }

    // The next of the workgroup's rows.
    fn take_row(place: u32) -> u32 {
        var row = 0u;
        if (place == 0u) { row = atomicAdd(&taken, 1u); }
        return subgroupBroadcastFirst(row);
    }

    // Whether the subgroup has Elements at k; a lane's own may be beyond the row.
    fn has(k: u32, lanes: u32, columns: u32) -> bool { return k < SURE || k * lanes < columns; }
}
