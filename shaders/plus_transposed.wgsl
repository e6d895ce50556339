// out = a + aᵀ for a batch of square matrices: a 4 × 4 block per invocation if n is a multiple of four, else one element.

struct Args { size: u32, matrices: u32 }

var<immediate> args: Args;

@group(0) @binding(0) var<storage, read> a: array<Element>;
@group(0) @binding(1) var<storage, read_write> out: array<Element>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) local: u32) {
    let i = linear_index(group, groups, local, 64u);
    let n = args.size / WIDTH;
    if (i >= args.matrices * n * n) { return; }
    let matrix = i / (n * n) * args.size * n;
    let row = i / n % n;
    let column = i % n;
    @if VECTORS {
        var block: mat4x4f;
        @unroll for (var q = 0u; q < 4; q++) { block[q] = a[matrix + (4u * column + q) * n + row]; }
        block = transpose(block);
        @unroll for (var q = 0u; q < 4; q++) {
            let at = matrix + (4u * row + q) * n + column;
            out[at] = a[at] + block[q];
        }
    } @else {
        let at = matrix + row * n + column;
        out[at] = a[at] + a[matrix + column * n + row];
    }
}
