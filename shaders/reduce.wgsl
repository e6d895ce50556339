// Sum of a buffer in two passes, in fixed order: `partial` reduces each chunk of CHUNK elements to Σ x or Σ x² (constant TERM);
// `final_sum` sums the partials and multiplies by α.

struct Args { count: u32, first: u32, alpha: f32 }

var<immediate> args: Args;

@group(0) @binding(0) var<storage, read> x: array<vec4f>;
@group(0) @binding(0) var<storage, read> numbers: array<f32>;
@group(0) @binding(1) var<storage, read_write> sum: array<f32>;
@group(0) @binding(1) var<storage, read_write> partials: array<f32>;

const PLAIN: u32 = 0u;
const SQUARE: u32 = 1u;

@compute @workgroup_size(WORKGROUP)
fn partial(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
    let begin = group.x * CHUNK;
    let end = min(begin + CHUNK, args.count);
    var mine = vec4f();
    for (var at = begin + 4u * lane; at < end; at += 4u * WORKGROUP) {
        var term = x[at / 4u];
        if (TERM == SQUARE) { term *= term; }
        // The last vec4 may extend into the padding.
        mine += select(vec4f(), term, vec4u(at) + vec4u(0u, 1u, 2u, 3u) < vec4u(end));
    }
    let total = workgroup_sum((mine.x + mine.y) + (mine.z + mine.w), lane);
    if (lane == 0u) { partials[args.first + group.x] = total; }
}

@compute @workgroup_size(WORKGROUP)
fn final_sum(@builtin(local_invocation_index) lane: u32) {
    var mine = 0.0;
    for (var at = lane; at < args.count; at += WORKGROUP) { mine += numbers[at]; }
    let total = workgroup_sum(mine, lane);
    if (lane == 0u) { sum[args.first] = args.alpha * total; }
}
