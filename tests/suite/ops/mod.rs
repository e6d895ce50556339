//! Every differentiable operation on the device, against the float64 reference; `windows` on devices that bind little at a time.

mod activation;
mod attention;
mod broadcast;
mod cross_entropy;
mod elementwise;
mod embedding;
mod gemm;
mod layout;
mod long_work;
mod matmul;
mod normalize;
pub mod precision;
mod rms_and_abs_max;
mod rotary;
mod windows;

/// One element; primes; just over a workgroup; several workgroups and a multiple of four.
const SHAPES: [&[usize]; 5] = [&[1], &[7, 13], &[3, 5, 2, 11], &[65, 33], &[130, 260]];
