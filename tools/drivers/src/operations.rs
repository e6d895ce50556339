//! Every operation at shapes that reach every combination of its kernels' constants. Products are in `gemm`.

use polytape::gpu::{KernelTier, Peak, Unit};
use polytape::llama::LlamaConfig;
use polytape::optim::{Clip, OPTIMIZERS};
use polytape::spectral::{NewtonSchulz, Norm, PcConfig, Preconditioner, level_coefficients, newton_schulz};
use polytape::{
    AttentionShape, Gpu, Gradients, Indices, MAX_HEAD_DIM, Params, Precision, Result, Role, RotaryTable, Tape, Tensor, Var,
    rms_and_abs_max,
};

use crate::steps::sample;

/// Columns that allow vec4 accesses, and that do not.
const COLUMNS: [usize; 2] = [12, 7];
/// More rows than a narrow binding holds, and than a partial sum has.
const ROWS: usize = 2500;
/// Rows per token of a vocabulary.
const TOKENS: usize = 40;

/// Records all of them.
pub(crate) fn run(gpu: &Gpu) -> Result<()> {
    for columns in COLUMNS {
        for rows in [3, ROWS] {
            elementwise(gpu, rows, columns)?;
            row_kernels(gpu, rows, columns)?;
        }
        tables(gpu, columns)?;
        matrices(gpu, columns)?;
    }
    for head_dim in 1..=MAX_HEAD_DIM {
        attention(gpu, head_dim)?;
    }
    optimizers(gpu)
}

/// Records what a narrow binding does not hold: PC layers for every length of a row that they distinguish, and sampling at every width
/// of a head.
pub(crate) fn run_wide(gpu: &Gpu) -> Result<()> {
    Peak::new(gpu, Unit::MultiplyAdd)?.run()?;
    if gpu.kernels() == KernelTier::Matrix {
        Peak::new(gpu, Unit::Matrix)?.run()?;
    }
    for columns in spectral_columns(gpu) {
        spectral(gpu, [2, columns], Norm::Spectral, 1)?;
    }
    for head_dim in (2..=MAX_HEAD_DIM).step_by(2) {
        let config = LlamaConfig { head_dim: Some(head_dim), ..LlamaConfig::new(8, 1, 1, 64) };
        sample(gpu, config)?;
    }
    Ok(())
}

/// An operation on leaves of these shapes: forward and backward, with new gradients and accumulated into earlier ones, where all
/// inputs want one and where only one does, and without any.
fn differentiate(gpu: &Gpu, shapes: &[&[usize]], record: impl for<'t> Fn(&[Var<'t>]) -> Result<Var<'t>>) -> Result<()> {
    differentiate_at(Precision::F32, gpu, shapes, record)
}

fn differentiate_at(
    precision: Precision,
    gpu: &Gpu,
    shapes: &[&[usize]],
    record: impl for<'t> Fn(&[Var<'t>]) -> Result<Var<'t>>,
) -> Result<()> {
    let params = Params::new(gpu);
    let tensors = shapes.iter().map(|shape| Tensor::zeros(gpu, shape)).collect::<Result<Vec<_>>>()?;
    let wanted: Vec<Option<usize>> = (0..shapes.len()).map(Some).chain([None]).collect();
    for only in wanted {
        for is_added in [false, true] {
            let tape = Tape::new(&params).with_precision(precision);
            let input = |(at, tensor): (usize, &Tensor)| match only {
                Some(only) if at != only => tape.constant(tensor.clone()),
                _ => tape.leaf(tensor.clone()),
            };
            let inputs: Vec<Var<'_>> = tensors.iter().enumerate().map(input).collect();
            let y = record(&inputs)?;
            // Walked before y's: the gradients of the operation then meet those that are there.
            let earlier = inputs.iter().filter(|x| is_added && x.wants_gradient()).map(|x| x.scale(1.0));
            let earlier = earlier.collect::<Result<Vec<_>>>()?;
            let mut seeds = vec![(&y, Tensor::zeros(gpu, y.shape())?)];
            for x in &earlier {
                seeds.push((x, Tensor::zeros(gpu, x.shape())?));
            }
            tape.backward_from(&seeds, &mut Gradients::new())?;
        }
    }
    let tape = Tape::inference(&params).with_precision(precision);
    let inputs: Vec<Var<'_>> = tensors.iter().map(|tensor| tape.constant(tensor.clone())).collect();
    record(&inputs).map(drop)
}

fn elementwise(gpu: &Gpu, rows: usize, columns: usize) -> Result<()> {
    let (x, row) = (&[rows, columns][..], &[columns][..]);
    differentiate(gpu, &[x, x], |x| x[0].add(&x[1]))?;
    differentiate(gpu, &[x, x], |x| x[0].sub(&x[1]))?;
    differentiate(gpu, &[x, x], |x| x[0].mul(&x[1]))?;
    differentiate(gpu, &[x], |x| x[0].mul(&x[0]))?;
    differentiate(gpu, &[x], |x| x[0].scale(2.0))?;
    differentiate(gpu, &[x, row], |x| x[0].add_row(&x[1]))?;
    differentiate(gpu, &[x, row], |x| x[0].mul_row(&x[1]))?;
    differentiate(gpu, &[x], |x| x[0].sum())?;
    differentiate(gpu, &[x], |x| x[0].mean())?;
    differentiate(gpu, &[x], |x| x[0].relu())?;
    differentiate(gpu, &[x], |x| x[0].tanh())?;
    differentiate(gpu, &[x], |x| x[0].exp())?;
    differentiate(gpu, &[x], |x| x[0].log())?;
    differentiate(gpu, &[x], |x| x[0].silu())?;
    differentiate(gpu, &[x], |x| x[0].gelu())?;
    differentiate(gpu, &[x, x], |x| x[0].swiglu(&x[1]))?;
    let tensor = Tensor::zeros(gpu, x)?;
    tensor.hadamard(&tensor)?;
    tensor.scaled_by(&Tensor::zeros(gpu, &[1])?, 1.0)?;
    tensor.weighted_sum(1.0, &tensor, 1.0)?;
    rms_and_abs_max(&[&tensor]).map(drop)
}

fn row_kernels(gpu: &Gpu, rows: usize, columns: usize) -> Result<()> {
    let (x, row) = (&[rows, columns][..], &[columns][..]);
    differentiate(gpu, &[x], |x| x[0].softmax())?;
    differentiate(gpu, &[x, row], |x| x[0].rms_norm(&x[1], 1e-5))?;
    differentiate(gpu, &[x], |x| x[0].transpose())?;
    differentiate(gpu, &[x], |x| x[0].slice(0, 1..rows))?;
    differentiate(gpu, &[x, x], |x| Var::concat(&[&x[0], &x[1]], 1))?;
    let heads = [rows, 2 * 2 * columns];
    let sequence = if rows.is_multiple_of(5) { 5 } else { rows };
    let table = RotaryTable::new(gpu, sequence, 2 * columns, 10_000.0)?;
    differentiate(gpu, &[&heads], |x| x[0].rotary(&table, sequence))?;
    Tensor::zeros(gpu, x)?.column_sum().map(drop)
}

fn tables(gpu: &Gpu, columns: usize) -> Result<()> {
    // A vocabulary with rows of either kind.
    let vocabulary = ROWS + 100 * columns;
    let ids = Indices::from_slice(gpu, &(0..TOKENS as u32).collect::<Vec<_>>())?;
    differentiate(gpu, &[&[vocabulary, columns]], |x| x[0].embedding(&ids))?;
    let vocabulary = 100 * columns;
    differentiate(gpu, &[&[TOKENS, columns], &[vocabulary, columns]], |x| x[0].head_cross_entropy(&x[1], &ids))
}

fn attention(gpu: &Gpu, head_dim: usize) -> Result<()> {
    // With f16 operands, matrix units have kernels of their own.
    let on_matrix_units = gpu.kernels() == KernelTier::Matrix;
    let precisions = if on_matrix_units { &[Precision::F32, Precision::F16][..] } else { &[Precision::F32] };
    for (heads, kv_heads) in [(1, 1), (4, 2)] {
        // Long enough for windows of a narrow binding, which holds the keys of a sequence.
        let tokens = (12 << 10) / (kv_heads * head_dim);
        let shape = AttentionShape { batch: 2, heads, kv_heads, head_dim };
        let (q, kv) = ([2 * tokens, heads * head_dim], [2 * tokens, kv_heads * head_dim]);
        for &precision in precisions {
            differentiate_at(precision, gpu, &[&q, &kv, &kv], |x| x[0].attention(&x[1], &x[2], shape))?;
        }
    }
    Ok(())
}

/// Rows of 1 to 25 strides of a workgroup, of both kinds.
fn spectral_columns(gpu: &Gpu) -> Vec<usize> {
    let workgroup = match gpu.kernels() {
        KernelTier::Fallback => gpu.adapter().subgroup_lanes.0 as usize,
        _ => 256,
    };
    (1..=25).flat_map(|strides| [4 * strides * workgroup, strides * workgroup - 1]).collect()
}

/// A PC layer over a matrix, in blocks.
fn spectral(gpu: &Gpu, shape: [usize; 2], norm: Norm, level: usize) -> Result<()> {
    let mut params = Params::new(gpu);
    let w = params.add("w.weight", Role::Matrix, Tensor::zeros(gpu, &shape)?)?;
    for recover_norm in [false, true] {
        let coefficients = level_coefficients(level)?;
        let config = PcConfig { coefficients, norm, recover_norm, power_iterations: 2, ..Default::default() };
        let heads = if shape[0].is_multiple_of(2) { 2 } else { 1 };
        let pc = Preconditioner::attach(&mut params, config, &[(w, heads)], 1)?;
        pc.refresh(&mut params)?;
        let effective = pc.effective(&params)?;
        let mut gradients = Gradients::new();
        gradients.add(w, Tensor::zeros(gpu, &shape)?)?;
        pc.backward(&params, &effective, gradients)?;
    }
    Ok(())
}

fn matrices(gpu: &Gpu, size: usize) -> Result<()> {
    for shape in [[size, size], [3 * size, size], [size, 3 * size]] {
        for norm in [Norm::Spectral, Norm::Frobenius, Norm::None] {
            for level in 0..=4 {
                spectral(gpu, shape, norm, level)?;
            }
        }
        for coefficients in [NewtonSchulz::Simple, NewtonSchulz::PolarExpress] {
            newton_schulz(Tensor::zeros(gpu, &shape)?, coefficients, 2)?;
            newton_schulz(Tensor::zeros(gpu, &[3, shape[0], shape[1]])?, coefficients, 2)?;
        }
    }
    Ok(())
}

/// Steps of one to nine small parameters, which share dispatches, and of matrices.
fn optimizers(gpu: &Gpu) -> Result<()> {
    for count in 1..=9 {
        for (_, rule) in OPTIMIZERS {
            let mut rule = rule();
            let mut params = Params::new(gpu);
            let mut gradients = Gradients::new();
            for at in 0..count {
                for (role, shape) in [(Role::Vector, &[COLUMNS[at % 2]][..]), (Role::Matrix, &[5, COLUMNS[at % 2]])] {
                    let id = params.add(format!("{at} {role:?}"), role, Tensor::zeros(gpu, shape)?)?;
                    // Matrices come in one number only, so that it is the vectors that the count is of.
                    if role == Role::Vector || at < 2 {
                        gradients.add(id, Tensor::zeros(gpu, shape)?)?;
                    }
                }
            }
            let clip = Clip::new(gpu, &gradients, 1.0)?;
            rule.step(&mut params, gradients, &clip, 1e-3)?;
        }
    }
    Ok(())
}
