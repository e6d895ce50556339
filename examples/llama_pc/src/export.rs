//! `export`: the merged model as files that other programs load.

pub mod encode;
mod gguf;
mod gguf_tokenizer;
mod hugging_face;

use std::path::Path;

use clap::ValueEnum;
use polytape::llama::Llama;
use polytape::{Gpu, Param, Params};

use crate::cli;
use crate::config::Config;
use crate::data::tokenizer::Tokenizer;
use crate::engine;
use crate::failure::Failure;
use crate::output;
use crate::partial::refuse_existing;
use crate::progress::grouped;
use crate::weights::{self, Model};
use encode::Dtype;

/// What to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A folder in Hugging Face's layout, for transformers
    Hf,
    /// One GGUF file, for llama.cpp
    Gguf,
}

/// An ordinary Llama: effective weights under the plain weights' names, and what belongs to it.
pub struct Merged {
    pub config: Config,
    pub llama: Llama,
    params: Params,
    pub tokenizer: Option<Tokenizer>,
    /// What to call it: the name of its folder.
    pub name: String,
}

impl Merged {
    fn open(gpu: &Gpu, path: &Path, step: Option<u64>) -> Result<Self, Failure> {
        let (config, folder) = weights::describe_at(path, step)?;
        let (model, _) = Model::load(gpu, &config, &folder, engine::model(&config))?;
        let tokenizer = path.join("tokenizer.json");
        let tokenizer = tokenizer.is_file().then(|| Tokenizer::load(&tokenizer)).transpose()?;
        let name = path.canonicalize().ok().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        Ok(Self { params: model.merged()?, llama: model.llama, config, tokenizer, name: name.unwrap_or_default() })
    }

    /// Every tensor in the model's order.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &Param> {
        self.params.iter().map(|(_, param)| param)
    }
}

/// The values of a tensor in a number format.
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
    let model = Merged::open(&gpu, &args.path, args.step)?;
    if model.tokenizer.is_none() {
        output::note(&format!("note: {} has no tokenizer.json, so the export has no tokenizer", args.path.display()));
    }
    match args.format {
        Format::Hf => hugging_face::write(&model, args.dtype, args.max_shard_bytes, &args.out)?,
        Format::Gguf => gguf::write(&model, args.dtype, &args.out)?,
    }
    let values: usize = model.tensors().map(|param| param.tensor.len()).sum();
    output::note(&format!("{} tensors, {} parameters", model.tensors().len(), grouped(values as u64)));
    output::print(&format!("{}\n", args.out.display()))
}
