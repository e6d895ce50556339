// Nothing but products of cooperative matrices, f16 with f32 sums: eight independent sums in each subgroup. Every element of an
// operand is ¼, so that each product adds SIDE / 16 to each element, exactly; out[group] = the first elements of subgroup 0's sums,
// added: 8 · steps · SIDE / 16.
//
// Constants: LARGE (blocks of 16 × 16, else 8 × 8), REGIONS (subgroups of 256 invocations at the maximum subgroup size).

enable f16;
enable wgpu_cooperative_matrix;

@group(0) @binding(0) var<storage, read_write> out: array<f32>;

@if LARGE {
    const SIDE: u32 = 16u;
    alias Left = coop_mat16x16<f16, A>;
    alias Right = coop_mat16x16<f16, B>;
    alias Sum = coop_mat16x16<f32, C>;
} @else {
    const SIDE: u32 = 8u;
    alias Left = coop_mat8x8<f16, A>;
    alias Right = coop_mat8x8<f16, B>;
    alias Sum = coop_mat8x8<f32, C>;
}

const SIZE: u32 = SIDE * SIDE;

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
        @unroll for (var i = 0u; i < 2; i++) { left[i] = coopLoadT<Left>(&values[i * SIZE], SIDE); }
        @unroll for (var j = 0u; j < 4; j++) { right[j] = coopLoadT<Right>(&values[(2u + j) * SIZE], SIDE); }
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
            coopStoreT(sum[n], &sums[region * SIZE], SIDE);
            break;
        }
        workgroupBarrier();
        total += sums[local % SIZE];
        workgroupBarrier();
    }
    if (local == 0u && group.x < args.count) { out[group.x] = total; }
}
