// The split-K reduction: sums the partial products in order and applies the epilogue. A is [batch, split_k, rows, columns]; a_batch
// is the stride between slices.
//
// An invocation computes four outputs of a row, a workgroup 8 rows × 32 columns.

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let row = group.y * 8u + local / 8u;
    let column = (group.x * 8u + local % 8u) * 4u;
    if (row >= args.rows || column >= args.columns) { return; }
    var sum = vec4f();
    for (var slice = 0u; slice < args.split_k; slice++) {
        let at = (group.z * args.split_k + slice) * args.a_batch + row * args.a_stride + column;
        sum += load_a(args.a_offset + at, args.columns - column);
    }
    finish(row, column, group.z, alpha_of(group.z), sum);
}
