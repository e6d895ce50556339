//! A folder that `transformers` loads: safetensors, `config.json`, `generation_config.json` and the tokenizer's files.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use polytape::llama::{LlamaConfig, ParameterShape, RopeScaling};
use polytape::safetensors::{self, Header, pytorch_metadata};
use serde_json::{Map, Value, json};

use super::encode::Dtype;
use super::merged::{Merged, encoded, pieces};
use crate::data::tokenizer::ends::CONFIG;
use crate::model::import::architecture_of;
use crate::run::checkpoint::MODEL;
use crate::run::files::{self, Partial};
use crate::terminal::failure::Failure;
use crate::terminal::output::note;
use crate::terminal::progress::Progress;

/// Writes the folder at `out`, whole or not at all.
pub fn write(model: &Merged, dtype: Dtype, max_shard_bytes: u64, out: &Path) -> Result<(), Failure> {
    notes(&model.sizes).iter().for_each(|line| note(line));
    let partial = Partial::folder(out)?;
    let folder = partial.path();
    let tensors = model.tensors();
    let shards = shards(&tensors, dtype, max_shard_bytes);
    let (mut places, mut progress) = (Map::new(), Progress::new("export", 0, tensors.len() as u64));
    for (number, shard) in (1..).zip(&shards) {
        let name = match shards.len() {
            1 => MODEL.to_owned(),
            count => format!("model-{number:05}-of-{count:05}.safetensors"),
        };
        places.extend(shard.iter().map(|tensor| (tensor.name.clone(), json!(name))));
        write_safetensors(model, shard, dtype, &folder.join(name), &mut progress)?;
    }
    progress.finish();
    if shards.len() > 1 {
        let size: u64 = tensors.iter().map(|tensor| dtype.bytes(tensor.numel())).sum();
        let index = json!({"metadata": {"total_size": size}, "weight_map": places});
        write_json(&folder.join("model.safetensors.index.json"), &index)?;
    }
    write_json(&folder.join("config.json"), &config(model, dtype))?;
    let tokens = special_ids(model);
    write_json(&folder.join("generation_config.json"), &Value::Object(tokens))?;
    write_tokenizer(model, folder)?;
    partial.finish()
}

/// What some versions of transformers make of a model's sizes.
fn notes(sizes: &LlamaConfig) -> Vec<String> {
    let LlamaConfig { dim, heads, max_seq_len, .. } = sizes;
    let mut notes = Vec::new();
    if !sizes.qk_norm && !dim.is_multiple_of(*heads) {
        notes.push(format!(
            "note: transformers 5 refuses a Llama whose hidden_size, here {dim}, is no multiple of num_attention_heads, here \
             {heads}"
        ));
    }
    if let Some(RopeScaling::Yarn { factor, original_seq_len, .. }) = sizes.rope_scaling
        && *max_seq_len as f64 / original_seq_len as f64 != factor
    {
        notes.push(format!(
            "note: transformers 4.51 to 4.55 take {max_seq_len} / {original_seq_len}, the lengths, for YaRN's factor, not {factor}; \
             later versions take the factor"
        ));
    }
    notes
}

/// The tensors in order, as many to a file as fit; one that is larger than the bound has a file of its own.
fn shards(tensors: &[ParameterShape], dtype: Dtype, max_bytes: u64) -> Vec<Vec<&ParameterShape>> {
    let mut shards: Vec<Vec<&ParameterShape>> = vec![Vec::new()];
    let mut held = 0;
    for tensor in tensors {
        let bytes = dtype.bytes(tensor.numel());
        if held > 0 && held + bytes > max_bytes {
            shards.push(Vec::new());
            held = 0;
        }
        held += bytes;
        shards.last_mut().expect("bug: there is a shard").push(tensor);
    }
    shards
}

fn write_safetensors(
    model: &Merged,
    shard: &[&ParameterShape],
    dtype: Dtype,
    path: &Path,
    progress: &mut Progress,
) -> Result<(), Failure> {
    let stored = match dtype {
        Dtype::F32 => safetensors::Dtype::F32,
        Dtype::F16 => safetensors::Dtype::F16,
        Dtype::Bf16 => safetensors::Dtype::BF16,
        Dtype::Q8_0 => unreachable!("bug: q8_0 is refused for this format"),
    };
    let tensors = shard.iter().map(|tensor| (tensor.name.as_str(), tensor.shape.as_slice()));
    let header = Header::new(stored, tensors, pytorch_metadata())?;
    let io = |error| Failure::io("write", path, &error);
    let file = BufWriter::new(File::create(path).map_err(|error| Failure::io("create", path, &error))?);
    let mut writer = safetensors::Writer::new(file, &header).map_err(io)?;
    for tensor in shard {
        for piece in pieces(&model.tensor(tensor)?) {
            writer.put(&encoded(&tensor.name, &piece?, dtype)?).map_err(io)?;
        }
        progress.advance();
    }
    let file = writer.finish().map_err(io)?.into_inner().map_err(|error| io(error.into_error()))?;
    file.sync_all().map_err(io)
}

/// `config.json`, with everything said that has a default which differs between versions and programs.
fn config(model: &Merged, dtype: Dtype) -> Value {
    let sizes = &model.sizes;
    let dtype = match dtype {
        Dtype::F32 => "float32",
        Dtype::F16 => "float16",
        Dtype::Bf16 | Dtype::Q8_0 => "bfloat16",
    };
    let architecture = architecture_of(sizes);
    let (rope_scaling, rope_parameters) = rope(sizes);
    let mut config = json!({
        "architectures": [architecture.class],
        "model_type": architecture.model_type,
        "hidden_size": sizes.dim,
        "intermediate_size": sizes.intermediate_size,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim(),
        "vocab_size": sizes.vocab,
        "max_position_embeddings": sizes.max_seq_len,
        "rms_norm_eps": model.norm_eps,
        "rope_theta": sizes.rope_theta,
        "rope_scaling": rope_scaling,
        "rope_parameters": rope_parameters,
        "tie_word_embeddings": sizes.tied,
        "hidden_act": "silu",
        "attention_bias": false,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": true,
        "torch_dtype": dtype,
        "dtype": dtype,
    });
    let own = match sizes.qk_norm {
        true => json!({"use_sliding_window": false, "sliding_window": null, "max_window_layers": sizes.layers}),
        false => json!({"mlp_bias": false, "pretraining_tp": 1}),
    };
    if let (Value::Object(config), Value::Object(own)) = (&mut config, own) {
        config.extend(own);
        config.extend(special_ids(model));
    }
    config
}

/// `rope_scaling`, which versions before 5 read beside `rope_theta`, and `rope_parameters`, which holds both.
fn rope(sizes: &LlamaConfig) -> (Value, Value) {
    let mut scaling = match sizes.rope_scaling {
        None => return (Value::Null, json!({"rope_type": "default", "rope_theta": sizes.rope_theta})),
        Some(RopeScaling::Linear { factor }) => json!({"rope_type": "linear", "factor": factor}),
        Some(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_seq_len }) => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_seq_len,
        }),
        Some(RopeScaling::Yarn { factor, beta_fast, beta_slow, original_seq_len, attention_factor }) => json!({
            "rope_type": "yarn",
            "factor": factor,
            "beta_fast": beta_fast,
            "beta_slow": beta_slow,
            "original_max_position_embeddings": original_seq_len,
            "attention_factor": attention_factor,
        }),
    };
    let older = scaling.clone();
    scaling["rope_theta"] = json!(sizes.rope_theta);
    (older, scaling)
}

/// `bos_token_id`, `eos_token_id`: null where the tokenizer has none, because `transformers` would assume 1 and 2.
fn special_ids(model: &Merged) -> Map<String, Value> {
    let (bos, eos) = model.tokenizer.as_ref().map_or((None, None), |tokenizer| (tokenizer.bos(), tokenizer.eos()));
    Map::from_iter([("bos_token_id".to_owned(), json!(bos)), ("eos_token_id".to_owned(), json!(eos))])
}

fn write_tokenizer(model: &Merged, folder: &Path) -> Result<(), Failure> {
    let Some(tokenizer) = &model.tokenizer else { return Ok(()) };
    tokenizer.save(folder)?;
    if let Some(bytes) = tokenizer.sentencepiece_model() {
        files::write(&folder.join("tokenizer.model"), &bytes)?;
        if let Some(text) = tokenizer.differing_text() {
            note(&format!(
                "note: tokenizer.json cannot say all that the SentencePiece model does: with it, {text:?} gets other tokens than in \
                 training; tokenizer.model is exact"
            ));
        }
    }
    let text = |id: Option<u32>| id.and_then(|id| tokenizer.token(id));
    let special = [("bos_token", tokenizer.bos()), ("eos_token", tokenizer.eos()), ("unk_token", tokenizer.unknown())];
    let special = special.into_iter().filter_map(|(key, id)| Some((key.to_owned(), json!(text(id)?))));
    let special: Map<String, Value> = special.collect();
    write_json(&folder.join("special_tokens_map.json"), &Value::Object(special.clone()))?;
    // What `save` wrote, and what `transformers` wants to know besides.
    let mut config = tokenizer.config();
    config.extend(special);
    config.insert("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast"));
    config.insert("clean_up_tokenization_spaces".to_owned(), json!(false));
    config.insert("model_max_length".to_owned(), json!(model.sizes.max_seq_len));
    write_json(&folder.join(CONFIG), &Value::Object(config))
}

fn write_json(path: &Path, value: &Value) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).expect("bug: JSON does not serialise") + "\n";
    files::write(path, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_version_reads_otherwise_is_said() {
        let yarn = |factor: f64| {
            let scaling =
                RopeScaling::Yarn { factor, beta_fast: 32.0, beta_slow: 1.0, original_seq_len: 64, attention_factor: 1.0 };
            notes(&LlamaConfig { max_seq_len: 256, rope_scaling: Some(scaling), ..LlamaConfig::new(32, 2, 4, 9) })
        };
        assert_eq!(yarn(4.0), [""; 0]);
        let said = yarn(8.0).join("\n");
        assert!(
            said.starts_with("note: transformers 4.51 to 4.55 take 256 / 64, the lengths, for YaRN's factor, not 8;"),
            "{said}"
        );
        let odd = notes(&LlamaConfig { head_dim: Some(8), ..LlamaConfig::new(30, 2, 4, 9) });
        assert!(
            odd.len() == 1 && odd[0].contains("hidden_size, here 30, is no multiple of num_attention_heads, here 4"),
            "{odd:?}"
        );
    }
}
