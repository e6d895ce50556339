//! `export`: the merged model as files that other programs load.

pub mod encode;
mod gguf;
mod gguf_tokenizer;
mod hugging_face;

use std::path::Path;

use clap::ValueEnum;
use polytape::llama::{LlamaConfig, ParameterShape};
use polytape::{Gpu, Tensor};

use crate::cli;
use crate::data::tokenizer::Tokenizer;
use crate::engine;
use crate::failure::Failure;
use crate::output;
use crate::partial::refuse_existing;
use crate::progress::grouped;
use crate::weights::{self, Stored};
use encode::Dtype;

/// Values that leave the device at a time: whole blocks of every number format.
const PIECE: usize = 4 << 20;

/// What to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A folder in Hugging Face's layout, for transformers
    Hf,
    /// One GGUF file, for llama.cpp
    Gguf,
}

/// An ordinary Llama, tensor by tensor: effective weights under the plain weights' names, and what belongs to them.
pub struct Merged {
    gpu: Gpu,
    stored: Stored,
    pub sizes: LlamaConfig,
    /// In float64, as the configuration has it.
    pub norm_eps: f64,
    pub tokenizer: Option<Tokenizer>,
    /// What to call it: the name of its folder.
    pub name: String,
}

impl Merged {
    fn open(gpu: Gpu, path: &Path, step: Option<u64>) -> Result<Self, Failure> {
        let (config, folder) = weights::describe_at(path, step)?;
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

    /// Every tensor in the model's order.
    pub fn tensors(&self) -> Vec<ParameterShape> {
        self.sizes.parameters()
    }

    /// A tensor's values on the device.
    pub fn tensor(&self, tensor: &ParameterShape) -> Result<Tensor, Failure> {
        Ok(self.stored.effective(&self.gpu, &tensor.name, &tensor.shape)?)
    }
}

/// A tensor's values, some at a time.
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

/// Runs the command.
pub fn run(args: &cli::Export) -> Result<(), Failure> {
    refuse_existing("--out", &args.out, if args.format == Format::Hf { "folder" } else { "file" })?;
    if args.format == Format::Hf && args.dtype == Dtype::Q8_0 {
        return Err(Failure::usage("--dtype: found q8_0, expected f32, f16 or bf16 with --format hf"));
    }
    if args.max_shard_bytes == 0 {
        return Err(Failure::usage("--max-shard-bytes: found 0, expected 1 or more"));
    }
    weights::describe_at(&args.path, args.step)?;
    let gpu = engine::open(&args.device, false)?;
    let model = Merged::open(gpu, &args.path, args.step)?;
    if model.tokenizer.is_none() {
        output::note(&format!("note: {} has no tokenizer.json, so the export has no tokenizer", args.path.display()));
    }
    match args.format {
        Format::Hf => hugging_face::write(&model, args.dtype, args.max_shard_bytes, &args.out)?,
        Format::Gguf => gguf::write(&model, args.dtype, &args.out)?,
    }
    let tensors = model.tensors();
    let values: usize = tensors.iter().map(ParameterShape::numel).sum();
    output::note(&format!("{} tensors, {} parameters", tensors.len(), grouped(values as u64)));
    output::print(&format!("{}\n", args.out.display()))
}
