// y[t] = table[ids[t]], one Element per invocation. The table may be bound in windows of rows, and ids with y, or the
// positions with dy, in others: a dispatch handles the ids that fall into `first_row .. first_row + table_rows` and leaves the other
// rows alone.
//
// The backward adds to the row of each distinct id the dy of its positions in their order, one after the other: no atomics, and the
// same bits every time and in any windows of positions. Those of id number g stand in positions[starts[g] .. starts[g + 1]].

struct Args { count: u32, columns: u32, first_row: u32, table_rows: u32 }

var<immediate> args: Args;

@group(0) @binding(0) var<storage, read> ids: array<u32>;
@group(0) @binding(1) var<storage, read> table: array<Element>;
@group(0) @binding(2) var<storage, read_write> y: array<Element>;

@group(0) @binding(1) var<storage, read> starts: array<u32>;
@group(0) @binding(2) var<storage, read> positions: array<u32>;
@group(0) @binding(3) var<storage, read> dy: array<Element>;
@group(0) @binding(4) var<storage, read_write> dtable: array<Element>;

@compute @workgroup_size(64)
fn forward(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) local: u32) {
    let i = linear_index(group, groups, local, 64u);
    let columns = args.columns / WIDTH;
    if (i >= args.count * columns) { return; }
    let row = ids[i / columns] - args.first_row; // wraps around below the window
    if (row < args.table_rows) { y[i] = table[row * columns + i % columns]; }
}

@compute @workgroup_size(64)
fn backward(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) local: u32) {
    let i = linear_index(group, groups, local, 64u);
    let columns = args.columns / WIDTH;
    if (i >= args.count * columns) { return; }
    let which = i / columns;
    let row = ids[which] - args.first_row;
    if (row >= args.table_rows) { return; }
    var sum = dtable[row * columns + i % columns];
    for (var p = starts[which]; p < starts[which + 1u]; p++) { sum += dy[positions[p] * columns + i % columns]; }
    dtable[row * columns + i % columns] = sum;
}
