// out = α·Σ A[part] + β·C + δ·I + κ·out: adds up, in order, what the parts of the inner dimension gave, and finishes the product. A is
// [batch, parts, rows, columns]; a_batch counts from one part to the next.
//
// An invocation finishes four outputs of a row, a workgroup 8 rows and 32 columns.

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let row = group.y * 8u + local / 8u;
    let column = (group.x * 8u + local % 8u) * 4u;
    if (row >= args.rows || column >= args.columns) { return; }
    var sum = vec4f();
    for (var part = 0u; part < args.parts; part++) {
        let at = (group.z * args.parts + part) * args.a_batch + row * args.a_stride + column;
        sum += load_a(args.a_offset + at, args.columns - column);
    }
    finish(row, column, group.z, sum);
}
