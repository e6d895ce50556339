//! Attention, forward and with backward: time is quadratic in the length, memory linear.

use std::time::Instant;

use polytape::{AttentionShape, Gpu, GpuOptions, Gradients, Params, Result, Tape, Tensor, Var};

use crate::{device_seconds, fastest};

/// The kernels of a training step, with the products of each, forward recomputation included.
const PASSES: [(&str, f64); 3] = [("attention", 2.0), ("attention backward q", 3.0), ("attention backward kv", 4.0)];

struct Case {
    shape: AttentionShape,
    positions: usize,
    /// q, k, v and dy.
    tensors: [Tensor; 4],
}

impl Case {
    fn new(gpu: &Gpu, shape: AttentionShape, positions: usize) -> Result<Self> {
        let normal = |heads: usize, seed| Tensor::normal(gpu, &[shape.batch * positions, heads * shape.head_dim], 1.0, seed);
        let (q, k, v) = (normal(shape.heads, 1)?, normal(shape.kv_heads, 2)?, normal(shape.kv_heads, 3)?);
        Ok(Self { shape, positions, tensors: [q, k, v, normal(shape.heads, 4)?] })
    }

    /// o, and with `backward` dq, dk and dv.
    fn run(&self, gpu: &Gpu, backward: bool) -> Result<Vec<Tensor>> {
        let params = Params::new(gpu);
        let tape = Tape::new(&params);
        let [q, k, v]: [Var<'_>; 3] = [0, 1, 2].map(|at| tape.leaf(self.tensors[at].clone()));
        let o = q.attention(&k, &v, self.shape)?;
        let value = o.value().clone();
        if !backward {
            return Ok(vec![value]);
        }
        let gradients = tape.backward_from(&[(&o, self.tensors[3].clone())], &mut Gradients::new())?;
        let gradient = |leaf| gradients.get(leaf).expect("a leaf has a gradient").clone();
        Ok([value].into_iter().chain([&q, &k, &v].map(gradient)).collect())
    }

    /// FLOP of that number of products over the unmasked pairs.
    fn operations(&self, products: f64) -> f64 {
        let AttentionShape { batch, heads, head_dim, .. } = self.shape;
        let pairs = (batch * heads * self.positions * (self.positions + 1) / 2) as f64;
        2.0 * products * pairs * head_dim as f64
    }

    /// Compares rows of the last sequence's last head with f64.
    fn check(&self, results: &[Tensor]) -> Result<()> {
        let AttentionShape { batch, heads, kv_heads, head_dim } = self.shape;
        let found = results.iter().map(Tensor::to_vec).collect::<Result<Vec<_>>>()?;
        let (first, last, early) = ((batch - 1) * self.positions, self.positions - 1, self.early());
        let rows = [("o", 0, last), ("dq", 1, last), ("dk", 2, early), ("dv", 3, early), ("dk", 2, last), ("dv", 3, last)];
        for ((name, at, row), want) in rows.into_iter().zip(&self.expected()?) {
            let heads = if at < 2 { heads } else { kv_heads };
            for (found, want) in (Rows { values: &found[at], heads, head_dim }).at(first + row, heads - 1).iter().zip(want) {
                let error = (f64::from(*found) - want).abs();
                assert!(error < 1e-4 * want.abs().max(1.0), "attention of {:?}: {name} {found} is not {want}", self.shape);
            }
        }
        Ok(())
    }

    /// A key that many queries see.
    fn early(&self) -> usize {
        self.positions / 3
    }

    /// o and dq of the last query, dk and dv of an early key, dk and dv of the last key.
    fn expected(&self) -> Result<[[f64; MOST]; 6]> {
        let AttentionShape { batch, heads, kv_heads, head_dim } = self.shape;
        let host = self.tensors.iter().map(Tensor::to_vec).collect::<Result<Vec<_>>>()?;
        let rows = |at: usize, heads| Rows { values: &host[at], heads, head_dim };
        let (q, k, v, dy) = (rows(0, heads), rows(1, kv_heads), rows(2, kv_heads), rows(3, heads));
        let (first, last, early) = ((batch - 1) * self.positions, self.positions - 1, self.early());
        let (kv_head, scale) = (kv_heads - 1, (head_dim as f64).sqrt().recip());
        let mut expected = [[0.0; MOST]; 6];
        let [o, dq, early_dk, early_dv, last_dk, last_dv] = &mut expected;
        for (head, query) in (heads - heads / kv_heads..heads).flat_map(|head| (early..=last).map(move |query| (head, query))) {
            let (own_q, own_dy) = (q.at(first + query, head), dy.at(first + query, head));
            let with = |own: &[f32], keys: &Rows<'_>, key| dot(own, keys.at(first + key, kv_head));
            let mut p: Vec<f64> = (0..=query).map(|key| (with(own_q, &k, key) * scale).exp()).collect();
            let mass: f64 = p.iter().sum();
            p.iter_mut().for_each(|p| *p /= mass);
            let dp: Vec<f64> = (0..=query).map(|key| with(own_dy, &v, key)).collect();
            let delta: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
            let ds = |key: usize| p[key] * (dp[key] - delta) * scale;
            add(early_dk, ds(early), own_q);
            add(early_dv, p[early], own_dy);
            if query == last {
                add(last_dk, ds(last), own_q);
                add(last_dv, p[last], own_dy);
            }
            if query == last && head == heads - 1 {
                for (key, &p) in p.iter().enumerate() {
                    add(o, p, v.at(first + key, kv_head));
                    add(dq, ds(key), k.at(first + key, kv_head));
                }
            }
        }
        Ok(expected)
    }
}

/// The widest head of the cases.
const MOST: usize = 128;

/// A tensor's rows of a head.
struct Rows<'a> {
    values: &'a [f32],
    heads: usize,
    head_dim: usize,
}

impl<'a> Rows<'a> {
    fn at(&self, row: usize, head: usize) -> &'a [f32] {
        &self.values[(row * self.heads + head) * self.head_dim..][..self.head_dim]
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

fn add(sum: &mut [f64], factor: f64, row: &[f32]) {
    sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += factor * f64::from(*x));
}

/// FLOP/s of an adapter that many heads of many positions do not keep for long.
const LARGE: f64 = 4e12;

/// Each kernel by itself, by the device's clock: enough heads for a large GPU, or for a smaller device as many as it does in a moment.
pub fn passes(gpu: &Gpu, peak: f64) -> Result<()> {
    let gpu = Gpu::open(&GpuOptions { profile: true, kernels: Some(gpu.kernels()), warn: |_| (), ..Default::default() })?;
    let is_large = peak > LARGE;
    let (positions, sizes) = if is_large { (2048, [(4, 16, 64), (2, 16, 128)]) } else { (512, [(1, 4, 64), (1, 4, 128)]) };
    println!(
        "\nshapes for {} {:.0} TFLOP/s",
        if is_large { "adapters of more than" } else { "adapters of at most" },
        LARGE / 1e12
    );
    println!("\n| kernel | sequences × heads × head_dim | positions | ms | GFLOP/s | of peak |\n|---|---|---:|---:|---:|---:|");
    for (batch, heads, head_dim) in sizes {
        let case = Case::new(&gpu, AttentionShape { batch, heads, kv_heads: heads, head_dim }, positions)?;
        case.check(&case.run(&gpu, true)?)?;
        for (kernel, products) in PASSES {
            let seconds = device_seconds(&gpu, kernel, || case.run(&gpu, true).map(drop))?;
            let rate = case.operations(products) / seconds;
            let percent = 100.0 * rate / peak;
            println!(
                "| {kernel} | {batch} × {heads} × {head_dim} | {positions} | {:.2} | {:.1} | {percent:.0} % |",
                1e3 * seconds,
                rate / 1e9
            );
        }
    }
    Ok(())
}

pub fn run(gpu: &Gpu, peak: f64) -> Result<()> {
    println!(
        "\n| attention | positions | forward, ms | GFLOP/s | with backward, ms | GFLOP/s | of peak | peak MiB | first call, s |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|---:|");
    for (heads, kv_heads, head_dim) in [(4, 4, 64), (8, 2, 32), (4, 4, 128)] {
        for positions in [128, 256, 512, 1024] {
            let case = Case::new(gpu, AttentionShape { batch: 1, heads, kv_heads, head_dim }, positions)?;
            let start = Instant::now();
            case.check(&case.run(gpu, true)?)?;
            let first = start.elapsed().as_secs_f64();
            gpu.reset_peak();
            let time = |backward| fastest(gpu, || case.run(gpu, backward).map(drop));
            let (forward, both) = (time(false)?, time(true)?);
            let rate = |seconds: f64, products| case.operations(products) / seconds;
            println!(
                "| {heads} × {head_dim}, {kv_heads} kv heads | {positions} | {:.2} | {:.1} | {:.2} | {:.1} | {:.0} % | {:.1} | {first:.2} |",
                1e3 * forward,
                rate(forward, 2.0) / 1e9,
                1e3 * both,
                rate(both, 9.0) / 1e9,
                100.0 * rate(both, 9.0) / peak,
                gpu.memory().peak as f64 / (1 << 20) as f64,
            );
        }
    }
    Ok(())
}
