// RMS and maximum absolute value of a buffer in two passes, in fixed order: `partial` reduces each chunk of CHUNK elements to
// (Σ x², max |x|); `final_pair` reduces `chunks` pairs from `first` on to pair `index` of the output.

struct Args { count: u32, first: u32, index: u32, chunks: u32 }

var<immediate> args: Args;

@group(0) @binding(0) var<storage, read> x: array<vec4f>;
@group(0) @binding(0) var<storage, read> pairs: array<vec2f>;
@group(0) @binding(1) var<storage, read_write> out: array<vec2f>;

@compute @workgroup_size(WORKGROUP)
fn partial(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
    let begin = group.x * CHUNK;
    let end = min(begin + CHUNK, args.count);
    var squares = vec4f();
    var most = vec4f();
    for (var at = begin + 4u * lane; at < end; at += 4u * WORKGROUP) {
        // The last vec4 may extend into the padding.
        let inside = vec4u(at) + vec4u(0u, 1u, 2u, 3u) < vec4u(end);
        let value = select(vec4f(), x[at / 4u], inside);
        squares += value * value;
        most = max(most, abs(value));
    }
    let sum = workgroup_sum((squares.x + squares.y) + (squares.z + squares.w), lane);
    let top = workgroup_max(max(max(most.x, most.y), max(most.z, most.w)), lane);
    if (lane == 0u) { out[args.first + group.x] = vec2f(sum, top); }
}

@compute @workgroup_size(WORKGROUP)
fn final_pair(@builtin(local_invocation_index) lane: u32) {
    var squares = 0.0;
    var most = 0.0;
    for (var at = lane; at < args.chunks; at += WORKGROUP) {
        let pair = pairs[args.first + at];
        squares += pair.x;
        most = max(most, pair.y);
    }
    let sum = workgroup_sum(squares, lane);
    let top = workgroup_max(most, lane);
    if (lane == 0u) { out[args.index] = vec2f(sqrt(sum / f32(args.count)), top); }
}
