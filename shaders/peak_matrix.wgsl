// Nothing but products of cooperative matrices, f16 with f32 sums: eight independent sums in each subgroup. Every element of an
// operand is ¼, so that each product adds BLOCK / 16 to each element, exactly; out[group] = the first elements of subgroup 0's sums,
// added: 8 · steps · BLOCK / 16.
//
// Constants: LARGE, REGIONS (subgroups of 256 invocations at the maximum subgroup size).

@group(0) @binding(0) var<storage, read_write> out: array<f32>;

const SIZE: u32 = BLOCK * BLOCK;

struct Args {
    count: u32, // workgroups
    steps: u32,
    quarter: f32,
}
var<immediate> args: Args;

var<workgroup> values: array<f16, 6u * SIZE>;
var<workgroup> sums: array<f32, REGIONS * SIZE>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32, @builtin(subgroup_id) region: u32) {
    for (var i = local; i < 6u * SIZE; i += 256u) { values[i] = f16(args.quarter); }
    workgroupBarrier();
    var sum: array<Sum, 8>;
    while (region < REGIONS) { // naga treats an `if` as divergent control flow, where cooperative operations are not allowed
        var left: array<Left, 2>;
        var right: array<Right, 4>;
        @unroll for (var i = 0u; i < 2; i++) { left[i] = coopLoadT<Left>(&values[i * SIZE], BLOCK); }
        @unroll for (var j = 0u; j < 4; j++) { right[j] = coopLoadT<Right>(&values[(2u + j) * SIZE], BLOCK); }
        for (var s = 0u; s < args.steps; s++) {
            @unroll for (var i = 0u; i < 2; i++) {
                @unroll for (var j = 0u; j < 4; j++) {
                    sum[i * 4u + j] = coopMultiplyAdd(left[i], right[j], sum[i * 4u + j]);
                }
            }
        }
        break;
    }
    var total = 0.0;
    @unroll for (var n = 0u; n < 8; n++) {
        while (region < REGIONS) {
            coopStoreT(sum[n], &sums[region * SIZE], BLOCK);
            break;
        }
        workgroupBarrier();
        total += sums[local % SIZE];
        workgroupBarrier();
    }
    if (local == 0u && group.x < args.count) { out[group.x] = total; }
}
