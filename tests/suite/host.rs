//! The host tier: the same bits on any number of threads, and twins in turn with kernels that have none.

use std::fs;
use std::path::Path;

use polytape::gpu::{KernelTier, Launch, adapters, grid};
use polytape::optim::OPTIMIZERS;
use polytape::{AdapterChoice, Gemm, Gpu, GpuOptions, Matrix, Precision, Result, Tensor};

use crate::device;
use crate::gpu::DOUBLE;
use crate::training::small::{self, Small};

/// The host tier of a software adapter. Where there is none, it must be refused by name.
fn host(threads: usize) -> Result<Option<Gpu>> {
    let options = GpuOptions { kernels: Some(KernelTier::Host), threads: Some(threads), ..Default::default() };
    if adapters().iter().any(|adapter| adapter.lacks(KernelTier::Host).is_none()) {
        return device::open(&GpuOptions { adapter: AdapterChoice::Cpu, ..options }).map(Some);
    }
    let refusal = device::open(&options).expect_err("no adapter has the host tier").to_string();
    assert!(refusal.contains("cannot run the host kernels: its memory is not the host's"), "{refusal}");
    Ok(None)
}

#[test]
fn training_gives_the_same_bits_on_any_number_of_threads() -> Result<()> {
    for (rule, _) in OPTIMIZERS {
        let run = |threads| host(threads)?.map(|gpu| Small::new(&gpu, small::config(), rule)?.run(0..3)).transpose();
        let one = run(1)?;
        for threads in [2, 5] {
            assert!(run(threads)? == one, "{threads} threads, {rule}");
        }
    }
    Ok(())
}

/// Shapes of several tasks each, with every way through the twin of the products.
#[test]
fn products_give_the_same_bits_on_any_number_of_threads() -> Result<()> {
    let run = |threads| -> Result<Vec<f32>> {
        let Some(gpu) = host(threads)? else { return Ok(Vec::new()) };
        let normal = |shape: &[usize], seed| Tensor::normal(&gpu, shape, 1.0, seed);
        let (x, w, stack) = (normal(&[203, 500], 1)?, normal(&[301, 500], 2)?, normal(&[3, 130, 70], 3)?);
        let (x, w, stack) = (Matrix::new(&x)?, Matrix::new(&w)?, Matrix::new(&stack)?);
        let precision = Precision::F16x3;
        let products = [
            Gemm::new(x, w.t()),
            Gemm { precision, ..Gemm::new(w, x.t()) },
            Gemm { symmetric: true, delta: 0.5, ..Gemm::new(x, x.t()) },
            Gemm { symmetric: true, ..Gemm::new(stack.t(), stack) },
            Gemm::new(x.row_window(7, 3)?, w.t()),
        ];
        let results = products.map(|product| product.compute()?.to_vec()).into_iter().collect::<Result<Vec<_>>>()?;
        Ok(results.concat())
    };
    let one = run(1)?;
    for threads in [2, 3, 7] {
        assert!(run(threads)? == one, "{threads} threads");
    }
    Ok(())
}

#[test]
fn twins_and_kernels_without_one_run_in_order() -> Result<()> {
    let Some(gpu) = host(2)? else { return Ok(()) };
    let mut x = Tensor::from_slice(&gpu, &[1.0; 1000], &[1000])?;
    for _ in 0..20 {
        // A twin, a kernel of the user's own on its result, a copy, and a twin on that.
        let half = x.scaled(0.75)?;
        let y = Tensor::zeros(&gpu, &[1000])?;
        gpu.launch(&Launch {
            kernel: &DOUBLE,
            constants: &[],
            buffers: &[half.slice(), y.slice()],
            arguments: bytemuck::cast_slice(&[1000]),
            workgroups: grid(1000, 64),
            iterations: 0,
            work: 0,
        })?;
        x = y.duplicate()?.weighted_sum(1.0, &half, -1.0)?; // 1.5x − 0.75x
    }
    assert_eq!(x.to_vec()?, vec![0.75f32.powi(20); 1000]);
    Ok(())
}

#[test]
fn devices_are_used_from_several_threads() -> Result<()> {
    let Some(gpu) = host(2)? else { return Ok(()) };
    let total = |seed| -> Result<Vec<f32>> {
        let x = Tensor::normal(&gpu, &[64, 300], 1.0, seed)?;
        Gemm::new(Matrix::new(&x)?, Matrix::new(&x)?.t()).compute()?.softmax()?.to_vec()
    };
    let alone: Vec<Vec<f32>> = (0..4).map(total).collect::<Result<_>>()?;
    std::thread::scope(|scope| {
        let runs: Vec<_> =
            (0..4).map(|seed| scope.spawn(move || (0..10).map(|_| total(seed)).collect::<Result<Vec<_>>>())).collect();
        for (run, want) in runs.into_iter().zip(&alone) {
            let found = run.join().expect("no panic")?;
            assert!(found.iter().all(|found| found == want));
        }
        Ok(())
    })
}

/// A closure that is not inlined into the code for the processor's vectors is right, but up to 40 times slower.
#[test]
fn closures_of_twins_are_inlined() {
    let mut closures = 0;
    visit(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), &mut |path, text| {
        let lines: Vec<&str> = text.lines().collect();
        for (at, line) in lines.iter().enumerate().filter(|(_, line)| line.contains("|range, [")) {
            closures += 1;
            let is_inlined = line.contains("#[inline(always)]") || lines[at - 1].trim() == "#[inline(always)]";
            assert!(is_inlined, "{}:{}: a twin's closure without #[inline(always)]", path.display(), at + 1);
        }
    });
    assert!(closures > 30, "{closures} closures found");
}

fn visit(folder: &Path, f: &mut impl FnMut(&Path, &str)) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            visit(&path, f);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            f(&path, &fs::read_to_string(&path).expect("a source"));
        }
    }
}
