// Self-test of cooperative matrices: out[0] = A·B + C and out[1] = Aᵀ·Bᵀ + C for BLOCK × BLOCK matrices, in one subgroup. Row-major and
// column-major loads from shared memory in units of vec4s, as in the product kernel. Then ROUNDED values, rounded to f16.

@group(0) @binding(0) var<storage, read> operands: array<f32>; // A, B, C, values to round
@group(0) @binding(1) var<storage, read_write> out: array<f32>;

const SIZE: u32 = BLOCK * BLOCK;

var<workgroup> values: array<vec4<f16>, 2u * SIZE / 4u>;
var<workgroup> sums: array<vec4f, 2u * SIZE / 4u>;

@compute @workgroup_size(128)
fn main(@builtin(local_invocation_index) local: u32, @builtin(subgroup_id) subgroup: u32) {
    for (var i = local; i < 2u * SIZE / 4u; i += 128u) {
        let c = 2u * SIZE + i * 4u % SIZE;
        values[i] = vec4<f16>(vec4f(operands[i * 4u], operands[i * 4u + 1u], operands[i * 4u + 2u], operands[i * 4u + 3u]));
        sums[i] = vec4f(operands[c], operands[c + 1u], operands[c + 2u], operands[c + 3u]);
    }
    workgroupBarrier();
    while (subgroup == 0u) { // naga treats an `if` as divergent control flow, where cooperative operations are not allowed
        let c = coopLoadT<Sum>(&sums[0], BLOCK / 4u);
        let a_rows = coopLoadT<Left>(&values[0], BLOCK / 4u);
        let b_rows = coopLoadT<Right>(&values[SIZE / 4u], BLOCK / 4u);
        let a_columns = coopLoad<Left>(&values[0], BLOCK / 4u);
        let b_columns = coopLoad<Right>(&values[SIZE / 4u], BLOCK / 4u);
        let by_rows = coopMultiplyAdd(a_rows, b_rows, c);
        let by_columns = coopMultiplyAdd(a_columns, b_columns, c);
        coopStoreT(by_rows, &sums[0], BLOCK / 4u);
        coopStoreT(by_columns, &sums[SIZE / 4u], BLOCK / 4u);
        break;
    }
    workgroupBarrier();
    for (var i = local; i < 2u * SIZE; i += 128u) { out[i] = sums[i / 4u][i % 4u]; }
    if (local < ROUNDED) { out[2u * SIZE + local] = f32(f16(operands[3u * SIZE + local])); }
}
