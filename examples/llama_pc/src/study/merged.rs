//! Evaluation merged and unmerged: of a run's checkpoint, whose PC layers are computed on loading, and of its export, which has none.

use std::path::Path;
use std::time::Instant;

use polytape::Gpu;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::data::tokens::TokenStream;
use crate::data::windows::{Order, Windows};
use crate::model::evaluate::mean_loss;
use crate::model::export::{self, Dtype, Format};
use crate::model::import::Trained;
use crate::run::paths;
use crate::terminal::failure::Failure;

/// Both evaluations of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Merged {
    pub unmerged: Evaluation,
    pub merged: Evaluation,
}

/// A loss, and the seconds that it took to load the weights and to evaluate them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    pub loss: f64,
    pub seconds: f64,
}

/// Sequences to evaluate on, and of a batch.
const SEQUENCES: (u64, usize) = (512, 32);

impl Merged {
    /// Exports a finished run, and evaluates it and its export.
    pub fn measure(gpu: &Gpu, folder: &Path) -> Result<Self, Failure> {
        let config = Config::load(Some(&folder.join(paths::CONFIG)), &[])?;
        let out = folder.join("merged");
        if out.is_dir() {
            std::fs::remove_dir_all(&out).map_err(|error| Failure::io("remove", &out, &error))?;
        }
        export::write(&export::Merged::open(gpu.clone(), folder, None)?, Format::Hf, Dtype::F32, u64::MAX, &out)?;
        // The first evaluation of a process is slower: buffers and caches are cold.
        evaluate(gpu, &config, folder)?;
        Ok(Self { unmerged: evaluate(gpu, &config, folder)?, merged: evaluate(gpu, &config, &out)? })
    }
}

fn evaluate(gpu: &Gpu, config: &Config, path: &Path) -> Result<Evaluation, Failure> {
    let started = Instant::now();
    let model = Trained::open(gpu, path, config.data.seq_len)?;
    let vocab = config.model.vocab.expect("bug: the vocabulary is not resolved");
    let stream = TokenStream::open(Path::new(&config.data.val), vocab, config.data.format)?;
    let mut windows = Windows::new(stream, &config.data.val, config.data.seq_len, Order::Sequential)?;
    let (sequences, batch) = SEQUENCES;
    let measured = mean_loss(&model.llama, &model.params, &mut windows, sequences, batch, config.data.seq_len, |_| {})?;
    Ok(Evaluation { loss: measured.loss, seconds: started.elapsed().as_secs_f64() })
}
