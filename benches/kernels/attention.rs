//! Attention, forward and with backward: time is quadratic in the length, memory linear.

use std::time::Instant;

use polytape::{AttentionShape, Gpu, Gradients, Params, Result, Tape, Tensor, Var};

use crate::fastest;

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

    fn run(&self, gpu: &Gpu, backward: bool) -> Result<[Tensor; 2]> {
        let params = Params::new(gpu);
        let tape = Tape::new(&params);
        let [q, k, v]: [Var<'_>; 3] = [0, 1, 2].map(|at| tape.leaf(self.tensors[at].clone()));
        let o = q.attention(&k, &v, self.shape)?;
        let value = o.value().clone();
        if !backward {
            return Ok([value.clone(), value]);
        }
        let gradients = tape.backward_from(&[(&o, self.tensors[3].clone())], &mut Gradients::new())?;
        Ok([value, gradients.get(&q).expect("q has a gradient").clone()])
    }

    /// FLOP of the unmasked pairs: two products forward, seven backward including recomputation.
    fn operations(&self, backward: bool) -> f64 {
        let AttentionShape { batch, heads, head_dim, .. } = self.shape;
        let pairs = (batch * heads * self.positions * (self.positions + 1) / 2) as f64;
        let products = if backward { 9.0 } else { 2.0 };
        2.0 * products * pairs * head_dim as f64
    }

    /// Compares the last position of the last head with f64.
    fn check(&self, o: &Tensor) -> Result<()> {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        let [q, k, v] = [0, 1, 2].map(|at| self.tensors[at].to_vec());
        let (q, k, v, o) = (q?, k?, v?, o.to_vec()?);
        let rows = k.len() / (kv_heads * head_dim);
        let own = &q[q.len() - head_dim..];
        let key = |row: usize| row * kv_heads * head_dim + (kv_heads - 1) * head_dim;
        let dot = |row: usize| own.iter().zip(&k[key(row)..]).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let first = rows - self.positions;
        let weights: Vec<f64> = (first..rows).map(|row| (dot(row) / (head_dim as f64).sqrt()).exp()).collect();
        let mass: f64 = weights.iter().sum();
        for d in 0..head_dim {
            let want: f64 = (first..rows).map(|row| weights[row - first] / mass * f64::from(v[key(row) + d])).sum();
            let got = f64::from(o[o.len() - head_dim + d]);
            assert!((got - want).abs() < 1e-4, "attention of {heads} heads: {got} is not {want}");
        }
        Ok(())
    }
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
            case.check(&case.run(gpu, true)?[0])?;
            let first = start.elapsed().as_secs_f64();
            gpu.reset_peak();
            let time = |backward| fastest(gpu, || case.run(gpu, backward).map(drop));
            let (forward, both) = (time(false)?, time(true)?);
            let rate = |seconds: f64, backward| case.operations(backward) / seconds;
            println!(
                "| {heads} × {head_dim}, {kv_heads} kv heads | {positions} | {:.2} | {:.1} | {:.2} | {:.1} | {:.0} % | {:.1} | {first:.2} |",
                1e3 * forward,
                rate(forward, false) / 1e9,
                1e3 * both,
                rate(both, true) / 1e9,
                100.0 * rate(both, true) / peak,
                gpu.memory().peak as f64 / (1 << 20) as f64,
            );
        }
    }
    Ok(())
}
