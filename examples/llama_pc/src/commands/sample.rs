//! `sample`: text from a run or an exported folder, token by token with a key and value cache.
//!
//! A sample's text depends on its prompt and seed only, not on the other samples of its batch: every prompt is processed alone,
//! samples with prompts of one length then continue together, and up to [`MOST_ROWS`] rows no kernel sums a row differently because
//! of the others.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use polytape::Indices;
use polytape::llama::KvCache;

use super::device::Device;
use crate::config::MAX_SEQ_LEN;
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
    /// Text to continue; may be given several times
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    prompt: Vec<String>,
    /// Samples per prompt; sample I equals a single one with --seed SEED+I-1
    #[arg(long, default_value = "1", value_name = "N")]
    samples: NonZeroUsize,
    /// Maximum number of tokens per sample
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

impl Args {
    fn sampler(&self, seed: u64) -> Result<Sampler, Failure> {
        Sampler::new(self.temperature, self.top_k, self.top_p, seed)
    }

    /// The samples of a prompt, none of which has any text yet.
    fn samples_of(&self, prompt: usize, tokens: &[u32]) -> Result<Vec<Sample>, Failure> {
        let sample = |i| -> Result<Sample, Failure> {
            let seed = self.seed.wrapping_add(i);
            let (sampler, stream) = (self.sampler(seed)?, TextStream::after(tokens));
            Ok(Sample { prompt, tokens: tokens.to_vec(), seed, sampler, stream, text: String::new(), ended: false })
        };
        (0..self.samples.get() as u64).map(sample).collect()
    }
}

/// Maximum number of sequences per batch: a product of up to this many rows takes one tile of rows.
const MOST_ROWS: usize = 32;

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    args.sampler(args.seed)?;
    if args.tokens > MAX_SEQ_LEN {
        return Err(Failure::usage(format!("--tokens: found {}, expected at most {MAX_SEQ_LEN}", args.tokens)));
    }
    let vocab = import::describe(&args.path)?.0.model.vocab.unwrap_or(usize::MAX);
    let path = args.path.join("tokenizer.json");
    if !path.is_file() {
        return Err(Failure::other(format!("{}: found no such file, expected the tokenizer", path.display())));
    }
    let tokenizer = Tokenizer::load(&path)?;
    let mut samples = Vec::new();
    for (at, prompt) in args.prompt.iter().enumerate() {
        let tokens = encode(&tokenizer, prompt)?;
        if let Some(token) = tokens.iter().find(|token| **token as usize >= vocab) {
            let message = format!(
                "{}: found token {token} in the prompt, expected one below the model's vocabulary of {vocab}",
                path.display()
            );
            return Err(Failure::other(message).hint("the tokenizer belongs to another model"));
        }
        samples.extend(args.samples_of(at, &tokens)?);
    }
    let longest = samples.iter().map(|sample| sample.tokens.len()).max().unwrap_or(0);
    let gpu = args.device.open(false)?;
    let model = Trained::open(&gpu, &args.path, longest + args.tokens)?;
    let writer = Writer { model: &model, tokenizer: &tokenizer, tokens: args.tokens };
    if let [sample] = &mut samples[..] {
        output::print(&args.prompt[sample.prompt])?;
        writer.write(std::slice::from_mut(sample), &mut |piece| output::print(piece))?;
        return output::print("\n");
    }
    samples.sort_by_key(|sample| sample.tokens.len());
    for together in samples.chunk_by_mut(|a, b| a.tokens.len() == b.tokens.len()) {
        for part in together.chunks_mut(MOST_ROWS) {
            writer.write(part, &mut |_| Ok(()))?;
        }
    }
    samples.sort_by_key(|sample| sample.prompt);
    for sample in &samples {
        let gap = if std::ptr::eq(sample, &samples[0]) { "" } else { "\n" };
        let place = if args.prompt.len() > 1 { format!("prompt {}, ", sample.prompt + 1) } else { String::new() };
        let prompt = &args.prompt[sample.prompt];
        output::print(&format!("{gap}==> {place}seed {} <==\n{prompt}{}\n", sample.seed, sample.text))?;
    }
    Ok(())
}

fn encode(tokenizer: &Tokenizer, prompt: &str) -> Result<Vec<u32>, Failure> {
    let tokens: Vec<u32> = tokenizer.bos().into_iter().chain(tokenizer.encode(prompt)?).collect();
    if tokens.is_empty() {
        return Err(Failure::usage("--prompt: found no text, expected some, because the tokenizer has no BOS token"));
    }
    Ok(tokens)
}

/// A text as it grows.
struct Sample {
    /// Which of the prompts.
    prompt: usize,
    /// Tokens of the prompt.
    tokens: Vec<u32>,
    seed: u64,
    sampler: Sampler,
    stream: TextStream,
    /// What follows the prompt.
    text: String,
    ended: bool,
}

struct Writer<'a> {
    model: &'a Trained,
    tokenizer: &'a Tokenizer,
    /// Maximum number of tokens per sample.
    tokens: usize,
}

impl Writer<'_> {
    /// Continues samples whose prompts have one length; `show` gets each piece of text as soon as it is decoded.
    fn write(&self, samples: &mut [Sample], show: &mut dyn FnMut(&str) -> Result<(), Failure>) -> Result<(), Failure> {
        let decode = |tokens: &[u32]| self.tokenizer.decode(tokens);
        let mut add = |sample: &mut Sample, piece: String| {
            sample.text.push_str(&piece);
            show(&piece)
        };
        let (mut cache, mut logits) = self.read_prompts(samples)?;
        let vocab = logits.len() / samples.len();
        for step in 1..=self.tokens {
            let mut chosen = Vec::with_capacity(samples.len());
            for (sample, logits) in samples.iter_mut().zip(logits.chunks(vocab)) {
                // A sample that has ended keeps its row; what is fed to it does not matter.
                let token = if sample.ended { 0 } else { sample.sampler.choose(logits)? };
                chosen.push(token);
                sample.ended |= Some(token) == self.tokenizer.eos();
                if !sample.ended {
                    let piece = sample.stream.push(token, decode)?;
                    add(sample, piece)?;
                }
            }
            if step == self.tokens || samples.iter().all(|sample| sample.ended) {
                break;
            }
            logits = self.model.next_logits(&chosen, &mut cache)?;
        }
        for sample in samples {
            let rest = sample.stream.finish(decode)?;
            add(sample, rest)?;
        }
        Ok(())
    }

    /// The cache after the samples' prompts, one row per sample, and the logits [samples, vocab] of the next token. A prompt shared
    /// by adjacent samples is processed once.
    fn read_prompts(&self, samples: &[Sample]) -> Result<(KvCache, Vec<f32>), Failure> {
        let mut prompts: Vec<(KvCache, Vec<f32>)> = Vec::new();
        let mut rows = Vec::new();
        for (at, sample) in samples.iter().enumerate() {
            if at == 0 || samples[at - 1].prompt != sample.prompt {
                let mut cache = self.model.llama.cache(1, sample.tokens.len())?;
                let logits = self.model.next_logits(&sample.tokens, &mut cache)?;
                prompts.push((cache, logits));
            }
            rows.push(prompts.len() - 1);
        }
        let caches: Vec<&KvCache> = rows.iter().map(|&row| &prompts[row].0).collect();
        let logits: Vec<&[f32]> = rows.iter().map(|&row| prompts[row].1.as_slice()).collect();
        Ok((KvCache::stack(&caches, samples[0].tokens.len() + self.tokens)?, logits.concat()))
    }
}

impl Trained {
    /// The logits after `tokens`, which continue the sequences in `cache`, row after row.
    fn next_logits(&self, tokens: &[u32], cache: &mut KvCache) -> Result<Vec<f32>, Failure> {
        let tokens = Indices::from_slice(self.params.gpu(), tokens)?;
        Ok(self.llama.next_logits(&self.params, &tokens, cache)?.to_vec()?)
    }
}
