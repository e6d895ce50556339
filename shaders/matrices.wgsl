// Cooperative matrices: f16 inputs, f32 sums, BLOCK × BLOCK.
//
// Constants: LARGE (blocks of 16 × 16, else 8 × 8).

enable f16;
enable wgpu_cooperative_matrix;

@if LARGE {
    const BLOCK: u32 = 16u;
    alias Left = coop_mat16x16<f16, A>;
    alias Right = coop_mat16x16<f16, B>;
    alias Sum = coop_mat16x16<f32, C>;
} @else {
    const BLOCK: u32 = 8u;
    alias Left = coop_mat8x8<f16, A>;
    alias Right = coop_mat8x8<f16, B>;
    alias Sum = coop_mat8x8<f32, C>;
}
