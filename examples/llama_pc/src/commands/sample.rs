//! `sample`: text from a run or an exported folder, token by token with a key and value cache.

use std::path::PathBuf;

use polytape::Indices;

use super::device::Device;
use crate::data::tokenizer::Tokenizer;
use crate::model::import::{self, Trained};
use crate::model::sampling::{Sampler, TextStream};
use crate::terminal::failure::Failure;
use crate::terminal::output;

/// Arguments of `sample`.
#[derive(clap::Args)]
pub struct Args {
    /// A run or an exported folder
    path: PathBuf,
    /// Text to continue
    #[arg(long, default_value = "", hide_default_value = true)]
    prompt: String,
    /// Maximum number of tokens to generate
    #[arg(long, default_value_t = 200, value_name = "N")]
    tokens: usize,
    /// Sampling temperature; 0 is greedy decoding
    #[arg(long, default_value_t = 0.8, value_name = "X")]
    temperature: f32,
    /// Sample from the K most likely tokens only; 0 means all
    #[arg(long, default_value_t = 40, value_name = "K")]
    top_k: usize,
    /// Sample from the smallest set of most likely tokens whose probabilities sum to P; 1 means all
    #[arg(long, default_value_t = 1.0, value_name = "P")]
    top_p: f64,
    /// Random seed; the same seed gives the same text
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    #[command(flatten)]
    device: Device,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let mut sampler = Sampler::new(args.temperature, args.top_k, args.top_p, args.seed)?;
    import::describe(&args.path)?;
    let path = args.path.join("tokenizer.json");
    if !path.is_file() {
        return Err(Failure::other(format!("{}: found no such file, expected the tokenizer to write text with", path.display())));
    }
    let tokenizer = Tokenizer::load(&path)?;
    let mut tokens: Vec<u32> = tokenizer.bos().into_iter().chain(tokenizer.encode(&args.prompt)?).collect();
    if tokens.is_empty() {
        return Err(Failure::usage("--prompt: found no text, expected some, because the tokenizer has no token to begin with"));
    }
    let gpu = args.device.open(false)?;
    let model = Trained::open(&gpu, &args.path, Some(tokens.len() + args.tokens))?;
    let mut cache = model.llama.cache();
    let mut text = TextStream::after(&tokens);
    output::print(&args.prompt)?;
    for _ in 0..args.tokens {
        let fed = Indices::from_slice(&gpu, &tokens)?;
        let logits = model.llama.next_logits(&model.params, &fed, &mut cache)?.to_vec()?;
        let token = sampler.choose(&logits)?;
        if Some(token) == tokenizer.eos() {
            break;
        }
        output::print(&text.push(token, |tokens| tokenizer.decode(tokens))?)?;
        tokens = vec![token];
    }
    output::print(&(text.finish(|tokens| tokenizer.decode(tokens))? + "\n"))
}
