use polytape::optim::{Clip, Optimizer};
use polytape::spectral::{NewtonSchulz, PcConfig, Preconditioner, level_coefficients, newton_schulz};
use polytape::{Error, Gpu, Gradients, ParamId, Params, Result, Role, Tensor, Trainer};

const SIZE: usize = 32;

struct GradientDescent;

fn eye(gpu: &Gpu) -> Result<Tensor> {
    let v: Vec<f32> = (0..SIZE * SIZE).map(|i| if i % (SIZE + 1) == 0 { 1.0 } else { 0.0 }).collect();
    Tensor::from_slice(gpu, &v, &[SIZE, SIZE])
}
fn sigma(w: &Tensor) -> Result<f32> {
    let w = w.to_vec()?;
    let mut x = vec![1.0f32; SIZE];
    let mut n = 0.0;
    for i in 0..SIZE {
        x[i] += (i as f32).sin();
    }
    for _ in 0..100 {
        let y: Vec<f32> = (0..SIZE).map(|i| (0..SIZE).map(|j| w[i * SIZE + j] * x[j]).sum()).collect();
        let z: Vec<f32> = (0..SIZE).map(|j| (0..SIZE).map(|i| w[i * SIZE + j] * y[i]).sum()).collect();
        n = z.iter().map(|v| v * v).sum::<f32>().sqrt();
        x = z.iter().map(|v| v / n).collect();
    }
    Ok(n.sqrt())
}

impl Optimizer for GradientDescent {
    fn step(&mut self, params: &mut Params, gradients: Gradients, _: &Clip, rate: f32) -> Result<()> {
        for (id, gradient) in gradients.iter() {
            let rate = if params.get(id).role == Role::Vector {
                rate * std::env::var("GR").unwrap().parse::<f32>().unwrap()
            } else {
                rate
            };
            let moved = params.get(id).tensor.weighted_sum(1.0, gradient, -rate)?;
            params.set(id, moved)?;
        }
        Ok(())
    }
    fn steps(&self) -> u64 {
        0
    }
    fn state(&self, _: &Params) -> Vec<(String, Tensor)> {
        Vec::new()
    }
    fn load_state(&mut self, _: &Params, _: u64, _: &mut dyn FnMut(&str) -> Result<Tensor>) -> Result<()> {
        Ok(())
    }
}

fn train(
    gpu: &Gpu,
    depth: usize,
    level: Option<usize>,
    gamma: bool,
    rate: f32,
    steps: usize,
    init: &str,
    target: &Tensor,
) -> Result<Vec<f32>> {
    let mut params = Params::new(gpu);
    let weights = (0..depth)
        .map(|layer| {
            let w = Tensor::normal(gpu, &[SIZE, SIZE], (SIZE as f64).powf(-0.5), layer as u64)?;
            let w = match init {
                r if r.starts_with("res") => {
                    let c: f32 = r[3..].parse().unwrap();
                    let eye = eye(gpu)?;
                    let w = eye.weighted_sum(1.0, &w, c)?;
                    let recover = std::env::var("REC").is_ok();
                    if level.is_none() {
                        w.scaled((1.0 + c * c).powf(-0.5))?
                    } else if recover {
                        w.scaled(1.0 / sigma(&w)?)?
                    } else {
                        w
                    }
                }
                "gauss" => w,
                "ns2" => newton_schulz(w.scaled(0.5)?, NewtonSchulz::Simple, 2)?,
                "ns1" => newton_schulz(w.scaled(0.5)?, NewtonSchulz::Simple, 1)?,
                "gauss1.2" => w.scaled(1.2)?,
                "gauss1.5" => w.scaled(1.5)?,
                "half" => w.scaled(0.5)?,
                _ => newton_schulz(w.scaled(0.5)?, NewtonSchulz::Simple, 5)?,
            };
            params.add(format!("{layer}.weight"), Role::Matrix, w)
        })
        .collect::<Result<Vec<ParamId>>>()?;
    let pc = level.map(|level| {
        let config = PcConfig {
            coefficients: level_coefficients(level)?,
            learnable_gamma: gamma,
            recover_norm: std::env::var("REC").is_ok(),
            power_iterations: 2,
            ..Default::default()
        };
        let targets: Vec<(ParamId, usize)> = weights.iter().map(|&w| (w, 1)).collect();
        Preconditioner::attach(&mut params, config, &targets, 1)
    });
    let pc = pc.transpose()?;
    if let Some(pc) = &pc {
        for _ in 0..10 {
            pc.refresh(&mut params)?;
        }
    }
    let mut trainer = Trainer::new(params, pc, Box::new(GradientDescent), f32::INFINITY)?;
    let mut losses = Vec::new();
    let mut outcomes = Vec::new();
    for step in 0..steps {
        outcomes.push(trainer.step(1, rate, |tape, _| {
            let mut product = tape.param(weights[0]);
            for &weight in &weights[1..] {
                product = tape.param(weight).matmul(&product)?;
            }
            let error = product.sub(&tape.constant(target.clone()))?;
            error.mul(&error)?.sum()?.scale(0.5)
        })?);
        if step % 50 == 49 {
            for o in outcomes.drain(..) {
                losses.push(o.read()?.0);
            }
            let last = losses[losses.len() - 1];
            if !last.is_finite() || last > 1e4 {
                return Err(Error::Value("diverged".into()));
            }
        }
    }
    Ok(losses)
}

fn main() -> Result<()> {
    let gpu = Gpu::open(&Default::default())?;
    let a: Vec<String> = std::env::args().collect();
    let (depth, steps, init, tk): (usize, usize, &str, &str) = (a[1].parse().unwrap(), a[2].parse().unwrap(), &a[3], &a[4]);
    let g = Tensor::normal(&gpu, &[SIZE, SIZE], (SIZE as f64).powf(-0.5), 99)?;
    let target = match tk {
        "gauss" => g,
        r if r.starts_with("res") => eye(&gpu)?.weighted_sum(1.0, &g, r[3..].parse().unwrap())?,
        "ns2" => newton_schulz(g.scaled(0.5)?, NewtonSchulz::Simple, 2)?,
        _ => newton_schulz(g.scaled(0.5)?, NewtonSchulz::Simple, 5)?,
    };
    for (name, level, gamma) in [("plain", None, false), ("pc4 gamma", Some(4), true)] {
        for e in 0..8 {
            let rate = 2f32.powi(-e);
            let t = std::time::Instant::now();
            match train(&gpu, depth, level, gamma, rate, steps, init, &target) {
                Ok(l) => println!(
                    "{name:10} rate {rate:.4}: {} ({:.1}s)",
                    (0..10).map(|i| format!("{:.2e}", l[(i + 1) * steps / 10 - 1])).collect::<Vec<_>>().join(" "),
                    t.elapsed().as_secs_f32()
                ),
                Err(x) => println!("{name:10} rate {rate:.4}: {x}"),
            }
        }
    }
    Ok(())
}
