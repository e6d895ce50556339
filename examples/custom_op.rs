//! An operation defined outside the crate: Snake, y = x + sin²(αx)/α, with a trainable α per column. x [rows, columns],
//! α [columns]. Saves x and α. It needs only a shader, the forward and the backward.
//!
//!     cargo run --release --example custom_op

use polytape::gpu::{Access, Kernel, Launch, grid};
use polytape::{Error, Gpu, Gradients, Params, Result, Tape, Tensor, Var};

const SOURCE: &str = "
struct Args { count: u32, columns: u32 }

var<immediate> args: Args;
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> alpha: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(2) var<storage, read> dy: array<f32>;
@group(0) @binding(3) var<storage, read_write> dx: array<f32>;
@group(0) @binding(4) var<storage, read_write> dalpha: array<f32>;

@compute @workgroup_size(64)
fn forward(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) local: u32) {
    let i = linear_index(group, groups, local, 64u);
    if (i >= args.count) { return; }
    let a = alpha[i % args.columns];
    y[i] = x[i] + sin(a * x[i]) * sin(a * x[i]) / a;
}

@compute @workgroup_size(64)
fn backward(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) local: u32) {
    let i = linear_index(group, groups, local, 64u);
    if (i >= args.count) { return; }
    let a = alpha[i % args.columns];
    let slope = sin(2.0 * a * x[i]);
    dx[i] = dy[i] * (1.0 + slope);
    dalpha[i] = dy[i] * (x[i] * slope - sin(a * x[i]) * sin(a * x[i]) / a) / a; // per row; summed over the rows afterwards
}
";

static FORWARD: Kernel = Kernel::new("snake", SOURCE, "forward", &[Access::Read, Access::Read, Access::ReadWrite]);
const FIVE: &[Access] = &[Access::Read, Access::Read, Access::Read, Access::ReadWrite, Access::ReadWrite];
static BACKWARD: Kernel = Kernel::new("snake backward", SOURCE, "backward", FIVE);

/// One invocation per element of x, the first tensor of both kernels.
fn run(kernel: &Kernel, tensors: &[&Tensor]) -> Result<()> {
    let (rows, columns) = tensors[0].rows_and_columns();
    let buffers: Vec<_> = tensors.iter().map(|tensor| tensor.slice()).collect();
    tensors[0].gpu().launch(&Launch {
        kernel,
        constants: &[],
        buffers: &buffers,
        arguments: bytemuck::cast_slice(&[(rows * columns) as u32, columns as u32]),
        workgroups: grid((rows * columns) as u64, 64),
        iterations: 0,
        work: 0,
    })
}

/// x [rows, columns], alpha [columns] → [rows, columns]
fn snake<'t>(x: &Var<'t>, alpha: &Var<'t>) -> Result<Var<'t>> {
    let [_, columns] = x.value().dims("snake")?;
    if alpha.shape() != [columns] {
        let problem = format!("{:?} with α {:?}: [{columns}] expected", x.shape(), alpha.shape());
        return Err(Error::shape("snake", &[x.shape(), alpha.shape()], problem));
    }
    let (x_value, alpha_value) = (x.value().clone(), alpha.value().clone());
    let y = Tensor::uninitialized(x_value.gpu(), x_value.shape())?;
    run(&FORWARD, &[&x_value, &alpha_value, &y])?;
    x.tape().record("snake", y, [x, alpha], move |dy, [_, wants_alpha]| {
        let dx = Tensor::uninitialized(dy.gpu(), dy.shape())?;
        let dalpha = Tensor::uninitialized(dy.gpu(), dy.shape())?;
        run(&BACKWARD, &[&x_value, &alpha_value, &dy, &dx, &dalpha])?;
        Ok([Some(dx), wants_alpha.then(|| dalpha.column_sum()).transpose()?])
    })
}

/// Σ weights·snake(x, alpha): the weights give every element of y a different gradient.
fn weighted<'t>(x: &Var<'t>, alpha: &Var<'t>, weights: &Tensor) -> Result<Var<'t>> {
    snake(x, alpha)?.mul(&x.tape().constant(weights.clone()))?.sum()
}

/// Step of the central difference in f32, whose error is about STEP² + 1e-7/STEP.
const STEP: f32 = 5e-3;
const TOLERANCE: f32 = 1e-3;

fn main() -> Result<()> {
    let gpu = Gpu::open(&Default::default())?;
    let params = Params::new(&gpu);
    let wave = |frequency: f32| (0..24).map(|i| 2.0 * (frequency * i as f32).sin()).collect::<Vec<f32>>();
    let weights = Tensor::from_slice(&gpu, &wave(0.9), &[6, 4])?;
    let (mut inputs, shapes): ([Vec<f32>; 2], [&[usize]; 2]) = ([wave(1.7), vec![0.5, 1.0, 1.5, 2.0]], [&[6, 4], &[4]]);
    let upload = |inputs: &[Vec<f32>; 2], which: usize| Tensor::from_slice(&gpu, &inputs[which], shapes[which]);

    let tape = Tape::new(&params);
    let leaves = [tape.leaf(upload(&inputs, 0)?), tape.leaf(upload(&inputs, 1)?)];
    let gradients = tape.backward(&weighted(&leaves[0], &leaves[1], &weights)?, &mut Gradients::new())?;

    let mut worst = 0f32;
    println!("{:>6} {:>10} {:>10} {:>18}", "input", "value", "gradient", "finite difference");
    for which in [0, 1] {
        let gradient = gradients.get(&leaves[which]).ok_or_else(|| Error::Value("no gradient came back".into()))?.to_vec()?;
        for (i, gradient) in gradient.into_iter().enumerate() {
            let value = inputs[which][i];
            let mut loss_at = |shifted: f32| {
                inputs[which][i] = shifted;
                let tape = Tape::inference(&params);
                let [x, alpha] = [tape.constant(upload(&inputs, 0)?), tape.constant(upload(&inputs, 1)?)];
                weighted(&x, &alpha, &weights)?.value().item()
            };
            let difference = (loss_at(value + STEP)? - loss_at(value - STEP)?) / (2.0 * STEP);
            inputs[which][i] = value;
            worst = worst.max((gradient - difference).abs());
            if i < 4 {
                println!("  {}[{i}] {value:>10.4} {gradient:>10.5} {difference:>18.5}", ["x", "α"][which]);
            }
        }
    }
    assert!(worst <= TOLERANCE, "the gradient of snake is off by {worst:.1e}, {TOLERANCE:.0e} allowed");
    println!("all 28 gradients of snake agree with finite differences: maximum error {worst:.1e}");
    Ok(())
}
