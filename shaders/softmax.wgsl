// y = exp(x - max) / Σ exp(x - max) along each row; dx = y·(dy - Σ y·dy). One row per workgroup.

struct Args { rows: u32, first: u32, columns: u32 }

var<immediate> args: Args;

@group(0) @binding(0) var<storage, read> x: array<Element>;
@group(0) @binding(1) var<storage, read> dy: array<Element>;
@group(0) @binding(1) var<storage, read_write> y: array<Element>;
@group(0) @binding(2) var<storage, read_write> dx: array<Element>;

@compute @workgroup_size(WORKGROUP)
fn forward(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
    let row = group.y * groups.x + group.x;
    if (row >= args.rows) { return; }
    let columns = args.columns / WIDTH;
    var top = LOWEST;
    for (var c = lane; c < columns; c += WORKGROUP) { top = max(top, largest(x[row * columns + c])); }
    top = workgroup_max(top, lane);
    var sum = 0.0;
    for (var c = lane; c < columns; c += WORKGROUP) { sum += total(exp(x[row * columns + c] - top)); }
    sum = workgroup_sum(sum, lane);
    for (var c = lane; c < columns; c += WORKGROUP) { y[row * columns + c] = exp(x[row * columns + c] - top) / sum; }
}

// Here x is the saved y.
@compute @workgroup_size(WORKGROUP)
fn backward(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
    let row = group.y * groups.x + group.x;
    if (row >= args.rows) { return; }
    let columns = args.columns / WIDTH;
    var inner = 0.0;
    for (var c = lane; c < columns; c += WORKGROUP) { inner += total(x[row * columns + c] * dy[row * columns + c]); }
    inner = workgroup_sum(inner, lane);
    for (var c = lane; c < columns; c += WORKGROUP) {
        dx[row * columns + c] = x[row * columns + c] * (dy[row * columns + c] - inner);
    }
}
