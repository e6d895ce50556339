// y = exp(x - max) / Σ exp(x - max) along each row; dx = y·(dy - Σ y·dy). A row per subgroup, or per workgroup: rows.wgsl.

struct Args { rows: u32, first: u32, columns: u32 }

var<immediate> args: Args;

// In the backward, x is the saved y.
@group(0) @binding(0) var<storage, read> x: array<Element>;
@group(0) @binding(1) var<storage, read> dy: array<Element>;
@group(0) @binding(1) var<storage, read_write> y: array<Element>;
@group(0) @binding(2) var<storage, read_write> dx: array<Element>;

@if HELD {
    @compute @workgroup_size(WORKGROUP)
    fn forward(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) local: u32) {
        let columns = args.columns / WIDTH;
        let team = team(local);
        for (var own = take_row(team.place); own < ROWS; own = take_row(team.place)) {
            let row = (group.y * groups.x + group.x) * ROWS + own;
            if (row >= args.rows) { break; }
            var held: array<Element, HELD>;
            var top = LOWEST;
            @unroll for (var k = 0u; k < HELD; k++) {
                if (has(k, team.lanes, columns)) {
                    // Beyond the row: its last Element again, which changes no maximum.
                    held[k] = x[row * columns + min(team.place + k * team.lanes, columns - 1u)];
                    top = max(top, largest(held[k]));
                }
            }
            top = subgroupMax(top);
            var sum = 0.0;
            @unroll for (var k = 0u; k < HELD; k++) {
                if (has(k, team.lanes, columns)) {
                    held[k] = exp(held[k] - top);
                    sum += select(0.0, total(held[k]), team.place + k * team.lanes < columns);
                }
            }
            sum = subgroupAdd(sum);
            @unroll for (var k = 0u; k < HELD; k++) {
                let c = team.place + k * team.lanes;
                if (c < columns) { y[row * columns + c] = held[k] / sum; }
            }
        }
    }

    @compute @workgroup_size(WORKGROUP)
    fn backward(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) local: u32) {
        let columns = args.columns / WIDTH;
        let team = team(local);
        for (var own = take_row(team.place); own < ROWS; own = take_row(team.place)) {
            let row = (group.y * groups.x + group.x) * ROWS + own;
            if (row >= args.rows) { break; }
            var held: array<Element, HELD>;
            var held_dy: array<Element, HELD>;
            var inner = 0.0;
            @unroll for (var k = 0u; k < HELD; k++) {
                if (has(k, team.lanes, columns)) {
                    let c = team.place + k * team.lanes;
                    let at = row * columns + min(c, columns - 1u);
                    held[k] = x[at];
                    held_dy[k] = dy[at];
                    inner += select(0.0, total(held[k] * held_dy[k]), c < columns);
                }
            }
            inner = subgroupAdd(inner);
            @unroll for (var k = 0u; k < HELD; k++) {
                let c = team.place + k * team.lanes;
                if (c < columns) { dx[row * columns + c] = held[k] * (held_dy[k] - inner); }
            }
        }
    }
} @else {
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
}
