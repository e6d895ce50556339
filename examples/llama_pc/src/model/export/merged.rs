//! The merged model, read one tensor at a time.

use std::path::Path;

use clap::ValueEnum;
use polytape::llama::{LlamaConfig, ParameterShape};
use polytape::{Gpu, Tensor};

use super::encode::Dtype;
use crate::data::tokenizer::Tokenizer;
use crate::model::engine;
use crate::model::import::{Stored, describe_at};
use crate::terminal::failure::Failure;

/// Values to read from the device at a time: whole blocks in every number format.
const PIECE: usize = 4 << 20;

/// A plain Llama: effective weights under the names of the raw ones, configuration and tokenizer.
pub struct Merged {
    gpu: Gpu,
    stored: Stored,
    pub sizes: LlamaConfig,
    /// In float64, as the configuration has it.
    pub norm_eps: f64,
    pub tokenizer: Option<Tokenizer>,
    /// The name of its folder.
    pub name: String,
}

impl Merged {
    /// Opens a run's checkpoint after `step` steps, or the newest, or an exported folder.
    pub fn open(gpu: Gpu, path: &Path, step: Option<u64>) -> Result<Self, Failure> {
        let (config, folder) = describe_at(path, step)?;
        let sizes = engine::model(&config);
        sizes.check()?;
        let tokenizer = path.join("tokenizer.json");
        let tokenizer = tokenizer.is_file().then(|| Tokenizer::load(&tokenizer)).transpose()?;
        let name = path.canonicalize().ok().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        Ok(Self {
            gpu,
            stored: Stored::open(&config, &folder)?,
            sizes,
            norm_eps: config.model.norm_eps,
            tokenizer,
            name: name.unwrap_or_default(),
        })
    }

    /// Every tensor, in model order.
    pub fn tensors(&self) -> Vec<ParameterShape> {
        self.sizes.parameters()
    }

    /// A tensor's values on the device.
    pub fn tensor(&self, tensor: &ParameterShape) -> Result<Tensor, Failure> {
        Ok(self.stored.effective(&self.gpu, &tensor.name, &tensor.shape)?)
    }
}

/// A tensor's values, piece by piece.
pub fn pieces(tensor: &Tensor) -> impl Iterator<Item = polytape::Result<Vec<f32>>> {
    (0..tensor.len()).step_by(PIECE).map(|begin| tensor.read(begin..tensor.len().min(begin + PIECE)))
}

/// Values of a tensor in a number format.
pub fn encoded(name: &str, values: &[f32], dtype: Dtype) -> Result<Vec<u8>, Failure> {
    dtype.encode(values).map_err(|value| {
        let format = dtype.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        Failure::other(format!("{name}: found the value {value}, expected one that {format} can hold"))
            .hint("--dtype bf16 has the range of float32")
    })
}
