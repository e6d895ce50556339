//! A small Llama: the loss of a batch, and its logits by every path.

use polytape::llama::{Llama, LlamaConfig};
use polytape::spectral::{PcConfig, Preconditioner};
use polytape::{Gpu, Indices, Params, Result, Role, Tape};
use polytape_reference::Array;
use polytape_reference::tolerance::Tolerance;

use super::check::{Check, Part};

/// Two blocks of attention, norms and SwiGLU, each with the rounding errors of sums of at most 100 terms.
const MODEL: Tolerance = Tolerance { relative: 2e-5, reason: "errors of all layers, relative to the rms of the result" };

const TOKENS: usize = 31;

/// Every check of this group.
pub fn checks() -> Vec<Check> {
    let shape = "2 blocks of 64, 31 tokens";
    vec![Check::new("logits with a cache, by parts", shape, cached), Check::new("logits of the merged model", shape, merged)]
}

fn config() -> LlamaConfig {
    LlamaConfig { kv_heads: 2, intermediate_size: 96, max_seq_len: TOKENS, ..LlamaConfig::new(64, 2, 4, 101) }
}

fn tokens() -> Vec<u32> {
    (0..TOKENS as u32).map(|at| at * 29 % 101).collect()
}

/// The logits of all positions, computed at once.
fn at_once(model: &Llama, params: &Params) -> Result<Array> {
    let tape = Tape::inference(params);
    let logits = model.logits(&tape, &Indices::from_slice(params.gpu(), &tokens())?, TOKENS)?;
    Ok(Array::from_f32(logits.shape(), &logits.value().to_vec()?))
}

/// A prompt of 20 tokens at once, then token by token.
fn cached(gpu: &Gpu) -> Result<Vec<Part>> {
    let (model, params) = Llama::init(gpu, config(), 9)?;
    let (wanted, tokens, mut cache) = (at_once(&model, &params)?, tokens(), model.cache(1, TOKENS)?);
    let mut parts = Vec::new();
    let mut start = 0;
    for end in 20..=TOKENS {
        let fed = Indices::from_slice(gpu, &tokens[start..end])?;
        let logits = model.next_logits(&params, &fed, &mut cache)?;
        parts.push(Part::of(&logits, &Array::new(&[1, 101], wanted.row(end - 1).to_vec()), MODEL)?);
        start = end;
    }
    Ok(parts)
}

/// Merged PC layers against separate ones.
fn merged(gpu: &Gpu) -> Result<Vec<Part>> {
    let (model, mut params) = Llama::init(gpu, config(), 9)?;
    let matrices: Vec<_> = params.iter().filter(|(_, param)| param.role == Role::Matrix).map(|(id, _)| (id, 1)).collect();
    let preconditioner = Preconditioner::attach(&mut params, PcConfig::default(), &matrices, 3)?;
    preconditioner.refresh(&mut params)?;
    let wanted = at_once(&model, &preconditioner.effective(&params)?.params)?;
    let plain = preconditioner.merge(&params)?;
    let (model, params) = Llama::load(gpu, config(), |name, _| Ok(plain.get(plain.id(name)?)?.tensor.clone()))?;
    let found = at_once(&model, &params)?;
    Ok(vec![Part::of_values(&found.to_f32(), &wanted, MODEL)])
}
