//! Causal attention with grouped heads: o = softmax(q·kᵀ/√head_dim)·v per head. q [batch·queries, heads·head_dim], k and v
//! [batch·keys, kv_heads·head_dim] → o like q. Query i sees the keys up to i + keys - queries. Saves q, k, v, o and the
//! log-sum-exp [batch·queries, heads]; the backward recomputes the probabilities. No queries × keys tensor exists. What exceeds the
//! binding limit is cut by sequences, or by the queries of one. With f16 operands it runs on matrix units, where a device has them.

mod matrices;
mod tiling;
#[cfg(feature = "host")]
mod twins;
mod windows;

use std::ops::Range;

pub use windows::AttentionWindows;

use crate::error::{Error, Result};
use crate::gpu::{Access, Gpu, Kernel, KernelTier, Launch, Slice, vectors, with_twin};
use crate::precision::Precision;
use crate::tape::Var;
use crate::tensor::{Rows, Tensor};
use matrices::MatrixTiling;
use tiling::{LaneRows, Room, Tiling};
use windows::{Side, Window};

const R: Access = Access::Read;
const W: Access = Access::ReadWrite;
const FORWARD_BINDINGS: &[Access] = &[R, R, R, W, W];
const QUERY_BINDINGS: &[Access] = &[R, R, R, R, R, R, W];
const KEY_BINDINGS: &[Access] = &[R, R, R, R, R, R, W, W];
/// The text of a kernel: common definitions, the bindings of a direction, parts, and the direction's kernel for a family.
macro_rules! source {
    ($direction:literal, $family:literal, $($part:literal),+) => {
        concat!(
            include_str!("../../shaders/attention_common.wgsl"),
            include_str!(concat!("../../shaders/attention_", $direction, ".wgsl")),
            $(include_str!(concat!("../../shaders/", $part, ".wgsl")),)+
            include_str!(concat!("../../shaders/attention_", $direction, "_", $family, ".wgsl")),
        )
    };
}
/// That of a kernel on matrix units: the tiled one, of other parts.
macro_rules! on_matrix_units {
    ($direction:literal) => {
        source!($direction, "tiled", "half", "half_storage", "matrices", "attention_workgroup", "attention_matrices")
    };
}
const FORWARD_LANES: &str = source!("forward", "lanes", "attention_lanes");
const FORWARD_TILED: &str = source!("forward", "tiled", "attention_workgroup", "attention_tiles");
const FORWARD_MATRICES: &str = on_matrix_units!("forward");
const BACKWARD_LANES: &str = source!("backward", "lanes", "attention_lanes");
const BACKWARD_TILED: &str = source!("backward", "tiled", "attention_workgroup", "attention_tiles");
const BACKWARD_MATRICES: &str = on_matrix_units!("backward");

/// A pass's kernels: for software rasterizers, for GPUs, and for matrix units, with f16 operands.
struct Family {
    lanes: Kernel,
    tiled: Kernel,
    matrices: Kernel,
}

const fn kernel(name: &'static str, source: &'static str, bindings: &'static [Access]) -> Kernel {
    Kernel::trusted(name, source, "main", bindings).cut_along(0, FIRST_GROUP)
}

static FORWARD: Family = Family {
    lanes: with_twin!(kernel("attention", FORWARD_LANES, FORWARD_BINDINGS), twins::forward),
    tiled: with_twin!(kernel("attention", FORWARD_TILED, FORWARD_BINDINGS), twins::forward),
    matrices: kernel("attention", FORWARD_MATRICES, FORWARD_BINDINGS),
};
static DELTA: Kernel = with_twin!(
    Kernel::trusted("attention delta", include_str!("../../shaders/attention_delta.wgsl"), "main", &[R, R, W]),
    twins::delta
);
static QUERY_BACKWARD: Family = Family {
    lanes: with_twin!(kernel("attention backward q", BACKWARD_LANES, QUERY_BINDINGS), twins::query_backward),
    tiled: with_twin!(kernel("attention backward q", BACKWARD_TILED, QUERY_BINDINGS), twins::query_backward),
    matrices: kernel("attention backward q", BACKWARD_MATRICES, QUERY_BINDINGS),
};
static KEY_BACKWARD: Family = Family {
    lanes: with_twin!(kernel("attention backward kv", BACKWARD_LANES, KEY_BINDINGS), twins::key_backward),
    tiled: with_twin!(kernel("attention backward kv", BACKWARD_TILED, KEY_BINDINGS), twins::key_backward),
    matrices: kernel("attention backward kv", BACKWARD_MATRICES, KEY_BINDINGS),
};
static STEP: Kernel = with_twin!(
    Kernel::trusted("attention step", include_str!("../../shaders/attention_step.wgsl"), "main", &[R, R, R, W]),
    twins::step
);
/// Place of `first_group` in the arguments.
const FIRST_GROUP: usize = 6;

/// How the rows and columns of q, k and v divide into sequences and heads. `heads / kv_heads` query heads share each key and
/// value head: 1 is multi-head, `heads` is multi-query attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    /// Number of sequences.
    pub batch: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head, at most 256.
    pub head_dim: usize,
}

/// The widest head whose rows fit the registers.
pub const MAX_HEAD_DIM: usize = 256;

#[derive(Clone, Copy)]
struct Sizes {
    shape: AttentionShape,
    queries: usize,
    keys: usize,
    /// Rows of k and v from one sequence to the next; a cache has room for more than `keys`.
    key_stride: usize,
    precision: Precision,
}

/// What a dispatch computes, and by that the side that its workgroups own.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Pass {
    Forward,
    QueryBackward,
    KeyBackward,
}

impl AttentionShape {
    fn check(&self, q: &Tensor, k: &Tensor, v: &Tensor, precision: Precision) -> Result<Sizes> {
        let ([q_rows, q_columns], [k_rows, k_columns]) = (q.dims("attention")?, k.dims("attention")?);
        let Self { batch, heads, kv_heads, head_dim } = *self;
        let fail = |what: String| {
            let problem = format!("q {:?}, k {:?}, v {:?} as {self:?}: {what}", q.shape(), k.shape(), v.shape());
            Err(Error::shape("attention", &[q.shape(), k.shape(), v.shape()], problem))
        };
        if [batch, heads, kv_heads, head_dim].contains(&0) || head_dim > MAX_HEAD_DIM {
            return fail(format!("sizes above 0 and a head_dim up to {MAX_HEAD_DIM} expected"));
        }
        if !heads.is_multiple_of(kv_heads) {
            return fail(format!("{heads} heads are no multiple of {kv_heads} kv_heads"));
        }
        if k.shape() != v.shape() || q_columns != heads * head_dim || k_columns != kv_heads * head_dim {
            return fail(format!("q [.., {}] and k and v [.., {}] expected", heads * head_dim, kv_heads * head_dim));
        }
        if !q_rows.is_multiple_of(batch) || !k_rows.is_multiple_of(batch) || k_rows < q_rows {
            return fail(format!("{batch} whole sequences with at least as many keys as queries expected"));
        }
        let keys = k_rows / batch;
        Ok(Sizes { shape: *self, queries: q_rows / batch, keys, key_stride: keys, precision })
    }
}

/// What one dispatch computes.
struct Step {
    window: Window,
    /// Of the query heads of a key head, those that the backward for keys and values walks.
    group: Range<usize>,
    /// Whether it adds to what an earlier dispatch has given the same keys.
    is_continued: bool,
}

impl Sizes {
    /// The dispatches of a pass. Keys whose queries are cut add up what the windows give them in the order of one dispatch: all
    /// queries of a head, then those of the next.
    fn steps(&self, limit: u64, pass: Pass) -> Result<Vec<Step>> {
        let windows = self.windows(limit)?;
        let group = self.shape.heads / self.shape.kv_heads;
        if pass != Pass::KeyBackward || windows.iter().all(|window| window.queries.len() == self.queries) {
            return Ok(windows.into_iter().map(|window| Step { window, group: 0..group, is_continued: false }).collect());
        }
        let of_sequence = |sequence: &[Window]| -> Vec<Step> {
            let of_head = |head: usize| {
                sequence.iter().cloned().map(move |window| {
                    let is_continued = head > 0 || window.queries.start > 0;
                    Step { window, group: head..head + 1, is_continued }
                })
            };
            (0..group).flat_map(of_head).collect()
        };
        Ok(windows.chunk_by(|a, b| a.sequences == b.sequences).flat_map(of_sequence).collect())
    }

    /// Runs a pass over tensors in binding order.
    fn launch(&self, gpu: &Gpu, family: &Family, tensors: &[(&Tensor, Side)], pass: Pass) -> Result<()> {
        for step in self.steps(gpu.twin_limit(), pass)? {
            let bound: Vec<(Slice<'_>, usize)> =
                tensors.iter().map(|(tensor, side)| self.bind(&step.window, tensor, *side)).collect();
            let start = |side: Side| {
                let at = tensors.iter().position(|(_, other)| *other == side);
                at.map_or(0, |at| bound[at].1 as u32)
            };
            let buffers: Vec<Slice<'_>> = bound.iter().map(|(slice, _)| *slice).collect();
            self.dispatch(gpu, family, &buffers, [Side::Query, Side::Key, Side::Statistic].map(start), pass, &step)?;
        }
        Ok(())
    }

    fn dispatch(
        &self,
        gpu: &Gpu,
        family: &Family,
        buffers: &[Slice<'_>],
        starts: [u32; 3],
        pass: Pass,
        step: &Step,
    ) -> Result<()> {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        let (batch, queries) = (step.window.sequences.len(), step.window.queries.len());
        let (near, far, near_heads, far_heads) = match pass {
            Pass::KeyBackward => (self.keys, queries, kv_heads, step.group.len()),
            _ => (queries, self.keys, heads, 1),
        };
        let (kernel, mut constants, near_rows, iterations) = if let Some(tiling) = self.matrix_tiling(gpu, pass) {
            (&family.matrices, tiling.constants(), tiling.near(), tiling.iterations(far))
        } else if gpu.shader_tier() == KernelTier::Fallback {
            let rows = LaneRows::of(gpu.lanes() as usize, pass, head_dim);
            (&family.lanes, rows.constants(head_dim), rows.near(), rows.iterations(far))
        } else {
            let tiling = Tiling::of(Room::of(gpu), pass, head_dim);
            (&family.tiled, tiling.constants(head_dim), tiling.near(), tiling.iterations(pass, head_dim, far))
        };
        constants.extend([
            ("VECTORS", vectors(head_dim)),
            ("QUERY_SIDE", u32::from(pass == Pass::QueryBackward)),
            ("CONTINUED", u32::from(step.is_continued)),
        ]);
        let products = match pass {
            Pass::Forward => 2,
            Pass::QueryBackward => 3,
            Pass::KeyBackward => 4,
        };
        let sizes = [queries, self.keys, self.keys - self.queries + step.window.queries.start, heads, heads / kv_heads];
        let mut arguments = sizes.map(|size| size as u32).to_vec();
        arguments.extend([(1.0 / (head_dim as f32).sqrt()).to_bits(), 0]);
        arguments.extend(starts);
        arguments.extend([step.group.start, step.group.end, self.key_stride].map(|count| count as u32));
        gpu.launch(&Launch {
            kernel,
            constants: &constants,
            buffers,
            arguments: bytemuck::cast_slice(&arguments),
            workgroups: [near.div_ceil(near_rows) as u32, near_heads as u32, batch as u32],
            iterations: (far_heads * iterations) as u64,
            // Half of all pairs are masked.
            work: (products * batch * near_heads * far_heads * queries * self.keys * head_dim) as u64,
        })
    }
}

impl Sizes {
    /// The tiles on matrix units, where operands may be rounded to f16, the device has such units, and the heads fit.
    fn matrix_tiling(&self, gpu: &Gpu, pass: Pass) -> Option<MatrixTiling> {
        if self.precision != Precision::F16 || gpu.shader_tier() != KernelTier::Matrix {
            return None;
        }
        let shared = gpu.adapter().limits.max_compute_workgroup_storage_size;
        MatrixTiling::of(gpu.matrices()?, shared, pass, self.shape.head_dim)
    }

    /// One query per sequence, which would leave most lanes of the general kernel without a row.
    fn launch_step(&self, gpu: &Gpu, buffers: &[Slice<'_>]) -> Result<()> {
        let AttentionShape { batch, heads, kv_heads, head_dim } = self.shape;
        let quarters = head_dim.div_ceil(4);
        let (lanes, one_subgroup) = match gpu.shader_tier() {
            KernelTier::Fallback => (gpu.lanes() as usize, true),
            _ => (64, false),
        };
        let scale = (1.0 / (head_dim as f32).sqrt()).to_bits();
        let arguments = [self.keys as u32, self.key_stride as u32, heads as u32, (heads / kv_heads) as u32, scale];
        gpu.launch(&Launch {
            kernel: &STEP,
            constants: &[
                ("DIM", head_dim as u32),
                ("QUARTERS", quarters as u32),
                ("PARTS", quarters.div_ceil(lanes) as u32),
                ("WORKGROUP", lanes as u32),
                ("ONE_SUBGROUP", u32::from(one_subgroup)),
                ("VECTORS", vectors(head_dim)),
            ],
            buffers,
            arguments: bytemuck::cast_slice(&arguments),
            workgroups: [heads as u32, batch as u32, 1],
            iterations: (self.keys.div_ceil(lanes) * if one_subgroup { 1 } else { 1 + 16 + lanes }) as u64,
            work: (4 * batch * heads * self.keys * head_dim) as u64,
        })
    }
}

impl Tensor {
    /// Attention of the queries self over the first `keys` rows of each sequence of `k` and `v`.
    pub(crate) fn attention_within(&self, k: &Tensor, v: &Tensor, keys: usize, shape: AttentionShape) -> Result<Tensor> {
        let sizes = shape.check(self, k, v, Precision::F32)?;
        assert!((sizes.queries..=sizes.keys).contains(&keys), "bug: {keys} keys of {k:?} for {} queries", sizes.queries);
        let sizes = Sizes { keys, ..sizes };
        // The kernel for one query binds its tensors whole; the general one cuts them.
        let is_bound_whole = [self, k].iter().all(|tensor| tensor.bytes() <= self.gpu().twin_limit());
        if sizes.queries > 1 || !is_bound_whole {
            return Ok(self.attend(k, v, sizes)?.0);
        }
        let o = Tensor::uninitialized(self.gpu(), self.shape())?;
        sizes.launch_step(self.gpu(), &[self, k, v, &o].map(Tensor::slice))?;
        Ok(o)
    }

    /// (o, log-sum-exp)
    fn attend(&self, k: &Tensor, v: &Tensor, sizes: Sizes) -> Result<(Tensor, Tensor)> {
        let shape = sizes.shape;
        let o = Tensor::uninitialized(self.gpu(), self.shape())?;
        let lse = Tensor::uninitialized(self.gpu(), &[shape.batch * sizes.queries, shape.heads])?;
        let tensors = [(self, Side::Query), (k, Side::Key), (v, Side::Key), (&o, Side::Query), (&lse, Side::Statistic)];
        sizes.launch(self.gpu(), &FORWARD, &tensors, Pass::Forward)?;
        Ok((o, lse))
    }
}

impl<'t> Var<'t> {
    /// Causal attention with grouped heads, per head `y = P·v`, `P = softmax(self·kᵀ/√head_dim)`; query i sees the keys up to
    /// i + keys - queries. self `[batch·queries, heads·head_dim]`, k and v `[batch·keys, kv_heads·head_dim]` → like self.
    /// Backward, with `dP = dy·vᵀ` and `dS = P∘(dP - rowsum(P∘dP))`: `dself = dS·k/√head_dim`, `dk = dSᵀ·self/√head_dim`,
    /// `dv = Pᵀ·dy`, the last two summed over the query heads that share them. Memory is linear in the length: P is recomputed in
    /// tiles. At [`Precision::F16`] a device with matrix units rounds the operands of these products, P and dS included, to f16, unless
    /// the heads are too wide for its shared memory (up to 128 columns always fit, 192 need 44 KiB, 256 need 56 KiB); otherwise all is f32. Errors: shapes that do not divide as `shape` says, head_dim above 256, more queries than keys.
    ///
    /// ```
    /// # use polytape::*;
    /// # let gpu = Gpu::open(&Default::default())?;
    /// # let params = Params::new(&gpu);
    /// # let tape = Tape::new(&params);
    /// let x = tape.constant(Tensor::from_slice(&gpu, &[1.0, 2.0, 4.0], &[3, 1])?);
    /// let equal = tape.constant(Tensor::zeros(&gpu, &[3, 1])?); // queries and keys that match all alike
    /// let shape = AttentionShape { batch: 1, heads: 1, kv_heads: 1, head_dim: 1 };
    /// let y = equal.attention(&equal, &x, shape)?.value().to_vec()?;
    /// assert!((y[0] - 1.0).abs() < 1e-6 && (y[1] - 1.5).abs() < 1e-6 && (y[2] - 7.0 / 3.0).abs() < 1e-6); // running means
    /// # Ok::<(), Error>(())
    /// ```
    pub fn attention(&self, k: &Var<'t>, v: &Var<'t>, shape: AttentionShape) -> Result<Var<'t>> {
        let (q, key, value) = (self.value().clone(), k.value().clone(), v.value().clone());
        let sizes = shape.check(&q, &key, &value, self.tape().precision())?;
        let (o, lse) = q.attend(&key, &value, sizes)?;
        let saved = o.clone();
        self.tape().record("attention", o, [self, k, v], move |dy, _| {
            let delta = delta(&saved, &dy, &lse, shape.head_dim)?;
            drop(saved);
            let [dq, dk, dv] = gradients(&q, &key)?;
            let mut tensors = vec![(&q, Side::Query), (&key, Side::Key), (&value, Side::Key), (&dy, Side::Query)];
            tensors.extend([(&lse, Side::Statistic), (&delta, Side::Statistic), (&dq, Side::Query)]);
            sizes.launch(q.gpu(), &QUERY_BACKWARD, &tensors, Pass::QueryBackward)?;
            tensors.pop();
            tensors.extend([(&dk, Side::Key), (&dv, Side::Key)]);
            sizes.launch(q.gpu(), &KEY_BACKWARD, &tensors, Pass::KeyBackward)?;
            Ok([Some(dq), Some(dk), Some(dv)])
        })
    }
}

/// Room for dq, dk and dv, in one buffer as far as they are alike: q, k and v may be products of one input.
fn gradients(q: &Tensor, k: &Tensor) -> Result<[Tensor; 3]> {
    let parts = |like: &Tensor, count| Tensor::uninitialized_parts(like.gpu(), like.shape(), count);
    let all = if q.shape() == k.shape() { parts(q, 3)? } else { [parts(q, 1)?, parts(k, 2)?].concat() };
    Ok(all.try_into().expect("bug: not three gradients"))
}

fn delta(o: &Tensor, dy: &Tensor, lse: &Tensor, head_dim: usize) -> Result<Tensor> {
    let delta = Tensor::uninitialized(o.gpu(), lse.shape())?;
    let width = if head_dim.is_multiple_of(4) { 4 } else { 1 };
    let launch = Rows {
        kernel: &DELTA,
        constants: &[("VECTORS", vectors(head_dim))],
        rows: lse.len(),
        tensors: &[(o, head_dim), (dy, head_dim), (&delta, 1)],
        arguments: &[head_dim as u32],
        invocations_per_row: 1.0,
        workgroup: 64,
        iterations: head_dim / width,
    };
    launch.launch(o.gpu())?;
    Ok(delta)
}
