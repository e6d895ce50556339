// Sum of a buffer in two passes, in fixed order: `partial` reduces each chunk of CHUNK elements to Σ x or Σ x² (constant TERM);
// `final_sum` sums the partials and multiplies by α. Both over several batches of `count` numbers, along y and x.
// `joined` is `partial` of the squares of JOINED tensors, along y.

@if JOINED {
    // Per tensor: its elements, and the place of its first partial sum. Not arrays, which DX12 would pad.
    struct Args { @declare for (var k = 0u; k < JOINED; k++) { count$k: u32, first$k: u32, } }

    var<immediate> args: Args;

    @group(0) @binding(0) var<storage, read_write> partials: array<f32>;
    @declare for (var k = 0u; k < JOINED; k++) { @group(0) @binding(1u + k) var<storage, read> x$k: array<vec4f>; }

    fn square(tensor: u32, i: u32) -> vec4f {
        var x = vec4f();
        @unroll for (var k = 0u; k < JOINED; k++) { if (tensor == k) { x = x$k[i]; } }
        return x * x;
    }

    @compute @workgroup_size(WORKGROUP)
    fn joined(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
        var count = 0u;
        var first = 0u;
        @unroll for (var k = 0u; k < JOINED; k++) {
            if (group.y == k) { count = args.count$k; first = args.first$k; }
        }
        let begin = group.x * CHUNK;
        if (begin >= count) { return; }
        let end = min(begin + CHUNK, count);
        var mine = vec4f();
        for (var at = begin + 4u * lane; at < end; at += 4u * WORKGROUP) {
            // The last vec4 may extend into the padding.
            mine += select(vec4f(), square(group.y, at / 4u), vec4u(at) + vec4u(0u, 1u, 2u, 3u) < vec4u(end));
        }
        let total = workgroup_sum((mine.x + mine.y) + (mine.z + mine.w), lane);
        if (lane == 0u) { partials[first + group.x] = total; }
    }
} @else {
    struct Args { count: u32, first: u32, alpha: f32 }

    var<immediate> args: Args;

    @group(0) @binding(0) var<storage, read> x: array<vec4f>;
    @group(0) @binding(0) var<storage, read> numbers: array<f32>;
    @group(0) @binding(1) var<storage, read_write> sum: array<f32>;
    @group(0) @binding(1) var<storage, read_write> partials: array<f32>;

    const PLAIN: u32 = 0u;
    const SQUARE: u32 = 1u;

    @compute @workgroup_size(WORKGROUP)
    fn partial(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
        let batch = group.y * (args.count / 4u);
        let begin = group.x * CHUNK;
        let end = min(begin + CHUNK, args.count);
        var mine = vec4f();
        for (var at = begin + 4u * lane; at < end; at += 4u * WORKGROUP) {
            var term = x[batch + at / 4u];
            if (TERM == SQUARE) { term *= term; }
            // The last vec4 may extend into the padding.
            mine += select(vec4f(), term, vec4u(at) + vec4u(0u, 1u, 2u, 3u) < vec4u(end));
        }
        let total = workgroup_sum((mine.x + mine.y) + (mine.z + mine.w), lane);
        if (lane == 0u) { partials[args.first + group.y * groups.x + group.x] = total; }
    }

    @compute @workgroup_size(WORKGROUP)
    fn final_sum(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
        var mine = 0.0;
        for (var at = lane; at < args.count; at += WORKGROUP) { mine += numbers[group.x * args.count + at]; }
        let total = workgroup_sum(mine, lane);
        if (lane == 0u) { sum[args.first + group.x] = args.alpha * total; }
    }
}
