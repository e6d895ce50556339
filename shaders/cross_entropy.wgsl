// loss[r] = log Σ exp(x[r]) - x[r, target[r]], one row per workgroup; with GRADIENT the logits are overwritten by
// scale·(softmax(x) - onehot(target)).

struct Args { rows: u32, columns: u32, first: u32, scale: f32 }

var<immediate> args: Args;

@group(0) @binding(0) var<storage, read> targets: array<u32>;
@group(0) @binding(1) var<storage, read_write> logits: array<Element>;
@group(0) @binding(2) var<storage, read_write> loss: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
    let row = group.x;
    let columns = args.columns / WIDTH;
    let base = row * columns;
    let goal = targets[args.first + row];
    var top = LOWEST;
    for (var c = lane; c < columns; c += WORKGROUP) { top = max(top, largest(logits[base + c])); }
    top = workgroup_max(top, lane);
    var sum = 0.0;
    for (var c = lane; c < columns; c += WORKGROUP) { sum += total(exp(logits[base + c] - top)); }
    sum = workgroup_sum(sum, lane);
    if (lane == goal / WIDTH % WORKGROUP) {
        // The lane that owns the target's element reads it, and below is the one to change it.
        @if VECTORS {
            let own = logits[base + goal / WIDTH][goal % WIDTH];
        } @else {
            let own = logits[base + goal];
        }
        loss[args.first + row] = top + log(sum) - own;
    }
    if (GRADIENT == 0u) { return; }
    let factor = args.scale / sum;
    for (var c = lane; c < columns; c += WORKGROUP) {
        var gradient = factor * exp(logits[base + c] - top);
        if (c == goal / WIDTH) {
            @if VECTORS {
                gradient -= args.scale * vec4f(vec4u(goal % 4u) == vec4u(0u, 1u, 2u, 3u));
            } @else {
                gradient -= args.scale;
            }
        }
        logits[base + c] = gradient;
    }
}
