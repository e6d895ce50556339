//! The differentiable operations. Sizes exceed a tile and a workgroup, once a multiple of four and once not.

use polytape::gpu::KernelTier;
use polytape::{AttentionShape, Factor, Gemm, Gpu, Indices, Matrix, Precision, Result, RotaryTable, Var};
use polytape_reference::Array;
use polytape_reference::attention::{self, attention, attention_vjp};
use polytape_reference::cross_entropy::{cross_entropy_head, cross_entropy_head_vjp};
use polytape_reference::differences::random_arrays;
use polytape_reference::elementwise as host;
use polytape_reference::embedding::{embedding, embedding_vjp};
use polytape_reference::half::Operands;
use polytape_reference::layout;
use polytape_reference::matmul::{matmul, matmul_vjp};
use polytape_reference::normalize::{rms_norm, rms_norm_vjp, softmax, softmax_vjp};
use polytape_reference::rotary::{Rotary, Scaling, rotary, rotary_vjp};
use polytape_reference::tolerance::{self, ELEMENTWISE, EXACT, TRANSCENDENTAL, normalize, reduction};

use super::check::{Check, Part, differentiable, differentiable_at, shape, upload};

/// Every check of this group.
pub fn checks(kernels: KernelTier) -> Vec<Check> {
    let groups = [matmuls(), elementwise(), broadcasts_and_sums(), activations(), rows(), layouts(), transformer(kernels)];
    groups.into_iter().flatten().collect()
}

fn multiply<'t>(x: &[Var<'t>], transposes: [bool; 2]) -> Result<Var<'t>> {
    match transposes {
        [false, false] => x[0].matmul(&x[1]),
        [false, true] => x[0].matmul_nt(&x[1]),
        [true, false] => x[0].matmul_tn(&x[1]),
        [true, true] => x[0].matmul_tt(&x[1]),
    }
}

fn matmuls() -> Vec<Check> {
    let stored = |[a, b]: [usize; 2], transposed: bool| if transposed { [b, a] } else { [a, b] };
    let mut lines = Vec::new();
    for [rows, inner, columns] in [[67, 37, 101], [130, 68, 260]] {
        for transposes in [[false, false], [false, true], [true, false], [true, true]] {
            let [ta, tb] = transposes;
            let name = format!("matmul {}·{}", if ta { "Aᵀ" } else { "A" }, if tb { "Bᵀ" } else { "B" });
            let (a, b) = (stored([rows, inner], ta), stored([inner, columns], tb));
            lines.push(differentiable(
                &name,
                random_arrays(11, [&a, &b]),
                move |x| multiply(x, transposes),
                move |x| matmul(&x[0], &x[1], ta, tb),
                move |x, dy| matmul_vjp(&x[0], &x[1], ta, tb, dy),
                &[reduction(inner), reduction(columns), reduction(rows)],
            ));
        }
    }
    lines.push(differentiable(
        "matmul of a batch",
        random_arrays(12, [&[3, 37, 65], &[3, 65, 41]]),
        |x| x[0].matmul(&x[1]),
        |x| matmul(&x[0], &x[1], false, false),
        |x, dy| matmul_vjp(&x[0], &x[1], false, false, dy),
        &[reduction(65)],
    ));
    lines.push(epilogue());
    lines.push(symmetric());
    lines.extend(rounded());
    lines
}

/// Linear layers at the precisions below f32, against a reference that rounds the operands in the same way.
fn rounded() -> Vec<Check> {
    let line = |(precision, operands, products): (Precision, Operands, usize), [rows, inner, columns]: [usize; 3]| {
        differentiable_at(
            precision,
            &format!("matmul A·Bᵀ at {precision}"),
            random_arrays(15, [&[rows, inner], &[columns, inner]]),
            |x| x[0].matmul_nt(&x[1]),
            move |x| operands.matmul(&x[0], &x[1], false, true),
            move |x, dy| operands.matmul_vjp(&x[0], &x[1], false, true, dy),
            &[inner, columns, rows].map(|terms| reduction(products * terms)),
        )
    };
    let precisions = [(Precision::F16x3, Operands::Split, 3), (Precision::F16, Operands::Half, 1)];
    // Few rows have small tiles, which compile sooner, on software adapters.
    precisions.into_iter().flat_map(|precision| [[7, 37, 101], [130, 68, 260]].map(|sizes| line(precision, sizes))).collect()
}

/// α·f·A·B + β·out + σ·C + δ·I.
fn epilogue() -> Check {
    let [rows, inner, columns] = [68, 36, 132];
    let [a, b, c, old, factors] =
        random_arrays(13, [&[rows, inner], &[inner, columns], &[rows, columns], &[rows, columns], &[5]]);
    let diagonal = Array::from_fn(&c.shape, |at| if at / columns == at % columns { -0.75 } else { 0.0 });
    let product = a.matmul(&b).times(0.5 * factors.data[3]);
    let wanted = product.plus(&c.times(2.0)).plus(&diagonal).plus(&old.times(-1.5));
    let run = move |gpu: &Gpu| -> Result<Vec<Part>> {
        let [a, b, c, out, factors] = [&a, &b, &c, &old, &factors].map(|array| upload(gpu, array));
        let (a, b, c, out, factors) = (a?, b?, c?, out?, factors?);
        let gemm = Gemm {
            alpha: 0.5,
            factor: Some(Factor { tensor: &factors, index: 3, batch_stride: 0 }),
            addend: Some((Matrix::new(&c)?, 2.0)),
            delta: -0.75,
            beta: -1.5,
            ..Gemm::new(Matrix::new(&a)?, Matrix::new(&b)?)
        };
        gemm.compute_into(Matrix::new(&out)?)?;
        Ok(vec![Part::of(&out, &wanted, reduction(inner))?])
    };
    Check::new("matmul with its epilogue", shape(&[rows, inner, columns]), run)
}

/// A·Aᵀ, of which one triangle is computed and mirrored.
fn symmetric() -> Check {
    let [a] = random_arrays(14, [&[200, 100]]);
    let wanted = a.matmul(&a.transpose());
    let run = move |gpu: &Gpu| -> Result<Vec<Part>> {
        let a = upload(gpu, &a)?;
        let a = Matrix::new(&a)?;
        let product = Gemm { symmetric: true, ..Gemm::new(a, a.t()) }.compute()?;
        Ok(vec![Part::of(&product, &wanted, reduction(100))?])
    };
    Check::new("matmul A·Aᵀ, symmetric", shape(&[200, 100]), run)
}

fn elementwise() -> Vec<Check> {
    let pair = || random_arrays(21, [&[37, 101], &[37, 101]]);
    vec![
        differentiable(
            "add",
            pair(),
            |x| x[0].add(&x[1]),
            |x| host::add(&x[0], &x[1]),
            |_, dy| host::add_vjp(dy),
            &[ELEMENTWISE],
        ),
        differentiable(
            "sub",
            pair(),
            |x| x[0].sub(&x[1]),
            |x| host::sub(&x[0], &x[1]),
            |_, dy| host::sub_vjp(dy),
            &[ELEMENTWISE],
        ),
        differentiable(
            "mul",
            pair(),
            |x| x[0].mul(&x[1]),
            |x| host::mul(&x[0], &x[1]),
            |x, dy| host::mul_vjp(&x[0], &x[1], dy),
            &[ELEMENTWISE],
        ),
        differentiable(
            "scale",
            random_arrays(23, [&[67, 301]]),
            |x| x[0].scale(-0.75),
            |x| host::scale(&x[0], -0.75),
            |_, dy| host::scale_vjp(-0.75, dy),
            &[ELEMENTWISE],
        ),
    ]
}

/// Rows that are added or multiplied to every row, and sums over all elements.
fn broadcasts_and_sums() -> Vec<Check> {
    let with_row = || random_arrays(22, [&[65, 257], &[257]]);
    let one = || random_arrays(23, [&[67, 301]]);
    let (add_row, mul_row) = (host::add_row_vjp, host::mul_row_vjp);
    vec![
        differentiable(
            "add_row",
            with_row(),
            |x| x[0].add_row(&x[1]),
            |x| host::add_row(&x[0], &x[1]),
            move |_, dy| add_row(dy),
            &[ELEMENTWISE, EXACT, reduction(65)],
        ),
        differentiable(
            "mul_row",
            with_row(),
            |x| x[0].mul_row(&x[1]),
            |x| host::mul_row(&x[0], &x[1]),
            move |x, dy| mul_row(&x[0], &x[1], dy),
            &[ELEMENTWISE, ELEMENTWISE, reduction(65)],
        ),
        differentiable(
            "sum",
            one(),
            |x| x[0].sum(),
            |x| host::sum(&x[0]),
            |x, dy| host::sum_vjp(&x[0], dy),
            &[reduction(67 * 301), EXACT],
        ),
        differentiable(
            "mean",
            one(),
            |x| x[0].mean(),
            |x| host::mean(&x[0]),
            |x, dy| host::mean_vjp(&x[0], dy),
            &[reduction(67 * 301), ELEMENTWISE],
        ),
    ]
}

type Unary = (
    &'static str,
    for<'t> fn(&Var<'t>) -> Result<Var<'t>>,
    fn(&Array) -> Array,
    fn(&Array, &Array) -> [Array; 1],
    polytape_reference::tolerance::Tolerance,
);

fn activations() -> Vec<Check> {
    let list: [Unary; 6] = [
        ("relu", |x| x.relu(), host::relu, host::relu_vjp, EXACT),
        ("tanh", |x| x.tanh(), host::tanh, host::tanh_vjp, TRANSCENDENTAL),
        ("exp", |x| x.exp(), host::exp, host::exp_vjp, TRANSCENDENTAL),
        ("log", |x| x.log(), host::log, host::log_vjp, TRANSCENDENTAL),
        ("silu", |x| x.silu(), host::silu, host::silu_vjp, TRANSCENDENTAL),
        ("gelu", |x| x.gelu(), host::gelu, host::gelu_vjp, TRANSCENDENTAL),
    ];
    let line = |(name, record, forward, vjp, tolerance): Unary| {
        let [x] = random_arrays(31, [&[37, 101]]);
        // log needs positive inputs; all inputs stay in the range that the tolerance covers.
        let x = x.map(|value| if name == "log" { value.abs() + 0.1 } else { value.clamp(-5.0, 5.0) });
        let (forward, vjp) = (move |x: &[Array]| forward(&x[0]), move |x: &[Array], dy: &Array| vjp(&x[0], dy));
        differentiable(name, [x], move |x| record(&x[0]), forward, vjp, &[tolerance])
    };
    let mut lines: Vec<Check> = list.into_iter().map(line).collect();
    lines.push(differentiable(
        "swiglu",
        random_arrays(32, [&[37, 260], &[37, 260]]),
        |x| x[0].swiglu(&x[1]),
        |x| host::swiglu(&x[0], &x[1]),
        |x, dy| host::swiglu_vjp(&x[0], &x[1], dy),
        &[TRANSCENDENTAL],
    ));
    lines
}

fn rows() -> Vec<Check> {
    let mut lines = Vec::new();
    for columns in [257, 1028] {
        lines.push(differentiable(
            "softmax",
            random_arrays(41, [&[33, columns]]),
            |x| x[0].softmax(),
            |x| softmax(&x[0]),
            |x, dy| softmax_vjp(&x[0], dy),
            &[normalize(columns)],
        ));
        lines.push(differentiable(
            "rms_norm",
            random_arrays(42, [&[33, columns], &[columns]]),
            |x| x[0].rms_norm(&x[1], 1e-5),
            |x| rms_norm(&x[0], &x[1], f64::from(1e-5f32)),
            |x, dy| rms_norm_vjp(&x[0], &x[1], f64::from(1e-5f32), dy),
            &[normalize(columns), normalize(columns), normalize(columns).and(reduction(33))],
        ));
    }
    lines
}

fn layouts() -> Vec<Check> {
    vec![
        differentiable(
            "transpose",
            random_arrays(51, [&[67, 130]]),
            |x| x[0].transpose(),
            |x| layout::transpose(&x[0]),
            |_, dy| layout::transpose_vjp(dy),
            &[EXACT],
        ),
        differentiable(
            "slice",
            random_arrays(52, [&[5, 37, 11]]),
            |x| x[0].slice(1, 3..29),
            |x| layout::slice(&x[0], 1, 3..29),
            |x, dy| layout::slice_vjp(&x[0], 1, 3..29, dy),
            &[EXACT],
        ),
        differentiable(
            "concat",
            random_arrays(53, [&[5, 7, 11], &[5, 30, 11]]),
            |x| Var::concat(&[&x[0], &x[1]], 1),
            |x| layout::concat(&[&x[0], &x[1]], 1),
            |x, dy| layout::concat_vjp(&[&x[0], &x[1]], 1, dy).try_into().expect("bug: two parts have two gradients"),
            &[EXACT],
        ),
    ]
}

fn transformer(kernels: KernelTier) -> Vec<Check> {
    let mut lines = Vec::new();
    let ids = || (0..301).map(|at| at * 7919 % 97).collect::<Vec<u32>>();
    let look_up = move |x: &[Var<'_>]| Indices::from_slice(x[0].value().gpu(), &ids());
    lines.push(differentiable(
        "embedding",
        random_arrays(61, [&[97, 68]]),
        move |x| x[0].embedding(&look_up(x)?),
        move |x| embedding(&x[0], &ids()),
        move |x, dy| embedding_vjp(&x[0], &ids(), dy),
        &[EXACT, reduction(4)],
    ));
    let settings = Rotary { seq: 101, head_dim: 64, offset: 0, theta: 10_000.0, scaling: Scaling::None };
    lines.push(differentiable(
        "rotary",
        random_arrays(62, [&[2 * 101, 2 * 64]]),
        |x| x[0].rotary(&RotaryTable::new(x[0].value().gpu(), 101, 64, 10_000.0)?, 101),
        move |x| rotary(&x[0], settings),
        move |_, dy| rotary_vjp(settings, dy),
        &[ELEMENTWISE],
    ));
    // The fallback kernels hold rows in registers: the same code for each width from 65 to 128, but a compiler takes long for the widest.
    let wide = if kernels == KernelTier::Fallback { 80 } else { 128 };
    let shapes = [[2, 67, 4, 2, 32], [1, 130, 2, 1, 64], [1, 37, 2, 2, wide]];
    let mut cases = shapes.map(|shape| (Precision::F32, shape)).to_vec();
    // Attention has f16 operands on matrix units only.
    if kernels == KernelTier::Matrix {
        cases.extend(shapes[1..].iter().map(|shape| (Precision::F16, *shape)));
    }
    for (precision, [batch, seq, heads, kv_heads, head_dim]) in cases {
        let on_device = AttentionShape { batch, heads, kv_heads, head_dim };
        let on_host = attention::AttentionShape { batch, seq, heads, kv_heads, head_dim };
        let (q, kv) = ([batch * seq, heads * head_dim], [batch * seq, kv_heads * head_dim]);
        let (suffix, tolerance) = match precision {
            Precision::F16 => (" at f16", tolerance::ATTENTION_F16),
            _ => ("", tolerance::attention(seq, head_dim)),
        };
        lines.push(differentiable_at(
            precision,
            &format!("attention{suffix}, {heads} heads of {head_dim}, {kv_heads} for k, v"),
            random_arrays(63, [&q, &kv, &kv]),
            move |x| x[0].attention(&x[1], &x[2], on_device),
            move |x| attention(&x[0], &x[1], &x[2], on_host),
            move |x, dy| attention_vjp(&x[0], &x[1], &x[2], on_host, dy),
            &[tolerance],
        ));
    }
    let targets = || (0..68).map(|at| at * 31 % 260).collect::<Vec<u32>>();
    let limit = tolerance::cross_entropy(68, 36, 260);
    lines.push(differentiable(
        "head and cross-entropy",
        random_arrays(64, [&[68, 36], &[260, 36]]),
        move |x| x[0].head_cross_entropy(&x[1], &Indices::from_slice(x[0].value().gpu(), &targets())?),
        move |x| cross_entropy_head(&x[0], &x[1], &targets()),
        move |x, dy| cross_entropy_head_vjp(&x[0], &x[1], &targets(), dy),
        // In dx the target's term is as large as all others together and of the other sign.
        &[limit, limit.and(reduction(260).times(2.0)), limit],
    ));
    lines
}
