//! Models with their weights, for training or inference.

use std::path::Path;

use polytape::llama::{Llama, LlamaConfig, names};
use polytape::spectral::Preconditioner;
use polytape::{Gpu, ParamId, Params};

use super::source::describe;
use super::stored::Stored;
use super::unused::is_pc_state;
use crate::config::Config;
use crate::model::engine;
use crate::terminal::failure::Failure;

/// A model with PC layers, for training.
pub struct Model {
    pub llama: Llama,
    /// Raw parameters.
    pub params: Params,
    pub preconditioner: Option<Preconditioner>,
}

impl Model {
    /// Initial weights, drawn from the configuration's seed and scaled by its `model.init_scale`.
    pub fn fresh(gpu: &Gpu, config: &Config) -> Result<Self, Failure> {
        let (llama, mut params) = Llama::init(gpu, engine::model(config), config.seed)?;
        for (stem, factor) in engine::init_scales(config) {
            let id = params.id(&names::weight(&stem))?;
            let scaled = params.get(id)?.tensor.scaled(factor)?;
            params.set(id, scaled)?;
        }
        Self::precondition(llama, params, config)
    }

    /// The weights of a folder, verified where it is a run's checkpoint, with the PC state of the matrices which the
    /// configuration preconditions. Returns the names of the PC state that it ignored, too.
    pub fn load(gpu: &Gpu, config: &Config, folder: &Path) -> Result<(Self, Vec<String>), Failure> {
        let stored = Stored::open_any(config, folder)?;
        let ignored = stored.refuse_unused_but_pc(config)?;
        let (llama, params) = Llama::load(gpu, engine::model(config), |name, shape| stored.raw(gpu, name, shape))?;
        // Attached as in a new run, so that parameters keep their order, and with them sums over all parameters.
        let mut model = Self::precondition(llama, params, config)?;
        let states: Vec<(ParamId, String)> = model
            .params
            .iter()
            .filter(|(_, param)| is_pc_state(&param.name))
            .map(|(id, param)| (id, param.name.clone()))
            .collect();
        for (id, name) in states.into_iter().filter(|(_, name)| stored.has(name)) {
            model.params.set(id, stored.tensor(gpu, &name)?)?;
        }
        Ok((model, ignored))
    }

    fn precondition(llama: Llama, mut params: Params, config: &Config) -> Result<Self, Failure> {
        let Some(pc) = &config.pc else {
            return Ok(Self { llama, params, preconditioner: None });
        };
        let id = |(stem, heads): (String, usize)| Ok((params.id(&names::weight(&stem))?, heads));
        let targets = engine::pc_targets(config).into_iter().map(id).collect::<polytape::Result<Vec<(ParamId, usize)>>>()?;
        let preconditioner = Preconditioner::attach(&mut params, engine::pc(pc)?, &targets, config.seed)?;
        Ok(Self { llama, params, preconditioner: Some(preconditioner) })
    }
}

/// A model for inference, from a run's newest checkpoint or an exported folder.
pub struct Trained {
    pub llama: Llama,
    /// Effective weights.
    pub params: Params,
}

impl Trained {
    /// Loads `path` for sequences of up to `positions` tokens.
    pub fn open(gpu: &Gpu, path: &Path, positions: usize) -> Result<Self, Failure> {
        let (config, folder) = describe(path)?;
        let sizes = LlamaConfig { max_seq_len: positions, ..engine::model(&config) };
        let stored = Stored::open(&config, &folder)?;
        let (llama, params) = Llama::load(gpu, sizes, |name, shape| stored.effective(gpu, name, shape))?;
        Ok(Self { llama, params })
    }
}
