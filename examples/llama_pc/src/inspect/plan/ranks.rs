//! What a step needs on several ranks: memory of each, bytes between them, and the time that both take.
//!
//! A rank holds all effective weights and, for a while, all gradients; what it owns (raw weights of PC layers, rows of the tables, u, v, γ,
//! moments) it holds alone. With P ranks, N parameters, β the bandwidth that TCP leaves and α the latency, a rank sends (P−1)/P·N values to
//! the owners of gradients and as many to the readers of weights, each in X = (P−1)·α + bytes/β, and takes part in three small exchanges of
//! (P−1)·α: T(P) = model/P/F + most PC and optimizer work of a rank/F + 2X + 3(P−1)·α, of which the overlap hides the gradients' X as far as the
//! backward of the last micro-batch lasts, all but the last bucket. The efficiency is T(1)/(P·T(P)).

use polytape::exchange::{Dealt, deal, step_bytes};
use polytape::llama::ParameterShape;
use polytape::optim::Optimizer;
use polytape::{Role, spectral::PcConfig};
use serde::Serialize;

use super::flops::StepFlops;
use super::memory::{self, Moment};
use super::model::{Model, PcLayer, bytes};
use crate::config::Config;
use crate::model::engine;
use crate::terminal::failure::Failure;
use crate::terminal::format::binary;

/// Of a micro-batch's forward and backward, the latter.
const BACKWARD: f64 = 2.0 / 3.0;
/// Of what a rank sends, the last bucket: nothing is left to hide it.
const LAST: f64 = 1.0 / 16.0;
/// Latency of a message between hosts, in seconds: of TCP on Ethernet.
const LATENCY: f64 = 50e-6;
/// Share of a link's bandwidth that TCP on Ethernet carries: 1,448 bytes of the 1,538 that a frame occupies on the wire.
const PAYLOAD: f64 = 1448.0 / 1538.0;

/// What the user says about the ranks.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    pub ranks: usize,
    /// Bytes per second of the link between hosts.
    pub bandwidth: f64,
    /// Operations per second that an adapter does in a step.
    pub speed: Option<f64>,
}

/// The part of the plan.
#[derive(Debug, Serialize)]
pub struct Ranks {
    pub ranks: usize,
    /// `train.replicas`, as a run that begins on these ranks has it.
    pub replicas: usize,
    /// Bytes at the peak, of the rank that owns most.
    pub memory: Moment,
    pub memory_bytes: u64,
    /// Bytes that all ranks together send in a step.
    pub sent_by_all: u64,
    /// Bytes that a rank sends in a step; the mean of the ranks.
    pub sent_per_step: u64,
    /// Seconds of a step in which values travel.
    pub exchange_seconds: f64,
    /// The largest part of the work on PC layers and optimizer that one rank has, 1/ranks at best.
    pub largest_share: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prediction: Option<Prediction>,
}

/// Seconds of a step, where the adapter's speed is known.
#[derive(Debug, Serialize)]
pub struct Prediction {
    pub one_rank: f64,
    pub step: f64,
    /// With `--no-overlap`.
    pub step_without_overlap: f64,
    pub efficiency: f64,
}

/// Bytes that one rank has alone.
#[derive(Clone, Copy, Default)]
struct Own {
    parameters: u64,
    optimizer: u64,
    work: f64,
}

impl Ranks {
    pub fn new(config: &Config, model: &Model, flops: StepFlops, ask: Ask) -> Result<Self, Failure> {
        let ranks = ask.ranks;
        let replicas = config.train.replicas_on(ranks);
        let model = &Model { replicas, leaves: replicas, ..model.clone() };
        if ranks == 0 || !model.replicas.is_multiple_of(ranks) {
            let accumulation = config.train.grad_accumulation;
            return Err(Failure::usage(format!("--ranks: found {ranks}, expected a divisor of train.replicas = {replicas}"))
                .hint(format!(
                    "--set train.replicas=R, a power of two that divides train.grad_accumulation = {accumulation}, plans for more"
                )));
        }
        let division = Division::new(config, model)?;
        let own = division.owned(ranks);
        let most = own.iter().max_by_key(|own| own.parameters + own.optimizer).copied().unwrap_or_default();
        let total: f64 = own.iter().map(|own| own.work).sum();
        let heaviest = own.iter().map(|own| own.work).fold(0.0, f64::max);
        let memory = memory::peak_of_rank(model, ranks, most.parameters, most.optimizer);
        let gammas = if model.learnable_gamma { model.pc.len() } else { 0 };
        let sent_by_all = step_bytes(&division.parameters(), gammas, replicas, ranks, config.train.exchange);
        let sent_per_step = sent_by_all / ranks as u64;
        // Half to the owners, half from them.
        let one_way_seconds = sent_per_step as f64 / 2.0 / (PAYLOAD * ask.bandwidth);
        let exchange_seconds = 2.0 * one_way_seconds + 5.0 * (ranks - 1) as f64 * LATENCY;
        let largest_share = if total > 0.0 { heaviest / total } else { 1.0 / ranks as f64 };
        let prediction = ask.speed.map(|speed| {
            let (of_model, of_owners) = (flops.model + flops.recomputation, flops.pc + flops.optimizer);
            let one_rank = (of_model + of_owners) / speed;
            let step_without_overlap = (of_model / ranks as f64 + largest_share * of_owners) / speed + exchange_seconds;
            let last_backward = (BACKWARD * flops.model + flops.recomputation) / model.micro_batches as f64 / speed;
            let hidden = last_backward.min((1.0 - LAST) * one_way_seconds);
            let step = step_without_overlap - hidden;
            Prediction { one_rank, step, step_without_overlap, efficiency: one_rank / (ranks as f64 * step) }
        });
        let memory_bytes = memory.total();
        Ok(Self {
            ranks,
            replicas,
            memory,
            memory_bytes,
            sent_by_all,
            sent_per_step,
            exchange_seconds,
            largest_share,
            prediction,
        })
    }

    pub fn lines(&self) -> Vec<String> {
        let Self { ranks, replicas, memory, memory_bytes, sent_per_step, exchange_seconds, largest_share, prediction, .. } = self;
        let mut lines = vec![
            format!(
                "on {:<16}{} each at its peak, the {}, of the rank that owns most",
                format!("{ranks} ranks"),
                binary(*memory_bytes),
                memory.name
            ),
            format!("train.replicas     {replicas}, {} for each rank", replicas / ranks),
            format!("sent per step      {} by each rank, in {}", binary(*sent_per_step), seconds(*exchange_seconds)),
            format!(
                "PC and optimizer   {:.1} % of the work on one rank, {:.1} % at best",
                100.0 * largest_share,
                100.0 / *ranks as f64
            ),
        ];
        lines.push(match prediction {
            Some(Prediction { one_rank, step, step_without_overlap, efficiency }) => format!(
                "step               {} instead of {} on one rank: efficiency {:.0} % ({} without overlap)",
                seconds(*step),
                seconds(*one_rank),
                100.0 * efficiency,
                seconds(*step_without_overlap)
            ),
            None => "step               unknown; --tflops X sets the speed of an adapter in a step".to_owned(),
        });
        lines
    }
}

fn seconds(time: f64) -> String {
    if time < 1.0 { format!("{:.3} s", time) } else { format!("{time:.2} s") }
}

/// What the parameters are divided by.
struct Division<'a> {
    model: &'a Model,
    optimizer: Box<dyn Optimizer>,
    /// Of each parameter: its PC layer, and the products that it takes.
    of_parameters: Vec<(Option<PcLayer>, usize)>,
}

impl<'a> Division<'a> {
    fn new(config: &Config, model: &'a Model) -> Result<Self, Failure> {
        let layers = engine::pc_targets(config);
        let pc: Option<PcConfig> = config.pc.as_ref().map(engine::pc).transpose()?;
        let optimizer = (config.optimizer.rule().build)(&config.optimizer);
        let layer_of = |name: &str| {
            let at = layers.iter().position(|(stem, _)| name.strip_suffix(".weight") == Some(stem))?;
            Some(model.pc[at])
        };
        let of_parameter = |parameter: &ParameterShape| {
            let layer = layer_of(&parameter.name);
            let products = layer.and(pc.as_ref()).map_or(0, PcConfig::products) + optimizer.products(parameter.role);
            (layer, products)
        };
        let of_parameters = model.parameters.iter().map(of_parameter).collect();
        Ok(Self { model, optimizer, of_parameters })
    }

    fn parameters(&self) -> Vec<Dealt<'_>> {
        let pairs = self.model.parameters.iter().zip(&self.of_parameters);
        pairs.map(|(parameter, &(_, products))| Dealt { role: parameter.role, shape: &parameter.shape, products }).collect()
    }

    /// What each rank has alone.
    fn owned(&self, ranks: usize) -> Vec<Own> {
        let (model, mut own) = (self.model, vec![Own::default(); ranks]);
        let state = |role: Role, shape: &[usize]| -> u64 {
            self.optimizer.slots(role, shape).iter().map(|slot| bytes(slot.shape.iter().product())).sum()
        };
        for piece in deal(&self.parameters(), model.replicas) {
            let (parameter, (layer, products)) = (&model.parameters[piece.parameter], self.of_parameters[piece.parameter]);
            let own = &mut own[piece.share * ranks / model.replicas];
            let shape = [&[piece.rows.len()], &parameter.shape[1..]].concat();
            let numel: usize = shape.iter().product();
            own.optimizer += state(parameter.role, &shape);
            own.work += (numel * products * parameter.shape.iter().min().unwrap_or(&1)) as f64;
            if piece.rows.len() < parameter.shape[0] {
                own.parameters += bytes(numel);
            }
            if let Some(layer) = layer {
                own.parameters += bytes(numel) + bytes(layer.heads * layer.rows) + bytes(layer.heads * layer.columns);
                if model.learnable_gamma {
                    own.parameters += bytes(layer.heads);
                    own.optimizer += state(Role::Vector, &[layer.heads]);
                }
            }
        }
        own
    }
}

#[cfg(test)]
mod tests {
    use polytape::Stacks;

    use super::*;

    /// The plan of a small model for that many ranks, as JSON and as text.
    fn plan(ranks: usize, sets: &[&str]) -> Result<(String, String), String> {
        let small = ["model.dim=64", "model.vocab=4000", "train.grad_accumulation=24"];
        let sets: Vec<String> = small.iter().chain(sets).map(|set| (*set).to_owned()).collect();
        let mut config = Config::load(None, &sets).expect("a good configuration");
        config.resolve_vocab(None).expect("a vocabulary");
        let model = Model::new(&config, Stacks::default()).expect("a model");
        let ask = Ask { ranks, bandwidth: 1e9, speed: Some(1e12) };
        let plan = Ranks::new(&config, &model, StepFlops::new(&model), ask).map_err(|failure| failure.to_string())?;
        Ok((serde_json::to_string(&plan).expect("JSON"), plan.lines().join("\n")))
    }

    #[test]
    fn ranks_have_a_replica_each_unless_the_configuration_says_otherwise() {
        let (json, text) = plan(8, &[]).expect("a plan");
        assert_eq!(plan(8, &["train.replicas=8"]), Ok((json, text.clone())));
        assert!(text.contains("train.replicas     8, 1 for each rank"), "{text}");
        let (_, text) = plan(2, &["train.replicas=8"]).expect("a plan");
        assert!(text.contains("train.replicas     8, 4 for each rank"), "{text}");
        let refused: [(usize, &[&str]); 4] = [(0, &[]), (3, &[]), (16, &[]), (8, &["train.replicas=4"])];
        for (ranks, sets) in refused {
            let text = plan(ranks, sets).expect_err("not that many");
            assert!(text.contains(&format!("--ranks: found {ranks}, expected a divisor of train.replicas = ")), "{text}");
        }
    }
}
