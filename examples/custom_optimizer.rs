//! An optimizer from outside of the crate: Lion (arXiv 2302.06675), u = sign(β1·m + (1−β1)·g), m ← β2·m + (1−β2)·g,
//! w ← w·(1 − lr·λ) − lr·u. The shader, the step and the shape of its state are all there is to it. It fits y = x·wᵀ, and halfway
//! its state goes through a file: the resumed run ends on the same bits.
//!
//!     cargo run --release --example custom_optimizer

use std::collections::HashMap;

use polytape::gpu::{Access, Kernel};
use polytape::optim::{Clip, Optimizer, OptimizerState, Slot};
use polytape::safetensors::{Reader, save};
use polytape::{Gpu, Gradients, Params, Result, Role, Tensor, Trainer, map};

const SOURCE: &str = "
struct Args { count: u32, first: u32, lr: f32, weight_decay: f32 }

var<immediate> args: Args;
@group(0) @binding(0) var<storage, read> g: array<vec4f>;
@group(0) @binding(1) var<storage, read> clip: array<f32>;
@group(0) @binding(2) var<storage, read_write> m: array<vec4f>;
@group(0) @binding(3) var<storage, read_write> w: array<vec4f>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) local: u32) {
    let i = linear_index(group, groups, local, 64u);
    if (i * 4u >= args.count) { return; }
    let gradient = g[i] * clip[1];
    w[i] = w[i] * (1.0 - args.lr * args.weight_decay) - args.lr * sign(mix(gradient, m[i], 0.9));
    m[i] = mix(gradient, m[i], 0.99);
}
";

static LION: Kernel = Kernel::new("lion", SOURCE, "main", &[Access::Read, Access::Read, Access::ReadWrite, Access::ReadWrite]);

#[derive(Default)]
struct Lion {
    state: OptimizerState,
}

impl Optimizer for Lion {
    fn step(&mut self, params: &mut Params, gradients: Gradients, clip: &Clip, lr: f32) -> Result<()> {
        self.state.count_step();
        for (id, g) in gradients.into_checked(params)? {
            let m = self.state.slot(g.gpu(), id, "m", g.shape())?;
            map(&LION, &[], &[&g, clip.values(), m, params.make_mut(id)?], Some(1), &[lr, 0.01])?;
        }
        Ok(())
    }

    fn slots(&self, _: Role, shape: &[usize]) -> Vec<Slot> {
        vec![Slot::new("m", shape)]
    }

    fn state(&self) -> &OptimizerState {
        &self.state
    }

    fn state_mut(&mut self) -> &mut OptimizerState {
        &mut self.state
    }
}

fn train(trainer: &mut Trainer, steps: std::ops::Range<u64>) -> Result<f32> {
    let gpu = trainer.params.gpu().clone();
    let (x, w) = (Tensor::normal(&gpu, &[64, 16], 1.0, 1)?, trainer.params.id("w")?);
    let target = Tensor::normal(&gpu, &[8, 16], 1.0, 2)?;
    let mut loss = f32::NAN;
    for step in steps {
        let output = trainer.step(1, 0.02 / (1.0 + step as f32 / 50.0), |tape, _| {
            let x = tape.constant(x.clone());
            let error = x.matmul_nt(&tape.param(w))?.sub(&x.matmul_nt(&tape.constant(target.clone()))?)?;
            error.mul(&error)?.mean()
        })?;
        loss = output.loss;
        if (step + 1) % 50 == 0 {
            println!("step {:3}  loss {loss:.6}", step + 1);
        }
    }
    Ok(loss)
}

fn main() -> Result<()> {
    let gpu = Gpu::open(&Default::default())?;
    let mut params = Params::new(&gpu);
    params.add("w", Role::Matrix, Tensor::zeros(&gpu, &[8, 16])?)?;
    let mut trainer = Trainer::new(params, None, Box::<Lion>::default(), 1.0)?;
    train(&mut trainer, 0..100)?;

    let path = std::env::temp_dir().join(format!("lion-{}.safetensors", std::process::id()));
    save(&path, &trainer.optimizer.state_tensors(&trainer.params)?, HashMap::new())?;
    let (file, mut lion) = (Reader::open(&path)?, Lion::default());
    lion.load_state(&trainer.params, 100, &mut |name| file.tensor(&gpu, name))?;
    let mut resumed = Trainer::resume(trainer.params.clone(), None, Box::new(lion), 1.0);
    let [through, resumed] = [train(&mut trainer, 100..200)?, train(&mut resumed, 100..200)?];
    std::fs::remove_file(&path).ok();
    assert_eq!(through.to_bits(), resumed.to_bits(), "the resumed run ends on other bits");
    println!("resumed from its file, it ends on the same bits");
    Ok(())
}
