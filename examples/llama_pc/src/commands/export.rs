//! `export`: merges the PC layers and writes the model for other programs.

use std::path::PathBuf;

use polytape::llama::ParameterShape;

use super::device::Device;
use crate::model::export::{self, Dtype, Format, Merged};
use crate::model::import;
use crate::run::files::refuse_existing;
use crate::terminal::failure::Failure;
use crate::terminal::format::grouped;
use crate::terminal::output;

/// Arguments of `export`.
#[derive(clap::Args)]
pub struct Args {
    /// A run or an exported folder
    path: PathBuf,
    /// Export the checkpoint after N steps [default: the newest]
    #[arg(long, value_name = "N")]
    step: Option<u64>,
    /// Format to write
    #[arg(long, value_enum)]
    format: Format,
    /// Folder (hf) or file (gguf) to create
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// Number format of the matrices
    #[arg(long, value_enum, default_value = "f32")]
    dtype: Dtype,
    /// Maximum size of one .safetensors file; a larger model is split into several, with an index
    #[arg(long, default_value_t = 5_000_000_000, value_name = "N")]
    max_shard_bytes: u64,
    #[command(flatten)]
    device: Device,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    refuse_existing("--out", &args.out, if args.format == Format::Hf { "folder" } else { "file" })?;
    if args.format == Format::Hf && args.dtype == Dtype::Q8_0 {
        return Err(Failure::usage("--dtype: found q8_0, expected f32, f16 or bf16 with --format hf"));
    }
    if args.max_shard_bytes == 0 {
        return Err(Failure::usage("--max-shard-bytes: found 0, expected 1 or more"));
    }
    import::describe_at(&args.path, args.step)?;
    let gpu = args.device.open(false)?;
    let model = Merged::open(gpu, &args.path, args.step)?;
    if model.tokenizer.is_none() {
        output::note(&format!("note: {} has no tokenizer.json, so the export has no tokenizer", args.path.display()));
    }
    export::write(&model, args.format, args.dtype, args.max_shard_bytes, &args.out)?;
    let tensors = model.tensors();
    let values: usize = tensors.iter().map(ParameterShape::numel).sum();
    output::note(&format!("{} tensors, {} parameters", tensors.len(), grouped(values as u64)));
    output::print(&format!("{}\n", args.out.display()))
}
