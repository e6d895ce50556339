// y = w·x·r, r = 1/√(mean(x²) + eps) per row. dx = r·w·dy - x·r³·mean(w·dy·x), accumulated with ACCUMULATE. A row per subgroup, or per
// workgroup: rows.wgsl. dw is a column sum.

struct Args { rows: u32, first: u32, columns: u32, eps: f32 }

var<immediate> args: Args;

@group(0) @binding(0) var<storage, read> x: array<Element>;
@group(0) @binding(1) var<storage, read> w: array<Element>;
@group(0) @binding(2) var<storage, read> saved_r: array<f32>;
@group(0) @binding(2) var<storage, read_write> r: array<f32>;
@group(0) @binding(3) var<storage, read> dy: array<Element>;
@group(0) @binding(3) var<storage, read_write> y: array<Element>;
@group(0) @binding(4) var<storage, read_write> dx: array<Element>;

@if HELD {
    @compute @workgroup_size(WORKGROUP)
    fn forward(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) local: u32) {
        let columns = args.columns / WIDTH;
        let team = team(local);
        for (var own = take_row(team.place); own < ROWS; own = take_row(team.place)) {
            let row = (group.y * groups.x + group.x) * ROWS + own;
            if (row >= args.rows) { break; }
            var held: array<Element, HELD>;
            var squares = 0.0;
            @unroll for (var k = 0u; k < HELD; k++) {
                if (has(k, team.lanes, columns)) {
                    let c = team.place + k * team.lanes;
                    held[k] = x[row * columns + min(c, columns - 1u)];
                    squares += select(0.0, total(held[k] * held[k]), c < columns);
                }
            }
            let scale = 1.0 / sqrt(subgroupAdd(squares) / f32(args.columns) + args.eps);
            if (team.place == 0u) { r[row] = scale; }
            @unroll for (var k = 0u; k < HELD; k++) {
                let c = team.place + k * team.lanes;
                if (c < columns) { y[row * columns + c] = w[c] * held[k] * scale; }
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
            let scale = saved_r[row];
            var held: array<Element, HELD>;
            var weighted: array<Element, HELD>;
            var inner = 0.0;
            @unroll for (var k = 0u; k < HELD; k++) {
                if (has(k, team.lanes, columns)) {
                    let c = team.place + k * team.lanes;
                    let within = min(c, columns - 1u);
                    held[k] = x[row * columns + within];
                    weighted[k] = w[within] * dy[row * columns + within];
                    inner += select(0.0, total(weighted[k] * held[k]), c < columns);
                }
            }
            let pull = scale * scale * scale * subgroupAdd(inner) / f32(args.columns);
            @unroll for (var k = 0u; k < HELD; k++) {
                let c = team.place + k * team.lanes;
                if (c < columns) {
                    var value = scale * weighted[k] - pull * held[k];
                    if (ACCUMULATE == 1u) { value += dx[row * columns + c]; }
                    dx[row * columns + c] = value;
                }
            }
        }
    }
} @else {
    @compute @workgroup_size(WORKGROUP)
    fn forward(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
        let row = group.y * groups.x + group.x;
        if (row >= args.rows) { return; }
        let columns = args.columns / WIDTH;
        var squares = 0.0;
        for (var c = lane; c < columns; c += WORKGROUP) {
            let value = x[row * columns + c];
            squares += total(value * value);
        }
        let scale = 1.0 / sqrt(workgroup_sum(squares, lane) / f32(args.columns) + args.eps);
        if (lane == 0u) { r[row] = scale; }
        for (var c = lane; c < columns; c += WORKGROUP) { y[row * columns + c] = w[c] * x[row * columns + c] * scale; }
    }

    @compute @workgroup_size(WORKGROUP)
    fn backward(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
        let row = group.y * groups.x + group.x;
        if (row >= args.rows) { return; }
        let columns = args.columns / WIDTH;
        var inner = 0.0;
        for (var c = lane; c < columns; c += WORKGROUP) {
            inner += total(w[c] * dy[row * columns + c] * x[row * columns + c]);
        }
        let scale = saved_r[row];
        let pull = scale * scale * scale * workgroup_sum(inner, lane) / f32(args.columns);
        for (var c = lane; c < columns; c += WORKGROUP) {
            var value = scale * w[c] * dy[row * columns + c] - pull * x[row * columns + c];
            if (ACCUMULATE == 1u) { value += dx[row * columns + c]; }
            dx[row * columns + c] = value;
        }
    }
}
