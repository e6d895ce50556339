// loss[r] = log Σ exp(x[r]) - x[r, target[r]], one row per workgroup; with GRADIENT the logits are overwritten by
// scale·(softmax(x) - onehot(target)).

struct Args {
    columns: u32, scale: f32,
    // Where the rows of the windows begin in what is bound.
    targets_start: u32, logits_start: u32, loss_start: u32,
}

var<immediate> args: Args;

@group(0) @binding(0) var<storage, read> targets: array<u32>;
@group(0) @binding(1) var<storage, read_write> logits: array<Element>;
@group(0) @binding(2) var<storage, read_write> loss: array<f32>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
    let row = group.x;
    let columns = args.columns / WIDTH;
    let base = args.logits_start / WIDTH + row * columns;
    let goal = targets[args.targets_start + row];
    // One pass for both the maximum and the sum, which is relative to the largest so far and follows it, four Elements at a time.
    var mine = LOWEST;
    var sum = 0.0;
    var c = lane;
    for (; c + 3u * WORKGROUP < columns; c += 4u * WORKGROUP) {
        var x: array<Element, 4>;
        var top = mine;
        @unroll for (var k = 0u; k < 4; k++) {
            x[k] = logits[base + c + k * WORKGROUP];
            top = max(top, largest(x[k]));
        }
        sum *= exp(mine - top);
        @unroll for (var k = 0u; k < 4; k++) { sum += total(exp(x[k] - top)); }
        mine = top;
    }
    for (; c < columns; c += WORKGROUP) {
        let x = logits[base + c];
        let top = max(mine, largest(x));
        sum = sum * exp(mine - top) + total(exp(x - top));
        mine = top;
    }
    let top = workgroup_max(mine, lane);
    sum = workgroup_sum(sum * exp(mine - top), lane);
    // The lane that owns the target's element reads it before, and takes the 1 from it after all have become probabilities.
    let is_owner = lane == goal / WIDTH % WORKGROUP;
    if (is_owner) {
        @if VECTORS {
            let own = logits[base + goal / WIDTH][goal % WIDTH];
        } @else {
            let own = logits[base + goal];
        }
        loss[args.loss_start + row] = top + log(sum) - own;
    }
    if (GRADIENT == 0u) { return; }
    let factor = args.scale / sum;
    for (c = lane; c < columns; c += WORKGROUP) { logits[base + c] = factor * exp(logits[base + c] - top); }
    if (is_owner) {
        @if VECTORS {
            logits[base + goal / WIDTH][goal % WIDTH] -= args.scale;
        } @else {
            logits[base + goal] -= args.scale;
        }
    }
}
