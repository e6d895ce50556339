// y = x + row or y = x·row, with row [columns] broadcast over the rows of x. One Element per invocation.

struct Args { rows: u32, first: u32, columns: u32 }

var<immediate> args: Args;

@group(0) @binding(0) var<storage, read> x: array<Element>;
@group(0) @binding(1) var<storage, read> row: array<Element>;
@group(0) @binding(2) var<storage, read_write> y: array<Element>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) local: u32) {
    let i = linear_index(group, groups, local, 64u);
    let columns = args.columns / WIDTH;
    if (i >= args.rows * columns) { return; }
    if (MULTIPLY == 1u) {
        y[i] = x[i] * row[i % columns];
    } else {
        y[i] = x[i] + row[i % columns];
    }
}
