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
    /// The model and trainer as saved; a missing, extra or misshaped tensor is an error. `place` makes the trainer one of several ranks,
    /// which then loads only the state of what it owns.
    pub fn load(
        &self,
        gpu: &Gpu,
        config: &Config,
        place: impl FnOnce(Trainer) -> Result<Trainer, Failure>,
    ) -> Result<(Llama, Trainer), Failure> {
        // Loading verifies the file.
        let (model, _) = Model::load(gpu, config, self.folder())?;
        let path = self.folder().join(MODEL);
        let expected = model.params.iter().map(|(_, param)| param.name.clone()).collect();
        same_names(&path, &Reader::open(&path)?, expected)?;

        let path = self.verify(OPTIMIZER)?;
        let file = Reader::open(&path)?;
        let optimizer = (config.optimizer.rule().build)(&config.optimizer);
        let max_grad_norm = config.train.max_grad_norm as f32;
        let mut trainer = place(Trainer::resume(model.params, model.preconditioner, optimizer, max_grad_norm))?;
        let steps = self.state.step - self.state.skipped();
        let loaded = trainer.load_state(steps, &mut |name, rows| match rows {
            Some(rows) => file.rows(gpu, name, rows),
            None => file.tensor(gpu, name),
        });
        loaded.map_err(|error| match error {
            polytape::Error::File { .. } | polytape::Error::Io { .. } => Failure::from(error),
            _ => Failure::other(format!("{}: {error}", path.display())),
        })?;
        let expected = trainer.stored()?.1.into_iter().map(|stored| stored.name).collect();
        same_names(&path, &file, expected)?;
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
