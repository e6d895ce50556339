//! The step in burn, on one of its devices: wgpu with kernel fusion and autotuning at their defaults, or flex, which computes on the CPU.

use burn::module::{Module, Param};
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::activation::{log_softmax, silu, softmax};
use burn::tensor::{Bool, Device, Gradients, Int, Tensor, TensorData};

use crate::{BETAS, EPS, Peer, RATE, Result, SEQ_LEN, SEQUENCES, Setup, TOKENS, WEIGHT_DECAY};

#[derive(Module, Debug)]
struct Block {
    attention_norm: Param<Tensor<1>>,
    q: Param<Tensor<2>>,
    k: Param<Tensor<2>>,
    v: Param<Tensor<2>>,
    o: Param<Tensor<2>>,
    ffn_norm: Param<Tensor<1>>,
    gate: Param<Tensor<2>>,
    up: Param<Tensor<2>>,
    down: Param<Tensor<2>>,
}

#[derive(Module, Debug)]
struct Model {
    embedding: Param<Tensor<2>>,
    blocks: Vec<Block>,
    norm: Param<Tensor<1>>,
    head: Param<Tensor<2>>,
}

/// Constants of the forward.
struct Fixed {
    heads: usize,
    norm_eps: f64,
    cos: Tensor<4>,
    sin: Tensor<4>,
    /// True where attention is masked.
    future: Tensor<4, Bool>,
    inputs: Tensor<1, Int>,
    targets: Tensor<2, Int>,
}

pub struct Run {
    device: Device,
    /// `None` while the optimizer, which takes it by value, has it.
    model: Option<Model>,
    optimizer: ModuleOptimizer,
    fixed: Fixed,
}

/// y = x·Wᵀ for a weight [out, in].
fn linear(x: Tensor<2>, weight: &Param<Tensor<2>>) -> Tensor<2> {
    x.matmul(weight.val().transpose())
}

fn rms_norm(x: Tensor<2>, weight: &Param<Tensor<1>>, eps: f64) -> Tensor<2> {
    let root = x.clone().square().mean_dim(1).add_scalar(eps).sqrt();
    x.div(root).mul(weight.val().unsqueeze())
}

fn split_heads(x: Tensor<2>, heads: usize) -> Tensor<4> {
    let width = x.dims()[1] / heads;
    x.reshape([SEQUENCES, SEQ_LEN, heads, width]).swap_dims(1, 2)
}

impl Fixed {
    fn rotary(&self, x: Tensor<4>) -> Tensor<4> {
        let half = x.dims()[3] / 2;
        let (a, b) = (x.clone().narrow(3, 0, half), x.narrow(3, half, half));
        let (cos, sin) = (&self.cos, &self.sin);
        let first = a.clone().mul(cos.clone()).sub(b.clone().mul(sin.clone()));
        let second = b.mul(cos.clone()).add(a.mul(sin.clone()));
        Tensor::cat(vec![first, second], 3)
    }

    fn block(&self, block: &Block, x: Tensor<2>) -> Tensor<2> {
        let dims = x.dims();
        let h = rms_norm(x.clone(), &block.attention_norm, self.norm_eps);
        let q = self.rotary(split_heads(linear(h.clone(), &block.q), self.heads));
        let k = self.rotary(split_heads(linear(h.clone(), &block.k), self.heads));
        let v = split_heads(linear(h, &block.v), self.heads);
        let scale = (q.dims()[3] as f64).powf(-0.5);
        let scores = q.matmul(k.transpose()).mul_scalar(scale);
        let [_, heads, _, _] = scores.dims();
        let future = self.future.clone().expand([SEQUENCES, heads, SEQ_LEN, SEQ_LEN]);
        let mixed = softmax(scores.mask_fill(future, f32::NEG_INFINITY), 3).matmul(v);
        let x = x + linear(mixed.swap_dims(1, 2).reshape(dims), &block.o);
        let h = rms_norm(x.clone(), &block.ffn_norm, self.norm_eps);
        let inner = silu(linear(h.clone(), &block.gate)).mul(linear(h, &block.up));
        x + linear(inner, &block.down)
    }

    fn loss(&self, model: &Model) -> Tensor<1> {
        let mut x = model.embedding.val().select(0, self.inputs.clone());
        for block in &model.blocks {
            x = self.block(block, x);
        }
        let logits = linear(rms_norm(x, &model.norm, self.norm_eps), &model.head);
        log_softmax(logits, 1).gather(1, self.targets.clone()).mean().neg()
    }
}

impl Run {
    pub fn new(setup: &Setup, device: Device) -> Result<Self> {
        let device = device.autodiff();
        let data = |name: &str| {
            let (shape, values) = &setup.weights[&format!("{name}.weight")];
            TensorData::new(values.clone(), shape.clone())
        };
        let matrix = |name: &str| Param::<Tensor<2>>::from_data(data(name), &device);
        let vector = |name: &str| Param::<Tensor<1>>::from_data(data(name), &device);
        let block = |layer: usize| {
            let matrix = |name: &str| matrix(&format!("model.layers.{layer}.{name}"));
            let vector = |name: &str| vector(&format!("model.layers.{layer}.{name}"));
            Block {
                attention_norm: vector("input_layernorm"),
                q: matrix("self_attn.q_proj"),
                k: matrix("self_attn.k_proj"),
                v: matrix("self_attn.v_proj"),
                o: matrix("self_attn.o_proj"),
                ffn_norm: vector("post_attention_layernorm"),
                gate: matrix("mlp.gate_proj"),
                up: matrix("mlp.up_proj"),
                down: matrix("mlp.down_proj"),
            }
        };
        let model = Model {
            embedding: matrix("model.embed_tokens"),
            blocks: (0..setup.config.layers).map(block).collect(),
            norm: vector("model.norm"),
            head: matrix("lm_head"),
        };
        let half = setup.config.head_dim() / 2;
        let [cos, sin] =
            setup.rotary().map(|table| Tensor::<4>::from_data(TensorData::new(table, [1, 1, SEQ_LEN, half]), &device));
        let tokens = |list: &[u32]| list.iter().map(|&token| token as i32).collect::<Vec<_>>();
        let optimizer = AdamWConfig::new()
            .with_beta_1(BETAS[0] as f32)
            .with_beta_2(BETAS[1] as f32)
            .with_epsilon(EPS as f32)
            .with_weight_decay(WEIGHT_DECAY as f32)
            .init();
        let fixed = Fixed {
            heads: setup.config.heads,
            norm_eps: f64::from(setup.config.norm_eps),
            cos,
            sin,
            // burn's lower-triangle mask is true outside the triangle.
            future: Tensor::<2, Bool>::tril_mask([SEQ_LEN, SEQ_LEN], 0, &device).unsqueeze(),
            inputs: Tensor::from_data(TensorData::new(tokens(&setup.inputs), [TOKENS]), &device),
            targets: Tensor::from_data(TensorData::new(tokens(&setup.targets), [TOKENS, 1]), &device),
        };
        Ok(Self { device, model: Some(model), optimizer, fixed })
    }

    /// A step without its update.
    pub fn forward_backward(&mut self, last: bool) -> Result<()> {
        let model = self.model.as_ref().ok_or("an earlier step failed")?;
        let loss = self.fixed.loss(model);
        let gradients: Gradients = loss.backward();
        // Keep the gradients until the device is done, so that none can be skipped as unused.
        let gradients = GradientsParams::from_grads(gradients, model);
        if last {
            loss.into_scalar::<f32>();
            self.wait()?;
        }
        drop(gradients);
        Ok(())
    }
}

impl Peer for Run {
    fn step(&mut self, read: bool) -> Result<Option<f32>> {
        let model = self.model.take().ok_or("an earlier step failed")?;
        let loss = self.fixed.loss(&model);
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        self.model = Some(self.optimizer.step(RATE, model, gradients));
        Ok(read.then(|| loss.into_scalar::<f32>()))
    }

    fn wait(&self) -> Result<()> {
        self.device.sync().map_err(|error| format!("burn: {error:?}").into())
    }
}
