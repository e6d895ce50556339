//! Single products in the libraries, interleaved: cubes, and the largest of a training step.

use std::cell::RefCell;

use ::burn::tensor::{Device, DeviceKind, TensorData};
use ::polytape::gpu::Tuning;
use ::polytape::{Gemm, Gpu, GpuOptions, Matrix};

use crate::{Result, median, seconds, torch};

/// Rows, inner size, columns of x·wᵀ.
const SHAPES: [[usize; 3]; 6] =
    [[512, 512, 512], [1024, 1024, 1024], [512, 256, 768], [512, 768, 256], [512, 256, 256], [256, 256, 256]];
const ROUNDS: usize = 5;
/// Calls per measurement.
const CALLS: usize = 16;

/// A synchronous product.
struct Peer<'a> {
    name: &'static str,
    /// Multiplies N times and waits; of one product, returns all elements, or the first and the last.
    multiply: Box<dyn Fn(usize) -> Result<Vec<f32>> + 'a>,
}

fn polytape<'a>(gpu: &'a Gpu, [rows, inner, columns]: [usize; 3], x: &[f32], w: &[f32]) -> Result<Peer<'a>> {
    let x = ::polytape::Tensor::from_slice(gpu, x, &[rows, inner])?;
    let w = ::polytape::Tensor::from_slice(gpu, w, &[columns, inner])?;
    let multiply = move |calls: usize| {
        let mut values = Vec::new();
        for _ in 0..calls {
            let product = Gemm::new(Matrix::new(&x)?, Matrix::new(&w)?.t()).compute()?;
            if calls == 1 {
                values = product.to_vec()?;
            }
        }
        gpu.synchronize()?;
        Ok(values)
    };
    Ok(Peer { name: "polytape", multiply: Box::new(multiply) })
}

fn burn<'a>(
    name: &'static str,
    device: &'a Device,
    [rows, inner, columns]: [usize; 3],
    x: &[f32],
    w: &[f32],
) -> Result<Peer<'a>> {
    let x = ::burn::tensor::Tensor::<2>::from_data(TensorData::new(x.to_vec(), [rows, inner]), device);
    let w = ::burn::tensor::Tensor::<2>::from_data(TensorData::new(w.to_vec(), [columns, inner]), device);
    let multiply = move |calls: usize| {
        let mut values = Vec::new();
        for _ in 0..calls {
            let product = x.clone().matmul(w.clone().transpose());
            if calls == 1 {
                values = product.into_data().try_to_vec::<f32>().map_err(|e| format!("burn: {e:?}"))?;
            }
        }
        device.sync().map_err(|error| format!("burn: {error:?}"))?;
        Ok(values)
    };
    Ok(Peer { name, multiply: Box::new(multiply) })
}

fn candle<'a>([rows, inner, columns]: [usize; 3], x: &[f32], w: &[f32]) -> Result<Peer<'a>> {
    let x = candle_core::Tensor::from_slice(x, (rows, inner), &candle_core::Device::Cpu)?;
    let w = candle_core::Tensor::from_slice(w, (columns, inner), &candle_core::Device::Cpu)?;
    let multiply = move |calls: usize| {
        let mut values = Vec::new();
        for _ in 0..calls {
            let product = x.matmul(&w.t()?)?;
            if calls == 1 {
                values = product.flatten_all()?.to_vec1::<f32>()?;
            }
        }
        Ok(values)
    };
    Ok(Peer { name: "candle (CPU)", multiply: Box::new(multiply) })
}

fn torch(run: &RefCell<torch::Run>, [rows, inner, columns]: [usize; 3]) -> Peer<'_> {
    let multiply = move |calls: usize| {
        let answer = run.borrow_mut().ask(&format!("multiply {rows} {inner} {columns} {calls}"))?;
        Ok(answer.split_whitespace().map(str::parse).collect::<std::result::Result<_, _>>()?)
    };
    Peer { name: "PyTorch (CPU)", multiply: Box::new(multiply) }
}

/// Whether a result is that of polytape, of which some libraries give only the first and last element.
fn agrees(result: &[f32], want: &[f32]) -> bool {
    let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-2;
    match (result, want) {
        (&[first, last], &[want_first, .., want_last]) => near((&first, &want_first)) && near((&last, &want_last)),
        _ => result.len() == want.len() && result.iter().zip(want).all(near),
    }
}

pub fn run(pytorch: Option<torch::Run>) -> Result<()> {
    let pytorch = pytorch.map(RefCell::new);
    let gpu = Gpu::open(&GpuOptions { tuning: Tuning::Process, ..Default::default() })?; // as burn does
    let (wgpu, flex) = (Device::wgpu(DeviceKind::DefaultDevice), Device::flex());
    println!("\n| x·wᵀ, rows × inner × columns | library | GFLOP/s, median of {ROUNDS} | polytape / this |\n|---|---|---:|---:|");
    for shape @ [rows, inner, columns] in SHAPES {
        let values = |count: usize, seed: usize| -> Vec<f32> {
            (0..count).map(|i| ((i * 7_919 + seed) % 1_009) as f32 / 504.5 - 1.0).collect()
        };
        let (x, w) = (values(rows * inner, 1), values(columns * inner, 2));
        let mut peers = vec![
            polytape(&gpu, shape, &x, &w)?,
            burn("burn (wgpu)", &wgpu, shape, &x, &w)?,
            burn("burn (flex, CPU)", &flex, shape, &x, &w)?,
            candle(shape, &x, &w)?,
        ];
        peers.extend(pytorch.as_ref().map(|run| torch(run, shape)));
        let results = peers.iter().map(|peer| (peer.multiply)(1)).collect::<Result<Vec<_>>>()?;
        for (peer, result) in peers.iter().zip(&results) {
            if results[0].len() != rows * columns || !agrees(result, &results[0]) {
                return Err(format!("{}: another product of {shape:?}", peer.name).into());
            }
            (peer.multiply)(CALLS)?; // warm-up: burn autotunes
        }
        let mut rates = vec![Vec::new(); peers.len()];
        for _ in 0..ROUNDS {
            for (peer, rates) in peers.iter().zip(&mut rates) {
                let run = |calls: usize| (peer.multiply)(calls).map(drop);
                let seconds = seconds(|| run(2), || run(CALLS))?;
                rates.push(2e-9 * (CALLS * rows * inner * columns) as f64 / seconds);
            }
        }
        let medians: Vec<f64> = rates.into_iter().map(median).collect();
        for (peer, rate) in peers.iter().zip(&medians) {
            println!("| {rows} × {inner} × {columns} | {} | {rate:.1} | {:.2} |", peer.name, medians[0] / rate);
        }
    }
    Ok(())
}
