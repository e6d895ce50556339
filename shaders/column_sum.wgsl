// sums[chunk, c] = Σ over the rows r of a chunk of x[r, c], times y[r, c] with WITH_FACTOR, times scale[r] with WITH_SCALE;
// accumulated with ACCUMULATE. With CONTINUED the rows continue those of an earlier dispatch. One Element of columns and one chunk
// of rows per invocation: the order is fixed on every adapter.

struct Args { rows: u32, columns: u32, chunk: u32, start: u32 }

var<immediate> args: Args;

@group(0) @binding(0) var<storage, read> x: array<Element>;
@group(0) @binding(1) var<storage, read> y: array<Element>;
@group(0) @binding(2) var<storage, read> scale: array<f32>;
@group(0) @binding(3) var<storage, read_write> sums: array<Element>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) local: u32) {
    let i = linear_index(group, groups, local, 64u);
    let columns = args.columns / WIDTH;
    let chunk = i / columns;
    let column = i % columns;
    let first = chunk * args.chunk;
    if (first >= args.rows) { return; }
    let last = min(first + args.chunk, args.rows);
    let out = args.start / WIDTH + i;
    var sum = Element();
    if (CONTINUED == 1u) { sum = sums[out]; }
    for (var row = first; row < last; row++) {
        var term = x[row * columns + column];
        if (WITH_FACTOR == 1u) { term *= y[row * columns + column]; }
        if (WITH_SCALE == 1u) { term *= scale[row]; }
        sum += term;
    }
    if (ACCUMULATE == 1u) { sum += sums[out]; }
    sums[out] = sum;
}
