// Self-test of cooperative matrices: out[0] = A·B + C and out[1] = Aᵀ·Bᵀ + C for BLOCK × BLOCK matrices, in one subgroup. Row-major and
// column-major loads from shared memory, and sums that begin as zeros in an array, as in the product kernel. Then ROUNDED values, rounded
// to f16.

@group(0) @binding(0) var<storage, read> operands: array<f32>; // A, B, C, values to round
@group(0) @binding(1) var<storage, read_write> out: array<f32>;

const SIZE: u32 = BLOCK * BLOCK;
// Elements of a row, and of a matrix.
const ROW: u32 = UNIT * BLOCK / 4u;
const MATRIX: u32 = UNIT * SIZE / 4u;

var<workgroup> values: array<Halves, 2u * MATRIX>;
var<workgroup> sums: array<Singles, 2u * MATRIX>;

@compute @workgroup_size(128)
fn main(@builtin(local_invocation_index) local: u32, @builtin(subgroup_id) subgroup: u32) {
    for (var i = local; i < 2u * MATRIX; i += 128u) {
        @if SCALARS {
            values[i] = f16(operands[i]);
        } @else {
            values[i] = vec4<f16>(vec4f(operands[i * 4u], operands[i * 4u + 1u], operands[i * 4u + 2u], operands[i * 4u + 3u]));
        }
    }
    workgroupBarrier();
    while (subgroup == 0u) { // naga treats an `if` as divergent control flow, where cooperative operations are not allowed
        var sum: array<Sum, 2>;
        let a_rows = coopLoadT<Left>(&values[0], ROW);
        let b_rows = coopLoadT<Right>(&values[MATRIX], ROW);
        let a_columns = coopLoad<Left>(&values[0], ROW);
        let b_columns = coopLoad<Right>(&values[MATRIX], ROW);
        sum[0] = coopMultiplyAdd(a_rows, b_rows, sum[0]);
        sum[1] = coopMultiplyAdd(a_columns, b_columns, sum[1]);
        coopStoreT(sum[0], &sums[0], ROW);
        coopStoreT(sum[1], &sums[MATRIX], ROW);
        break;
    }
    workgroupBarrier();
    for (var i = local; i < 2u * SIZE; i += 128u) {
        @if SCALARS { let sum = sums[i]; } @else { let sum = sums[i / 4u][i % 4u]; }
        out[i] = sum + operands[2u * SIZE + i % SIZE];
    }
    if (local < ROUNDED) { out[2u * SIZE + local] = f32(f16(operands[3u * SIZE + local])); }
}
