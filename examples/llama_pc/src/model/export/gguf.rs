//! A GGUF file, version 3, for llama.cpp: a header, metadata, a table of tensors, then their data, each aligned to 32 bytes.
//! Integers are little-endian; a string is its length in 64 bits and its UTF-8; a shape begins with the fastest dimension.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use polytape::Role;
use polytape::llama::{ParameterShape, RopeScaling, names};

use super::encode::{BLOCK, Dtype};
use super::gguf_metadata::{Value, named, put_text, put_value};
use super::merged::{Merged, encoded, pieces};
use super::{gguf_architecture, gguf_tokenizer};
use crate::model::import::architecture_of;
use crate::run::files::Partial;
use crate::terminal::failure::Failure;
use crate::terminal::progress::Progress;

const VERSION: u32 = 3;
const ALIGNMENT: u64 = 32;

/// Writes the file to `out` atomically.
pub fn write(model: &Merged, dtype: Dtype, out: &Path) -> Result<(), Failure> {
    refuse_unknown(model)?;
    let mut metadata = general(model, dtype);
    metadata.extend(gguf_architecture::metadata(model));
    metadata.extend(named(gguf_tokenizer::metadata(model)?));
    let mut tensors: Vec<Entry> =
        model.tensors().into_iter().map(|tensor| Entry::new(tensor, dtype)).collect::<Result<_, _>>()?;
    tensors.extend(gguf_architecture::rope_factors(&model.sizes).map(Entry::rope_factors));
    let partial = Partial::file(out)?;
    let io = |error| Failure::io("write", partial.path(), &error);
    let file = File::create(partial.path()).map_err(|error| Failure::io("create", partial.path(), &error))?;
    let mut file = BufWriter::new(file);
    let mut header = Vec::new();
    put_header(&mut header, &metadata, &tensors);
    file.write_all(&header).map_err(io)?;
    let mut progress = Progress::new("export", 0, tensors.len() as u64);
    for tensor in &tensors {
        tensor.encode(model, |bytes| file.write_all(bytes).map_err(io))?;
        file.write_all(&vec![0; padding(tensor.bytes())]).map_err(io)?;
        progress.advance();
    }
    progress.finish();
    let file = file.into_inner().map_err(|error| io(error.into_error()))?;
    file.sync_all().map_err(io)?;
    partial.finish()
}

/// Bytes up to the next multiple of the alignment.
fn padding(bytes: u64) -> usize {
    (bytes.next_multiple_of(ALIGNMENT) - bytes) as usize
}

/// What llama.cpp does not read, and would compute otherwise.
fn refuse_unknown(model: &Merged) -> Result<(), Failure> {
    let problem = match model.sizes.rope_scaling {
        Some(RopeScaling::Llama3 { .. }) if model.sizes.qk_norm => {
            "model.qk_norm and model.rope_scaling = \"llama3\", expected one of them: llama.cpp's qwen3 has no such frequencies"
                .to_owned()
        }
        Some(RopeScaling::Yarn { beta_fast, beta_slow, .. }) if (beta_fast, beta_slow) != (32.0, 1.0) => format!(
            "model.rope_beta_fast = {beta_fast} and model.rope_beta_slow = {beta_slow}, expected 32 and 1, which llama.cpp computes with"
        ),
        _ => return Ok(()),
    };
    Err(Failure::usage(format!("--format gguf: {} has {problem}", model.name)).hint("--format hf has no such limit"))
}

fn general(model: &Merged, dtype: Dtype) -> Vec<(String, Value)> {
    // llama.cpp's number for a file of mostly this type.
    let file_type = match dtype {
        Dtype::F32 => 0,
        Dtype::F16 => 1,
        Dtype::Q8_0 => 7,
        Dtype::Bf16 => 32,
    };
    let architecture = architecture_of(&model.sizes).model_type;
    named(vec![
        ("general.architecture", Value::Text(architecture.to_owned())),
        ("general.name", Value::Text(model.name.clone())),
        ("general.alignment", Value::U32(ALIGNMENT as u32)),
        ("general.file_type", Value::U32(file_type)),
        ("general.quantization_version", Value::U32(2)),
    ])
}

/// A tensor of the file.
struct Entry {
    tensor: ParameterShape,
    name: String,
    dtype: Dtype,
    /// Of one that is not the model's.
    values: Option<Vec<f32>>,
}

impl Entry {
    fn new(tensor: ParameterShape, dtype: Dtype) -> Result<Self, Failure> {
        let dtype = if tensor.shape.len() == 1 { Dtype::F32 } else { dtype };
        let row = tensor.shape[tensor.shape.len() - 1];
        if dtype == Dtype::Q8_0 && !row.is_multiple_of(BLOCK) {
            let name = &tensor.name;
            return Err(Failure::usage(format!("--dtype q8_0: {name} has rows of {row} values, expected a multiple of {BLOCK}"))
                .hint("--dtype f16 stores rows of any length"));
        }
        Ok(Self { name: gguf_name(&tensor.name), tensor, dtype, values: None })
    }

    /// What llama.cpp divides the rotary frequencies by.
    fn rope_factors(factors: Vec<f32>) -> Self {
        let name = "rope_freqs.weight".to_owned();
        let tensor = ParameterShape { name: name.clone(), role: Role::Vector, shape: vec![factors.len()], std: 0.0 };
        Self { tensor, name, dtype: Dtype::F32, values: Some(factors) }
    }

    fn kind(&self) -> u32 {
        match self.dtype {
            Dtype::F32 => 0,
            Dtype::F16 => 1,
            Dtype::Q8_0 => 8,
            Dtype::Bf16 => 30,
        }
    }

    fn bytes(&self) -> u64 {
        self.dtype.bytes(self.tensor.numel())
    }

    /// Passes the encoded values to `take` piece by piece.
    fn encode(&self, model: &Merged, mut take: impl FnMut(&[u8]) -> Result<(), Failure>) -> Result<(), Failure> {
        if let Some(values) = &self.values {
            return take(&encoded(&self.name, values, self.dtype)?);
        }
        // llama.cpp rotates Qwen3's heads in half-split order, as they are.
        let rotated = [(names::Q, model.sizes.heads), (names::K, model.sizes.kv_heads)];
        let mut rotated = rotated.into_iter().filter(|_| !model.sizes.qk_norm);
        let part = names::layer_and_part(names::stem(&self.tensor.name)).map(|(_, part)| part);
        let heads = rotated.find(|(rotated, _)| part == Some(rotated));
        let values = model.tensor(&self.tensor)?;
        let mut take = |values: &[f32]| take(&encoded(&self.tensor.name, values, self.dtype)?);
        match heads {
            Some((_, heads)) => take(&adjacent_pairs(&values.to_vec()?, heads, model.sizes.head_dim())),
            None => pieces(&values).try_for_each(|piece| take(&piece?)),
        }
    }
}

/// Permutes the rows of every head from rotary's half-split order, where rows i and i + head_dim/2 form a pair, to llama.cpp's
/// interleaved order, where rows 2i and 2i + 1 do.
fn adjacent_pairs(values: &[f32], heads: usize, head_dim: usize) -> Vec<f32> {
    let columns = values.len() / (heads * head_dim);
    let row = |head: usize, at: usize| {
        let from = head * head_dim + at / 2 + at % 2 * (head_dim / 2);
        &values[from * columns..][..columns]
    };
    (0..heads).flat_map(|head| (0..head_dim).flat_map(move |at| row(head, at))).copied().collect()
}

/// llama.cpp's name of a tensor, from Hugging Face's.
fn gguf_name(name: &str) -> String {
    const PARTS: [(&str, &str); 11] = [
        (names::Q, "attn_q"),
        (names::K, "attn_k"),
        (names::V, "attn_v"),
        (names::O, "attn_output"),
        (names::Q_NORM, "attn_q_norm"),
        (names::K_NORM, "attn_k_norm"),
        (names::GATE, "ffn_gate"),
        (names::UP, "ffn_up"),
        (names::DOWN, "ffn_down"),
        (names::ATTENTION_NORM, "attn_norm"),
        (names::MLP_NORM, "ffn_norm"),
    ];
    let stem = match names::stem(name) {
        names::EMBEDDING => "token_embd".to_owned(),
        names::FINAL_NORM => "output_norm".to_owned(),
        names::HEAD => "output".to_owned(),
        stem => {
            let (layer, part) = names::layer_and_part(stem).expect("bug: a tensor of no block");
            let known = PARTS.iter().find(|(theirs, _)| *theirs == part).expect("bug: a tensor of no known part");
            format!("blk.{layer}.{}", known.1)
        }
    };
    names::weight(&stem)
}

/// Everything before the data, padded.
fn put_header(out: &mut Vec<u8>, metadata: &[(String, Value)], tensors: &[Entry]) {
    out.extend(b"GGUF");
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        put_text(out, key);
        put_value(out, value);
    }
    let mut offset = 0u64;
    for tensor in tensors {
        put_text(out, &tensor.name);
        let shape = &tensor.tensor.shape;
        out.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|size| out.extend((*size as u64).to_le_bytes()));
        out.extend(tensor.kind().to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += tensor.bytes().next_multiple_of(ALIGNMENT);
    }
    out.resize(out.len() + padding(out.len() as u64), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotary_pairs_become_adjacent() {
        // Two heads of width 4, rows of two columns: row r is [r, r].
        let rows = |order: [usize; 8]| order.iter().flat_map(|row| [*row as f32; 2]).collect::<Vec<f32>>();
        assert_eq!(adjacent_pairs(&rows([0, 1, 2, 3, 4, 5, 6, 7]), 2, 4), rows([0, 2, 1, 3, 4, 6, 5, 7]));
    }

    #[test]
    fn names_are_llama_cpps() {
        assert_eq!(gguf_name("model.layers.12.mlp.down_proj.weight"), "blk.12.ffn_down.weight");
        assert_eq!(gguf_name("model.layers.0.input_layernorm.weight"), "blk.0.attn_norm.weight");
        assert_eq!(gguf_name("lm_head.weight"), "output.weight");
        assert_eq!(gguf_name("model.layers.0.self_attn.q_norm.weight"), "blk.0.attn_q_norm.weight");
    }
}
