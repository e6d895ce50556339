//! `sample`: text from a run or an exported folder, token by token with a key and value cache.

use polytape::Indices;

use crate::cli;
use crate::data::tokenizer::Tokenizer;
use crate::engine;
use crate::failure::Failure;
use crate::output;
use crate::sampling::{Sampler, TextStream};
use crate::weights::{self, Trained};

/// Runs the command.
pub fn run(args: &cli::Sample) -> Result<(), Failure> {
    let mut sampler = Sampler::new(args.temperature, args.top_k, args.top_p, args.seed)?;
    weights::describe(&args.path)?;
    let path = args.path.join("tokenizer.json");
    if !path.is_file() {
        return Err(Failure::other(format!("{}: found no such file, expected the tokenizer to write text with", path.display())));
    }
    let tokenizer = Tokenizer::load(&path)?;
    let mut tokens: Vec<u32> = tokenizer.bos().into_iter().chain(tokenizer.encode(&args.prompt)?).collect();
    if tokens.is_empty() {
        return Err(Failure::usage("--prompt: found no text, expected some, because the tokenizer has no token to begin with"));
    }
    let gpu = engine::open(&args.device, false)?;
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
