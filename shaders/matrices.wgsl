// Cooperative matrices: f16 inputs, f32 sums, BLOCK × BLOCK. Shared memory that they are loaded from and stored to is an array of Halves or
// Singles, UNIT per vec4: vec4s, or with SCALARS single values, because naga's MSL has these operations on pointers to scalars only.
//
// Constants: LARGE (blocks of 16 × 16, else 8 × 8), SCALARS.

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
@if SCALARS {
    const UNIT: u32 = 4u;
    alias Halves = f16;
    alias Singles = f32;
} @else {
    const UNIT: u32 = 1u;
    alias Halves = vec4<f16>;
    alias Singles = vec4f;
}
