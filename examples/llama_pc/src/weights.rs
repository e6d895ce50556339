//! Weights on disk: a run's checkpoints, and folders of other programs in Hugging Face's layout.

mod stored;

use std::path::{Path, PathBuf};

use polytape::llama::Llama;
use polytape::spectral::Preconditioner;
use polytape::{Gpu, ParamId, Params};
use serde::Deserialize;

use crate::config::Config;
use crate::engine;
use crate::failure::Failure;
use crate::hugging_face;
use crate::run;
pub use stored::Stored;

/// The model of a configuration with its PC layers, to train.
pub struct Model {
    pub llama: Llama,
    /// Raw parameters.
    pub params: Params,
    pub preconditioner: Option<Preconditioner>,
}

impl Model {
    /// Fresh weights, drawn from the configuration's seed.
    pub fn fresh(gpu: &Gpu, config: &Config) -> Result<Self, Failure> {
        let (llama, params) = Llama::init(gpu, engine::model(config), config.seed)?;
        Self::precondition(llama, params, config)
    }

    /// The weights of a folder, verified where it is a run's checkpoint, with the PC state that stands beside the matrices which the
    /// configuration preconditions. Returns the names of the PC state that it ignored, too.
    pub fn load(gpu: &Gpu, config: &Config, folder: &Path) -> Result<(Self, Vec<String>), Failure> {
        let stored = Stored::open(config, folder)?;
        let (llama, params) = Llama::load(gpu, engine::model(config), |name, shape| stored.raw(gpu, name, shape))?;
        // Attached as in a fresh run, so that the parameters, and with them the sums over all, keep their order.
        let mut model = Self::precondition(llama, params, config)?;
        let mut ignored = Vec::new();
        for name in stored.names().filter(|name| is_pc_state(name)) {
            match model.params.find(name) {
                Some(id) => model.params.set(id, stored.tensor(gpu, name)?)?,
                None => ignored.push(name.to_owned()),
            }
        }
        Ok((model, ignored))
    }

    fn precondition(llama: Llama, mut params: Params, config: &Config) -> Result<Self, Failure> {
        let Some(pc) = &config.pc else {
            return Ok(Self { llama, params, preconditioner: None });
        };
        let id = |(stem, heads): (String, usize)| Ok((params.id(&format!("{stem}.weight"))?, heads));
        let targets = engine::pc_targets(config).into_iter().map(id).collect::<polytape::Result<Vec<(ParamId, usize)>>>()?;
        let preconditioner = Preconditioner::attach(&mut params, engine::pc(pc)?, &targets, config.seed)?;
        Ok(Self { llama, params, preconditioner: Some(preconditioner) })
    }
}

fn is_pc_state(name: &str) -> bool {
    [".pc_u", ".pc_v", ".pc_gamma"].iter().any(|suffix| name.ends_with(suffix))
}

/// Reads a JSON file.
pub fn json<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| Failure::io("read", path, &error))?;
    serde_json::from_str(&text).map_err(|error| Failure::other(format!("{}: {error}", path.display())))
}

/// A model to use, not to train: of a run's newest checkpoint or of an exported folder.
pub struct Trained {
    pub llama: Llama,
    /// Effective weights.
    pub params: Params,
}

impl Trained {
    /// Loads `path`, with room for sequences of `positions` tokens (the configuration's, if `None`).
    pub fn open(gpu: &Gpu, path: &Path, positions: Option<usize>) -> Result<Self, Failure> {
        let (config, folder) = describe(path)?;
        let mut sizes = engine::model(&config);
        sizes.max_seq_len = positions.unwrap_or(sizes.max_seq_len);
        let stored = Stored::open(&config, &folder)?;
        let (llama, params) = Llama::load(gpu, sizes, |name, shape| stored.effective(gpu, name, shape))?;
        Ok(Self { llama, params })
    }
}

/// The configuration of a run or an exported folder, and the folder of its weights: the newest checkpoint of a run.
pub fn describe(path: &Path) -> Result<(Config, PathBuf), Failure> {
    describe_at(path, None)
}

/// [`describe`], with the checkpoint after so many steps.
pub fn describe_at(path: &Path, step: Option<u64>) -> Result<(Config, PathBuf), Failure> {
    if path.join("config.json").is_file() {
        return match step {
            Some(step) => {
                Err(Failure::usage(format!("--step {step}: {}: found an exported folder, expected a run", path.display())))
            }
            None => Ok((hugging_face::configuration(path)?, path.to_owned())),
        };
    }
    let file = path.join("config.toml");
    if !file.is_file() {
        let path = path.display();
        return Err(Failure::other(format!(
            "{path}: found neither config.toml nor config.json, expected a run or an exported folder"
        )));
    }
    let config = Config::load(Some(&file), &[])?;
    let found = run::checkpoints(path);
    let Some(step) = step.or(found.last().copied()) else {
        return Err(Failure::other(format!("{}: found no checkpoint, expected one or more", path.display())));
    };
    if !found.contains(&step) {
        let found = found.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
        return Err(Failure::usage(format!(
            "--step {step}: found checkpoints of {} after step {found}, expected one of them",
            path.display()
        )));
    }
    Ok((config, run::checkpoint(path, step)))
}
