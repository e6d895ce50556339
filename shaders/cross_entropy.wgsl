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
    let target_id = targets[args.targets_start + row];
    // Online softmax: maximum and sum in one pass, the sum rescaled as the running maximum grows, four Elements at a time.
    var running_max = LOWEST;
    var sum = 0.0;
    var c = lane;
    for (; c + 3u * WORKGROUP < columns; c += 4u * WORKGROUP) {
        var x: array<Element, 4>;
        var top = running_max;
        @unroll for (var k = 0u; k < 4; k++) {
            x[k] = logits[base + c + k * WORKGROUP];
            top = max(top, largest(x[k]));
        }
        sum *= exp(running_max - top);
        @unroll for (var k = 0u; k < 4; k++) { sum += total(exp(x[k] - top)); }
        running_max = top;
    }
    for (; c < columns; c += WORKGROUP) {
        let x = logits[base + c];
        let top = max(running_max, largest(x));
        sum = sum * exp(running_max - top) + total(exp(x - top));
        running_max = top;
    }
    let top = workgroup_max(running_max, lane);
    sum = workgroup_sum(sum * exp(running_max - top), lane);
    // The lane that owns the target's element reads its logit first, and subtracts the 1 after all became probabilities.
    let is_owner = lane == target_id / WIDTH % WORKGROUP;
    if (is_owner) {
        @if VECTORS {
            let logit = logits[base + target_id / WIDTH][target_id % WIDTH];
        } @else {
            let logit = logits[base + target_id];
        }
        loss[args.loss_start + row] = top + log(sum) - logit;
    }
    if (GRADIENT == 0u) { return; }
    let factor = args.scale / sum;
    for (c = lane; c < columns; c += WORKGROUP) { logits[base + c] = factor * exp(logits[base + c] - top); }
    if (is_owner) {
        @if VECTORS {
            logits[base + target_id / WIDTH][target_id % WIDTH] -= args.scale;
        } @else {
            logits[base + target_id] -= args.scale;
        }
    }
}
