//! Attention of one sequence, forward and backward, at the head sizes of the published models: in f32, and on matrix units with f16
//! operands, too.

use polytape::gpu::KernelTier;
use polytape::{AttentionShape, Gpu, Gradients, Params, Precision, Result, Tape, Tensor, Var};

use super::report::{Row, Unit};
use super::session::{Case, Session, Timing, agree};
use super::sizes::{PUBLISHED, TOKENS, preset, tokens};
use super::table;
use super::values::{dot, tensor, value};

/// Seeds of q, k, v and the cotangent.
const SEEDS: [u32; 4] = [1, 2, 3, 4];
/// The share of the limit that a slow kernel reaches, for the first estimate.
const SLOW: f64 = 0.02;
/// Times that it runs forward and backward while it is measured.
const RUNS: f64 = 5.0;

/// Every line of the part.
pub fn run(session: &mut Session) -> Case {
    let mut rate = SLOW * session.limits.multiply_adds;
    let on_matrix_units = session.gpu.kernels() == KernelTier::Matrix;
    let precisions = if on_matrix_units { &[Precision::F32, Precision::F16][..] } else { &[Precision::F32] };
    let runs = RUNS * precisions.len() as f64;
    for (at, name) in PUBLISHED.into_iter().enumerate() {
        let shape = preset(name)?.attention_shape(1);
        let share = session.left() / (PUBLISHED.len() - at) as f64;
        let estimate = |positions| runs * operations(shape, positions, FORWARD + BACKWARD) / rate;
        let what = format!("{} heads of {}", shape.heads, shape.head_dim);
        let Some(positions) = tokens(share, estimate) else {
            let (least, needed) = (TOKENS[TOKENS.len() - 1], table::seconds(estimate(TOKENS[TOKENS.len() - 1])));
            session.leave_out(&what, format!("{least} positions take about {needed}, {} left for them", table::seconds(share)));
            continue;
        };
        let (what, estimate) = (format!("{what}, {positions} positions"), estimate(positions));
        session.case(&what.clone(), estimate, |session| {
            let inputs = Inputs::new(&session.gpu, shape, positions)?;
            for &precision in precisions {
                let found = measure(session, &what, &inputs, precision)?;
                if precision == Precision::F32 {
                    rate = found;
                }
            }
            Ok(())
        });
    }
    Ok(())
}

/// Products of queries × keys × head_dim: q·kᵀ and p·v; and backward q·kᵀ again, dy·vᵀ, pᵀ·dy, ds·k, dsᵀ·q.
const FORWARD: f64 = 2.0;
const BACKWARD: f64 = 5.0;

/// FLOP of the pairs of positions that the causal mask leaves.
fn operations(shape: AttentionShape, positions: usize, products: f64) -> f64 {
    let pairs = (shape.batch * shape.heads * positions * (positions + 1) / 2) as f64;
    2.0 * products * pairs * shape.head_dim as f64
}

/// Measures both and returns the FLOP/s of both together.
fn measure(session: &mut Session, what: &str, inputs: &Inputs, precision: Precision) -> Case<f64> {
    let Inputs { shape, positions, .. } = *inputs;
    inputs.check(&inputs.run(precision, true)?, precision)?;
    let forward = session.time(|| inputs.run(precision, false).map(drop))?;
    let both = session.time(|| inputs.run(precision, true).map(drop))?;
    let backward = Timing { seconds: (both.seconds - forward.seconds).max(1e-9), ..both };
    let suffix = if precision == Precision::F16 { " at f16" } else { "" };
    let limit = match (precision, session.limits.matrices) {
        (Precision::F16, Some(matrices)) => matrices,
        _ => session.limits.multiply_adds,
    };
    for (column, timing, products) in [("forward", forward, FORWARD), ("backward", backward, BACKWARD)] {
        let rate = operations(shape, positions, products) / timing.seconds;
        session.row(Row {
            what: what.to_owned(),
            column: format!("{column}{suffix}"),
            unit: Unit::Teraflops,
            value: rate / 1e12,
            of_limit: Some(rate / limit),
            spread: timing.spread,
            ..Row::default()
        });
    }
    Ok(operations(shape, positions, FORWARD + BACKWARD) / both.seconds)
}

/// q, k, v and the cotangent.
struct Inputs {
    shape: AttentionShape,
    positions: usize,
    tensors: [Tensor; 4],
}

impl Inputs {
    fn new(gpu: &Gpu, shape: AttentionShape, positions: usize) -> Result<Self> {
        let one = |heads: usize, seed| tensor(gpu, &[shape.batch * positions, heads * shape.head_dim], 1.0, seed);
        let [q, k, v, dy] = SEEDS;
        let tensors = [one(shape.heads, q)?, one(shape.kv_heads, k)?, one(shape.kv_heads, v)?, one(shape.heads, dy)?];
        Ok(Self { shape, positions, tensors })
    }

    /// o, and with `backward` dq, dk and dv.
    fn run(&self, precision: Precision, backward: bool) -> Result<Vec<Tensor>> {
        let params = Params::new(self.tensors[0].gpu());
        let tape = Tape::new(&params).with_precision(precision);
        let leaves: [Var<'_>; 3] = [0, 1, 2].map(|at| tape.leaf(self.tensors[at].clone()));
        let o = leaves[0].attention(&leaves[1], &leaves[2], self.shape)?;
        let mut found = vec![o.value().clone()];
        if backward {
            let gradients = tape.backward_from(&[(&o, self.tensors[3].clone())], &mut Gradients::new())?;
            found.extend(leaves.iter().filter_map(|leaf| gradients.get(leaf).cloned()));
        }
        Ok(found)
    }

    /// Row `position` of the last head: its start in a tensor.
    fn start(&self, position: usize) -> usize {
        // The published models have as many key heads as query heads.
        position * self.shape.heads * self.shape.head_dim + (self.shape.heads - 1) * self.shape.head_dim
    }

    fn at(&self, tensor: usize, position: usize, d: usize) -> f64 {
        f64::from(value(SEEDS[tensor], self.start(position) + d))
    }

    /// The probabilities of a query, and their gradients before the softmax's.
    fn query(&self, position: usize) -> [Vec<f64>; 2] {
        let width = self.shape.head_dim;
        let root = (width as f64).sqrt();
        let scores: Vec<f64> =
            (0..=position).map(|key| dot(width, |d| self.at(0, position, d) * self.at(1, key, d)) / root).collect();
        let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mass: f64 = scores.iter().map(|score| (score - most).exp()).sum();
        let p: Vec<f64> = scores.iter().map(|score| (score - most).exp() / mass).collect();
        let dp: Vec<f64> = (0..=position).map(|key| dot(width, |d| self.at(3, position, d) * self.at(2, key, d))).collect();
        let mean = dot(p.len(), |key| p[key] * dp[key]);
        let ds = p.iter().zip(&dp).map(|(p, dp)| p * (dp - mean) / root).collect();
        [p, ds]
    }

    /// Compares o and dq of some positions, and dk and dv of the last ones, which few queries see, with float64.
    fn check(&self, found: &[Tensor], precision: Precision) -> Case {
        // That of a sum of values of about 1.
        let tolerance = if precision == Precision::F16 { 2e-2 } else { 2e-4 };
        let width = self.shape.head_dim;
        let compare = |name: &str, tensor: &Tensor, position: usize, want: &dyn Fn(usize) -> f64| -> Case {
            let start = self.start(position);
            let found = tensor.read(start..start + width)?;
            (0..width).try_for_each(|d| agree(|| format!("{name}[{position}, {d}]"), f64::from(found[d]), want(d), tolerance))
        };
        let [o, dq, dk, dv] = found else { return Err(polytape::Error::Value("attention: a gradient is missing".into()).into()) };
        for position in [0, self.positions / 2 + 1, self.positions - 1] {
            let [p, ds] = self.query(position);
            compare("o", o, position, &|d| dot(p.len(), |key| p[key] * self.at(2, key, d)))?;
            compare("dq", dq, position, &|d| dot(ds.len(), |key| ds[key] * self.at(1, key, d)))?;
        }
        let last: Vec<(usize, [Vec<f64>; 2])> =
            (self.positions - 3..self.positions).map(|position| (position, self.query(position))).collect();
        for key in self.positions - 3..self.positions {
            let sum = |part: usize, tensor: usize, d: usize| {
                let seen = last.iter().filter(|(position, _)| *position >= key);
                seen.map(|(position, query)| query[part][key] * self.at(tensor, *position, d)).sum::<f64>()
            };
            compare("dk", dk, key, &|d| sum(1, 0, d))?;
            compare("dv", dv, key, &|d| sum(0, 3, d))?;
        }
        Ok(())
    }
}
