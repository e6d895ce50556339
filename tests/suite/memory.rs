//! Device memory: budgets, the pool, and what is said where there is not enough.

use std::collections::HashMap;

use polytape::gpu::KernelTier;
use polytape::safetensors::{Reader, save};
use polytape::{Error, Gpu, GpuOptions, Result, Tensor};

use crate::device;
use crate::gpu::{DOUBLE, launch, refusal};

#[test]
fn a_memory_budget_holds_and_what_fits_still_works() -> Result<()> {
    const MIB: u64 = 1 << 20;
    let gpu = device::open(&GpuOptions { memory_budget: Some(MIB), ..Default::default() })?;
    match gpu.allocate(MIB + 1) {
        Err(Error::OutOfMemory { requested, live: 0, budget: Some(MIB) }) => assert!(requested > MIB),
        Err(error) => panic!("{error:?}"),
        Ok(_) => panic!("more than the budget"),
    }
    let half = Tensor::zeros(&gpu, &[1 << 17])?;
    let text = refusal(gpu.allocate(MIB));
    let want = "out of memory on the device: 1048576 bytes asked for while 524288 are in use and the budget is 1048576";
    assert_eq!(text, want);
    let other = Tensor::from_slice(&gpu, &[2.0; 1 << 17], &[1 << 17])?;
    assert_eq!(gpu.memory().live, MIB, "full to the last byte");
    assert!(gpu.allocate(1).is_err());
    assert_eq!(other.to_vec()?, vec![2.0; 1 << 17]);
    // Pooled buffers of other sizes are freed to make room.
    drop((half, other));
    let whole = Tensor::zeros(&gpu, &[1 << 18])?;
    assert_eq!(whole.to_vec()?, vec![0.0; 1 << 18]);
    assert_eq!(gpu.memory().allocated, MIB);
    Ok(())
}

#[test]
fn a_request_beyond_all_numbers_is_out_of_memory() -> Result<()> {
    let own = device::open(&Default::default())?;
    // A rehearsal has next to no limits.
    for gpu in [Gpu::rehearsal(own.adapter(), KernelTier::Portable)?, own] {
        let _live = gpu.allocate(1)?;
        for bytes in [u64::MAX, u64::MAX - 300] {
            match gpu.allocate(bytes) {
                Err(Error::OutOfMemory { requested, live: 256, .. }) => assert!(requested >= bytes),
                other => panic!("out of memory expected, found {:?}", other.map(|buffer| buffer.bytes())),
            }
        }
    }
    Ok(())
}

#[test]
fn loading_more_than_the_budget_is_out_of_memory() -> Result<()> {
    const MIB: u64 = 1 << 20;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    save(&path, &[("w".into(), Tensor::zeros(device::default(), &[1 << 19])?)], HashMap::new())?;
    let gpu = device::open(&GpuOptions { memory_budget: Some(MIB), ..Default::default() })?;
    match Reader::open(&path)?.tensor(&gpu, "w") {
        Err(Error::OutOfMemory { requested, live: 0, budget: Some(MIB) }) => assert_eq!(requested, 2 * MIB),
        other => panic!("out of memory expected, found {other:?}"),
    }
    Ok(())
}

#[test]
fn the_pool_takes_buffers_back_and_reuses_them() -> Result<()> {
    let gpu = device::open(&Default::default())?;
    let kept = Tensor::zeros(&gpu, &[10])?;
    let start = gpu.memory();
    assert_eq!(start.live, 256, "rounded up to the granule");
    let mut allocated = Vec::new();
    for _ in 0..3 {
        let x = Tensor::from_slice(&gpu, &[1.0; 1000], &[1000])?;
        let y = x.scaled(2.0)?.weighted_sum(1.0, &x, 1.0)?;
        let shared = y.clone();
        drop(y);
        assert_eq!(shared.to_vec()?, [3.0; 1000]);
        allocated.push(gpu.memory().allocated);
        assert!(gpu.memory().live > start.live);
        drop((x, shared));
        assert_eq!(gpu.memory().live, start.live);
    }
    assert!(allocated.iter().all(|bytes| *bytes == allocated[0]), "{allocated:?}");
    assert_eq!(gpu.memory().peak, 256 + 3 * 4096);
    gpu.reset_peak();
    assert_eq!(gpu.memory().peak, start.live);
    assert_eq!(kept.to_vec()?, [0.0; 10]);
    Ok(())
}

#[test]
fn idle_buffers_of_sizes_that_do_not_recur_go_back_to_the_driver() -> Result<()> {
    const MIB: usize = 1 << 18; // values
    let gpu = device::open(&Default::default())?;
    let kept = Tensor::from_slice(&gpu, &[1.5; 1000], &[1000])?;
    let double = |x: &Tensor| -> Result<Tensor> {
        let y = Tensor::uninitialized(&gpu, x.shape())?;
        launch(&gpu, &DOUBLE, &[x.slice(), y.slice()], x.len() as u32)?;
        Ok(y)
    };
    for i in 1..=40 {
        let x = Tensor::uninitialized(&gpu, &[MIB / 2 + 64 * i])?;
        drop(double(&x)?);
        // Bound in turn with buffers that stay and with buffers that go.
        assert_eq!(double(&kept)?.to_vec()?, [3.0; 1000]);
        let memory = gpu.memory();
        assert!(memory.allocated <= memory.live + (16 << 20), "{memory:?} after {i} sizes");
    }
    // Twenty of 1 MiB that were live together may all stay idle, once the sizes before them have gone.
    for _ in 0..2 {
        drop((0..20).map(|_| Tensor::zeros(&gpu, &[MIB])).collect::<Result<Vec<_>>>()?);
    }
    assert!(gpu.memory().allocated >= 20 << 20, "{:?}", gpu.memory());
    Ok(())
}

#[test]
fn the_same_allocations_again_create_nothing() -> Result<()> {
    let gpu = device::open(&Default::default())?;
    let sizes: Vec<usize> = (0..40).map(|i| (1 + i % 4) << 17).collect();
    // As in a training step: what is kept for the backward, with something short-lived beside each.
    let step = |check: &dyn Fn()| -> Result<()> {
        let mut kept = Vec::new();
        for &size in &sizes {
            drop(Tensor::uninitialized(&gpu, &[size / 2 + 64])?);
            kept.push(Tensor::uninitialized(&gpu, &[size])?);
            check();
        }
        while let Some(tensor) = kept.pop() {
            drop(Tensor::uninitialized(&gpu, tensor.shape())?);
            drop(tensor);
            check();
        }
        Ok(())
    };
    step(&|| ())?;
    let allocated = gpu.memory().allocated;
    for _ in 0..3 {
        step(&|| assert_eq!(gpu.memory().allocated, allocated, "released or created within a step"))?;
    }
    Ok(())
}

#[test]
fn a_read_back_that_no_buffer_can_hold_is_out_of_memory_and_the_device_goes_on() -> Result<()> {
    // The host tier reads mapped buffers, without another one.
    let options = GpuOptions { kernels: Some(device::narrow().kernels()), memory_budget: Some(1 << 30), ..Default::default() };
    let gpu = device::open(&options)?;
    let x = Tensor::from_slice(&gpu, &[2.5; 1 << 20], &[1 << 20])?;
    let count = gpu.adapter().limits.max_buffer_size / x.bytes() + 1;
    match gpu.read(&vec![x.slice(); count as usize]) {
        // The budget is not what refused.
        Err(Error::OutOfMemory { requested, budget: None, .. }) => assert_eq!(requested, count * x.bytes()),
        other => panic!("out of memory expected, found {:?}", other.map(|read| read.len())),
    }
    assert_eq!(x.read(0..2)?, [2.5; 2]);
    Ok(())
}

#[test]
fn the_budget_is_nine_tenths_of_what_the_adapter_tells() -> Result<()> {
    let gpu = device::open(&Default::default())?;
    let Some(budget) = gpu.adapter().memory_budget() else { return Ok(()) };
    assert!(gpu.adapter().memory.is_some_and(|memory| memory / 10 * 9 == budget && budget > 64 << 20));
    match gpu.allocate(budget + 1) {
        Err(Error::OutOfMemory { budget: Some(found), .. }) => assert_eq!(found, budget),
        other => panic!("out of memory expected, found {:?}", other.map(|buffer| buffer.bytes())),
    }
    Ok(())
}
