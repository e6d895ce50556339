//! A folder that `transformers` loads: safetensors, `config.json`, `generation_config.json` and the tokenizer's files.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use polytape::Param;
use serde_json::{Map, Value, json};

use super::encode::Dtype;
use super::{Merged, encoded};
use crate::failure::Failure;
use crate::partial::Partial;

/// Writes the folder at `out`, whole or not at all.
pub fn write(model: &Merged, dtype: Dtype, max_shard_bytes: u64, out: &Path) -> Result<(), Failure> {
    let partial = Partial::folder(out)?;
    let folder = partial.path();
    let shards = shards(model, dtype, max_shard_bytes);
    let mut places = Map::new();
    for (number, shard) in (1..).zip(&shards) {
        let name = match shards.len() {
            1 => "model.safetensors".to_owned(),
            count => format!("model-{number:05}-of-{count:05}.safetensors"),
        };
        places.extend(shard.iter().map(|param| (param.name.clone(), json!(name))));
        write_safetensors(shard, dtype, &folder.join(name))?;
    }
    if shards.len() > 1 {
        let size: u64 = model.tensors().map(|param| dtype.bytes(param.tensor.len())).sum();
        let index = json!({"metadata": {"total_size": size}, "weight_map": places});
        write_json(&folder.join("model.safetensors.index.json"), &index)?;
    }
    write_json(&folder.join("config.json"), &config(model, dtype))?;
    let tokens = special_ids(model);
    write_json(&folder.join("generation_config.json"), &Value::Object(tokens))?;
    write_tokenizer(model, folder)?;
    partial.finish()
}

/// The tensors in order, as many to a file as fit; one that is larger than the bound has a file of its own.
fn shards(model: &Merged, dtype: Dtype, max_bytes: u64) -> Vec<Vec<&Param>> {
    let mut shards: Vec<Vec<&Param>> = vec![Vec::new()];
    let mut held = 0;
    for param in model.tensors() {
        let bytes = dtype.bytes(param.tensor.len());
        if held > 0 && held + bytes > max_bytes {
            shards.push(Vec::new());
            held = 0;
        }
        held += bytes;
        shards.last_mut().expect("bug: there is a shard").push(param);
    }
    shards
}

/// The safetensors format: the header's length, the header in JSON, the tensors. Written tensor by tensor, so that no second copy of the
/// model is ever in memory.
fn write_safetensors(shard: &[&Param], dtype: Dtype, path: &Path) -> Result<(), Failure> {
    let name = match dtype {
        Dtype::F32 => "F32",
        Dtype::F16 => "F16",
        Dtype::Bf16 => "BF16",
        Dtype::Q8_0 => unreachable!("bug: q8_0 is refused for this format"),
    };
    let mut header = Map::from_iter([("__metadata__".to_owned(), json!({"format": "pt"}))]);
    let mut begin = 0;
    for param in shard {
        let end = begin + dtype.bytes(param.tensor.len());
        let entry = json!({"dtype": name, "shape": param.tensor.shape(), "data_offsets": [begin, end]});
        header.insert(param.name.clone(), entry);
        begin = end;
    }
    let mut header = Value::Object(header).to_string();
    // Spaces at its end keep the data aligned to 8 bytes.
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let io = |error| Failure::io("write", path, &error);
    let mut file = BufWriter::new(File::create(path).map_err(|error| Failure::io("create", path, &error))?);
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(io)?;
    file.write_all(header.as_bytes()).map_err(io)?;
    for param in shard {
        file.write_all(&encoded(&param.name, &param.tensor.to_vec()?, dtype)?).map_err(io)?;
    }
    let file = file.into_inner().map_err(|error| io(error.into_error()))?;
    file.sync_all().map_err(io)
}

/// `config.json`, with everything said that has a default which differs between versions and programs.
fn config(model: &Merged, dtype: Dtype) -> Value {
    let sizes = model.llama.config();
    let dtype = match dtype {
        Dtype::F32 => "float32",
        Dtype::F16 => "float16",
        Dtype::Bf16 | Dtype::Q8_0 => "bfloat16",
    };
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": sizes.dim,
        "intermediate_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim(),
        "vocab_size": sizes.vocab,
        "max_position_embeddings": sizes.max_seq_len,
        "rms_norm_eps": model.config.model.norm_eps,
        "rope_theta": sizes.rope_theta,
        "rope_scaling": null,
        "rope_parameters": {"rope_type": "default", "rope_theta": sizes.rope_theta},
        "tie_word_embeddings": sizes.tied,
        "hidden_act": "silu",
        "attention_bias": false,
        "attention_dropout": 0.0,
        "mlp_bias": false,
        "pretraining_tp": 1,
        "initializer_range": 0.02,
        "use_cache": true,
        "torch_dtype": dtype,
        "dtype": dtype,
    });
    if let Value::Object(config) = &mut config {
        config.extend(special_ids(model));
    }
    config
}

/// `bos_token_id`, `eos_token_id`: null where the tokenizer has none, because `transformers` would assume 1 and 2.
fn special_ids(model: &Merged) -> Map<String, Value> {
    let (bos, eos) = model.tokenizer.as_ref().map_or((None, None), |tokenizer| (tokenizer.bos(), tokenizer.eos()));
    Map::from_iter([("bos_token_id".to_owned(), json!(bos)), ("eos_token_id".to_owned(), json!(eos))])
}

fn write_tokenizer(model: &Merged, folder: &Path) -> Result<(), Failure> {
    let Some(tokenizer) = &model.tokenizer else { return Ok(()) };
    tokenizer.save(&folder.join("tokenizer.json"))?;
    let text = |id: Option<u32>| id.and_then(|id| tokenizer.token(id));
    let special = json!({
        "bos_token": text(tokenizer.bos()),
        "eos_token": text(tokenizer.eos()),
        "unk_token": tokenizer.unknown().and_then(|id| tokenizer.token(id)),
    });
    let known = |value: &Value| {
        let object = value.as_object().into_iter().flatten();
        object.filter(|(_, value)| !value.is_null()).map(|(key, value)| (key.clone(), value.clone())).collect::<Map<_, _>>()
    };
    write_json(&folder.join("special_tokens_map.json"), &Value::Object(known(&special)))?;
    let mut config = known(&special);
    config.extend(known(&json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": false,
        "model_max_length": model.llama.config().max_seq_len,
    })));
    write_json(&folder.join("tokenizer_config.json"), &Value::Object(config))
}

fn write_json(path: &Path, value: &Value) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).expect("bug: JSON does not serialise") + "\n";
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|error| Failure::io("write", path, &error))
}
