//! Tensors that a model does not use. Silently left out, they would make it another model: biases, more layers, other norms.

use std::collections::BTreeSet;

use polytape::llama::{LlamaConfig, names};
use polytape::spectral::{PC_GAMMA, PC_U, PC_V};

use super::stored::Stored;
use crate::config::Config;
use crate::model::engine;
use crate::terminal::failure::Failure;

/// Values to compare at a time.
const PIECE: usize = 4 << 20;
/// Names that a message lists.
const LISTED: usize = 8;

impl Stored {
    /// An error that lists the tensors that neither the model nor its PC layers use. Excepted are frequencies that follow from
    /// the configuration, and a head that is the embedding it is tied to.
    pub fn refuse_unused(&self, config: &Config) -> Result<(), Failure> {
        self.refuse_others(config, &pc_state(config))
    }

    /// [`Stored::refuse_unused`], except for the state of PC layers that the configuration does not have; returns its names.
    pub fn refuse_unused_but_pc(&self, config: &Config) -> Result<Vec<String>, Failure> {
        let used = pc_state(config);
        let state: BTreeSet<String> = self.names().filter(|name| is_pc_state(name)).map(str::to_owned).collect();
        self.refuse_others(config, &state)?;
        Ok(state.difference(&used).cloned().collect())
    }

    fn refuse_others(&self, config: &Config, more: &BTreeSet<String>) -> Result<(), Failure> {
        let sizes = engine::model(config);
        let used: BTreeSet<String> = sizes.parameters().into_iter().map(|parameter| parameter.name).collect();
        let mut unused = Vec::new();
        for name in self.names().filter(|name| !used.contains(*name) && !more.contains(*name)) {
            if is_frequencies(name) {
                self.check_frequencies(name, &sizes)?;
            } else if sizes.tied && name == names::weight(names::HEAD) {
                self.check_tied_head(name)?;
            } else {
                unused.push(name);
            }
        }
        if unused.is_empty() {
            return Ok(());
        }
        let rest = if unused.len() > LISTED { format!(" and {} more", unused.len() - LISTED) } else { String::new() };
        let (path, list) = (self.path().display(), unused[..unused.len().min(LISTED)].join(", "));
        let message = format!("{path}: found tensors that its configuration does not use: {list}{rest}");
        Err(Failure::other(message).hint(way_out(&unused, &used, &sizes)))
    }

    /// Older files have them; they must be those that the configuration gives, stretched or not. Halves hold few digits.
    fn check_frequencies(&self, name: &str, sizes: &LlamaConfig) -> Result<(), Failure> {
        let found = self.values(name)?;
        let is_near = |wanted: &[f64]| {
            let near = |(found, wanted): (&f32, &f64)| (f64::from(*found) - wanted).abs() <= 0.01 * wanted + 1e-6;
            found.len() == wanted.len() && found.iter().zip(wanted).all(near)
        };
        let plain = LlamaConfig { rope_scaling: None, ..sizes.clone() };
        if is_near(&sizes.rope_frequencies()) || is_near(&plain.rope_frequencies()) {
            return Ok(());
        }
        let (path, theta, width) = (self.path().display(), sizes.rope_theta, sizes.head_dim());
        Err(Failure::other(format!(
            "{path}: found other frequencies in {name} than those of rope_theta {theta} and heads of width {width}"
        ))
        .hint("its configuration may lack rope_theta or head_dim; if the configuration is right, remove the tensor"))
    }

    fn check_tied_head(&self, name: &str) -> Result<(), Failure> {
        let embedding = names::weight(names::EMBEDDING);
        let count = self.len(name)?;
        let mut same = self.len(&embedding)? == count;
        for begin in (0..count).step_by(PIECE) {
            let range = begin..count.min(begin + PIECE);
            same = same && self.part(name, range.clone())? == self.part(&embedding, range)?;
        }
        if same {
            return Ok(());
        }
        Err(Failure::other(format!(
            "{}: found another {name} than {embedding}, though the configuration ties the head to the embedding",
            self.path().display()
        ))
        .hint("with tie_word_embeddings = false (in a run: model.tied = false) the head is used; without the tensor the embedding is"))
    }
}

/// What to do about the tensors.
fn way_out(unused: &[&str], used: &BTreeSet<String>, sizes: &LlamaConfig) -> String {
    let layer = |name: &&str| names::layer_and_part(name).is_some_and(|(layer, _)| layer >= sizes.layers);
    let is_head_norm = |name: &&str| {
        names::layer_and_part(names::stem(name)).is_some_and(|(_, part)| [names::Q_NORM, names::K_NORM].contains(&part))
    };
    if unused.iter().any(|name| used.contains(&format!("model.{name}"))) {
        "their names lack \"model.\": they are those of the inner model; save the whole model for causal language modelling"
            .to_owned()
    } else if unused.iter().any(|name| name.ends_with(".bias")) {
        "models with biases are not supported: without them it would be another model".to_owned()
    } else if unused.iter().any(layer) {
        format!("the configuration has {} layers (num_hidden_layers, or model.layers)", sizes.layers)
    } else if unused.iter().any(is_head_norm) {
        "norms of queries and keys are those of Qwen3: model_type \"qwen3\", or model.qk_norm = true".to_owned()
    } else if unused.iter().any(|name| is_pc_state(name)) {
        "the state of PC layers belongs to a run; with its config.toml, it is read as one".to_owned()
    } else {
        "if they are no part of the model, remove them from the files".to_owned()
    }
}

/// The names of the state that the configuration's PC layers have.
fn pc_state(config: &Config) -> BTreeSet<String> {
    let has_gamma = config.pc.as_ref().is_some_and(|pc| pc.learnable_gamma);
    let parts = [PC_U, PC_V].into_iter().chain(has_gamma.then_some(PC_GAMMA));
    let of = |part: &str| engine::pc_targets(config).into_iter().map(|(stem, _)| format!("{stem}.{part}")).collect::<Vec<_>>();
    parts.flat_map(of).collect()
}

/// Whether a name is that of a PC layer's state.
pub fn is_pc_state(name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(_, part)| [PC_U, PC_V, PC_GAMMA].contains(&part))
}

/// Buffers of older versions of transformers.
fn is_frequencies(name: &str) -> bool {
    name.ends_with(".rotary_emb.inv_freq")
}
