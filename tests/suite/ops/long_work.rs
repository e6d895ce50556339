//! Long dispatches are split because of driver watchdogs: the bits are those of a single dispatch. The host tier has no watchdog.

use polytape::gpu::KernelTier;
use polytape::{AttentionShape, Gemm, Gpu, GpuOptions, Gradients, Matrix, Params, Result, Tape, Tensor};

use super::attention::precisions;
use crate::device;

/// Runs `compute` on two devices per tier, one with short dispatches, and requires the same bits from more dispatches.
fn check(name: &str, compute: impl Fn(&Gpu) -> Result<Vec<Tensor>>) -> Result<()> {
    for gpu in device::all().iter().filter(|gpu| gpu.kernels() != KernelTier::Host) {
        let run = |work_limit: Option<u64>| -> Result<(Vec<u32>, u64)> {
            // Not the shared devices: other tests dispatch on those.
            let gpu = device::open(&GpuOptions { kernels: Some(gpu.kernels()), work_limit, ..Default::default() })?;
            let tensors = compute(&gpu)?;
            let values = tensors.iter().map(Tensor::to_vec).collect::<Result<Vec<_>>>()?;
            Ok((values.concat().into_iter().map(f32::to_bits).collect(), gpu.counters().dispatches))
        };
        let ((whole, few), (split, many)) = (run(None)?, run(Some(300_000))?);
        assert!(many > few, "{name} with {} kernels: {many} dispatches instead of {few}", gpu.kernels());
        assert!(whole == split, "{name} with {} kernels: other bits", gpu.kernels());
    }
    Ok(())
}

#[test]
fn products_are_split_along_their_rows() -> Result<()> {
    check("product", |gpu| {
        let a = Tensor::normal(gpu, &[2, 201, 67], 1.0, 1)?;
        let b = Tensor::normal(gpu, &[2, 67, 131], 1.0, 2)?;
        let c = Tensor::normal(gpu, &[2, 201, 131], 1.0, 3)?;
        let gemm = Gemm { addend: Some((Matrix::new(&c)?, 0.5)), ..Gemm::new(Matrix::new(&a)?, Matrix::new(&b)?) };
        let mut results = vec![gemm.compute()?];
        let transposed = Gemm::new(Matrix::new(&b)?.t(), Matrix::new(&a)?.t());
        results.push(transposed.compute()?);
        Ok(results)
    })
}

#[test]
fn a_symmetric_product_with_a_diagonal_is_cut() -> Result<()> {
    check("symmetric product", |gpu| {
        let x = Tensor::normal(gpu, &[1, 203, 59], 1.0, 4)?;
        let gram = Gemm { delta: 0.25, symmetric: true, ..Gemm::new(Matrix::new(&x)?, Matrix::new(&x)?.t()) };
        Ok(vec![gram.compute()?])
    })
}

#[test]
fn attention_is_split_along_its_queries_and_its_keys() -> Result<()> {
    for &precision in precisions() {
        check(&format!("attention at {precision}"), |gpu| {
            let shape = AttentionShape { batch: 2, heads: 4, kv_heads: 2, head_dim: 32 };
            let params = Params::new(gpu);
            let tape = Tape::new(&params).with_precision(precision);
            let leaf = |columns: usize, seed: u64| Ok(tape.leaf(Tensor::normal(gpu, &[2 * 300, columns], 1.0, seed)?));
            let (q, k, v) = (leaf(128, 5)?, leaf(64, 6)?, leaf(64, 7)?);
            let o = q.attention(&k, &v, shape)?;
            let dy = Tensor::normal(gpu, o.shape(), 1.0, 8)?;
            let leaves = tape.backward_from(&[(&o, dy)], &mut Gradients::new())?;
            let gradients = [&q, &k, &v].map(|leaf| leaves.get(leaf).expect("a gradient").clone());
            Ok([o.value().clone()].into_iter().chain(gradients).collect())
        })?;
    }
    Ok(())
}

#[test]
fn the_first_pieces_of_a_long_dispatch_are_timed_and_change_no_bit() -> Result<()> {
    // The tier that is fastest on the adapter, of those that dispatch.
    let kernels = Some(device::narrow().kernels());
    let run = |work_limit| -> Result<(Vec<u32>, u64)> {
        let gpu = device::open(&GpuOptions { kernels, work_limit, ..Default::default() })?;
        // More than 100 ms at the speed that is assumed of any adapter that is not a CPU.
        let [rows, inner, columns] = if gpu.adapter().is_software() { [1024, 1024, 2560] } else { [2048, 2048, 2560] };
        let a = Tensor::normal(&gpu, &[rows, inner], 1.0, 1)?;
        let b = Tensor::normal(&gpu, &[inner, columns], 1.0, 2)?;
        let product = Gemm::new(Matrix::new(&a)?, Matrix::new(&b)?).compute()?.to_vec()?;
        Ok((product.into_iter().map(f32::to_bits).collect(), gpu.counters().dispatches))
    };
    let ((timed, pieces), (whole, one)) = (run(None)?, run(Some(u64::MAX))?);
    assert!(pieces > 1 && one == 1, "{pieces} dispatches and {one}");
    assert!(timed == whole, "other bits");
    Ok(())
}
