//! Restores a trainer from a checkpoint; it resumes bit for bit.

use std::collections::BTreeSet;
use std::path::Path;

use polytape::llama::Llama;
use polytape::safetensors::Reader;
use polytape::{Gpu, Trainer};

use super::model::Model;
use crate::config::Config;
use crate::run::checkpoint::{MODEL, OPTIMIZER, Saved};
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
        let mut optimizer = (config.optimizer.rule().build)(&config.optimizer);
        let steps = self.state.step - self.state.skipped();
        let loaded = optimizer.load_state(&model.params, steps, &mut |name| file.tensor(gpu, name));
        loaded.map_err(|error| match error {
            polytape::Error::File { .. } => Failure::from(error),
            _ => Failure::other(format!("{}: {error}", path.display())),
        })?;
        let expected = optimizer.state_tensors(&model.params)?.into_iter().map(|(name, _)| name).collect();
        same_names(&path, &file, expected)?;
        let max_grad_norm = config.train.max_grad_norm as f32;
        let mut trainer = Trainer::resume(model.params, model.preconditioner, optimizer, max_grad_norm);
        trainer = trainer.with_precision(config.train.precision);
        if let (Some(loss_scale), Some(saved)) = (&mut trainer.loss_scale, &self.state.loss_scale) {
            *loss_scale = saved.restored();
        }
        trainer.steps = self.state.step;
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
