// Self-test of cooperative matrices: out[0] = A·B + C and out[1] = Aᵀ·Bᵀ + C for SIDE × SIDE matrices, in one subgroup. Row-major and
// column-major loads from shared memory, as in the product kernel.

enable f16;
enable wgpu_cooperative_matrix;

@group(0) @binding(0) var<storage, read> operands: array<f32>; // A, B, C
@group(0) @binding(1) var<storage, read_write> out: array<f32>;

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

var<workgroup> values: array<f16, 2u * SIZE>;
var<workgroup> sums: array<f32, 2u * SIZE>;

@compute @workgroup_size(128)
fn main(@builtin(local_invocation_index) local: u32, @builtin(subgroup_id) subgroup: u32) {
    for (var i = local; i < 2u * SIZE; i += 128u) {
        values[i] = f16(operands[i]);
        sums[i] = operands[2u * SIZE + i % SIZE];
    }
    workgroupBarrier();
    while (subgroup == 0u) { // naga treats an `if` as divergent control flow, where cooperative operations are not allowed
        let c = coopLoadT<Sum>(&sums[0], SIDE);
        let by_rows = coopMultiplyAdd(coopLoadT<Left>(&values[0], SIDE), coopLoadT<Right>(&values[SIZE], SIDE), c);
        let by_columns = coopMultiplyAdd(coopLoad<Left>(&values[0], SIDE), coopLoad<Right>(&values[SIZE], SIDE), c);
        coopStoreT(by_rows, &sums[0], SIDE);
        coopStoreT(by_columns, &sums[SIZE], SIDE);
        break;
    }
    workgroupBarrier();
    for (var i = local; i < 2u * SIZE; i += 128u) { out[i] = sums[i]; }
}
