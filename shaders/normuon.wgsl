// What NorMuon adds to Muon: a second moment of the rows of the orthogonal direction o [rows, columns]; rows of several matrices, one
// after the other, whose totals begin at `matrix`.
//   second_moment:  v ← v + (1 - β2)(mean(o²) - v),  squares = Σ_c (o / (√v + eps))²; a workgroup per row
//   update:         w ← w(1 - shrink) - scale/√total · o / (√v + eps)

@if WORKGROUP {
    struct Args { rows: u32, first: u32, columns: u32, weight2: f32, eps: f32 }
} @else {
    struct Args { rows: u32, first: u32, columns: u32, scale: f32, shrink: f32, eps: f32, matrix_rows: u32, matrix: u32 }
}

var<immediate> args: Args;

@group(0) @binding(0) var<storage, read> o: array<Element>;

@if WORKGROUP {
    @group(0) @binding(1) var<storage, read_write> v: array<f32>;
    @group(0) @binding(2) var<storage, read_write> squares: array<f32>;

    @compute @workgroup_size(WORKGROUP)
    fn second_moment(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
        let row = linear_index(group, groups, 0u, 1u);
        if (row >= args.rows) { return; }
        let elements = args.columns / WIDTH;
        var sum = Element();
        for (var i = lane; i < elements; i += WORKGROUP) {
            let x = o[row * elements + i];
            sum += x * x;
        }
        let square = workgroup_sum(total(sum), lane);
        if (lane == 0u) {
            let next = v[row] + args.weight2 * (square / f32(args.columns) - v[row]);
            v[row] = next;
            let divisor = sqrt(next) + args.eps;
            squares[row] = square / (divisor * divisor);
        }
    }
} @else {
    @group(0) @binding(1) var<storage, read> v: array<f32>;
    @group(0) @binding(2) var<storage, read> totals: array<f32>;
    @group(0) @binding(3) var<storage, read_write> w: array<Element>;

    @compute @workgroup_size(64)
    fn update(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) local: u32) {
        let i = linear_index(group, groups, local, 64u);
        let elements = args.columns / WIDTH;
        let row = i / elements;
        if (row >= args.rows) { return; }
        // A zero direction has no norm, and stays zero.
        let total = totals[args.matrix + (args.first + row) / args.matrix_rows];
        let scale = select(args.scale * inverseSqrt(total), 0.0, total == 0.0);
        w[i] = w[i] * (1.0 - args.shrink) - scale / (sqrt(v[row]) + args.eps) * o[i];
    }
}
