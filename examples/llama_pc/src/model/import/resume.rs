//! Restores a trainer from a checkpoint; it resumes bit for bit.

use std::collections::BTreeSet;
use std::path::Path;

use polytape::llama::Llama;
use polytape::optim::LossScale;
use polytape::safetensors::Reader;
use polytape::{Gpu, Precision, Trainer};

use super::model::Model;
use crate::config::Config;
use crate::model::engine;
use crate::run::checkpoint::{MODEL, OPTIMIZER, Saved, Scaling};
use crate::terminal::failure::Failure;

impl Saved {
    /// The model and trainer as saved; a missing, extra or misshaped tensor is an error.
    pub fn load(&self, gpu: &Gpu, config: &Config) -> Result<(Llama, Trainer), Failure> {
        // Loading verifies the file.
        let (model, _) = Model::load(gpu, config, self.folder())?;
        let path = self.folder().join(MODEL);
        let expected = model.params.iter().map(|(_, param)| param.name.clone()).collect();
        same_names(&path, &Reader::open(&path)?, expected)?;

        let path = self.verify(OPTIMIZER)?;
        let file = Reader::open(&path)?;
        let mut optimizer = engine::optimizer(&config.optimizer);
        let steps = self.state.step - self.state.skipped();
        let loaded = optimizer.load_state(&model.params, steps, &mut |name| file.tensor(gpu, name));
        loaded.map_err(|error| match error {
            polytape::Error::File { .. } => Failure::from(error),
            _ => Failure::other(format!("{}: {error}", path.display())),
        })?;
        let expected = optimizer.state(&model.params).into_iter().map(|(name, _)| name).collect();
        same_names(&path, &file, expected)?;
        let precision = engine::precision(config);
        let saved = || self.state.loss_scale.as_ref().map_or_else(LossScale::default, Scaling::restored);
        // Not Trainer::new, which would run the power iteration on the restored u and v.
        let trainer = Trainer {
            params: model.params,
            preconditioner: model.preconditioner,
            optimizer,
            max_grad_norm: config.train.max_grad_norm as f32,
            precision,
            loss_scale: (precision != Precision::F32).then(saved),
        };
        Ok((model.llama, trainer))
    }
}

fn same_names(path: &Path, file: &Reader, expected: BTreeSet<String>) -> Result<(), Failure> {
    let found = BTreeSet::from_iter(file.names());
    let problem = match (expected.difference(&found).next(), found.difference(&expected).next()) {
        (Some(missing), _) => format!("found no tensor `{missing}`, expected one by the run's config.toml"),
        (_, Some(extra)) => format!("found a tensor `{extra}`, expected none of this name by the run's config.toml"),
        (None, None) => return Ok(()),
    };
    Err(Failure::other(format!("{}: {problem}", path.display())))
}
