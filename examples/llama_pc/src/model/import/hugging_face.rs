//! `config.json` in Hugging Face's layout: checks that it is a supported Llama, and reads its sizes.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::config::Config;
use crate::run::files::read_json;
use crate::terminal::failure::Failure;

/// The fields that affect a Llama's outputs.
#[derive(Deserialize)]
struct Fields {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: Option<usize>,
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    #[serde(default)]
    rope_parameters: Value,
    #[serde(default)]
    rope_scaling: Value,
    hidden_act: Option<String>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    tie_word_embeddings: Option<bool>,
}

/// The configuration of a folder in Hugging Face's layout.
pub fn configuration(folder: &Path) -> Result<Config, Failure> {
    let path = folder.join("config.json");
    let wrong = |reason: String| Failure::other(format!("{}: {reason}", path.display()));
    // The architecture first: others have other fields.
    let value: Value = read_json(&path)?;
    let kind = value["model_type"].as_str().unwrap_or_default();
    if kind != "llama" {
        return Err(wrong(format!("found model_type {kind:?}, expected \"llama\"")));
    }
    let found: Fields =
        serde_json::from_value(value).map_err(|error| wrong(format!("found {error}, expected a Llama's fields")))?;
    found.check().map_err(wrong)?;
    let mut config = Config::default();
    config.model.dim = found.hidden_size;
    config.model.intermediate_size = found.intermediate_size;
    config.model.layers = found.num_hidden_layers;
    config.model.heads = found.num_attention_heads;
    config.model.kv_heads = found.num_key_value_heads.unwrap_or(found.num_attention_heads);
    config.model.vocab = Some(found.vocab_size);
    config.model.norm_eps = found.rms_norm_eps;
    config.model.rope_theta = found.theta().unwrap_or(config.model.rope_theta);
    config.model.tied = found.tie_word_embeddings.unwrap_or(false);
    config.data.seq_len = found.max_position_embeddings.unwrap_or(config.data.seq_len);
    Ok(config)
}

/// Checks that a `config.json` in `folder`, if there is one, agrees with this configuration.
pub fn check_folder(folder: &Path, config: &Config) -> Result<(), Failure> {
    let path = folder.join("config.json");
    if !path.is_file() {
        return Ok(());
    }
    let (found, wanted) = (configuration(folder)?.model, &config.model);
    let numbers = [
        ("dim", found.dim as f64, wanted.dim as f64),
        ("layers", found.layers as f64, wanted.layers as f64),
        ("heads", found.heads as f64, wanted.heads as f64),
        ("kv_heads", found.kv_heads as f64, wanted.kv_heads as f64),
        ("intermediate_size", found.intermediate_size as f64, wanted.intermediate_size as f64),
        ("vocab", found.vocab.unwrap_or_default() as f64, wanted.vocab.unwrap_or_default() as f64),
        ("norm_eps", found.norm_eps, wanted.norm_eps),
        ("rope_theta", found.rope_theta, wanted.rope_theta),
        ("tied", f64::from(u8::from(found.tied)), f64::from(u8::from(wanted.tied))),
    ];
    match numbers.into_iter().find(|(_, found, wanted)| found != wanted) {
        None => Ok(()),
        Some((key, found, wanted)) => {
            let path = path.display();
            Err(Failure::usage(format!(
                "{path}: found the equivalent of model.{key} = {found}, expected the configuration's {wanted}"
            )))
        }
    }
}

impl Fields {
    fn theta(&self) -> Option<f64> {
        self.rope_theta.or(self.rope_parameters["rope_theta"].as_f64())
    }

    /// Rejects settings that this program does not support.
    fn check(&self) -> Result<(), String> {
        let bias = [("attention_bias", self.attention_bias), ("mlp_bias", self.mlp_bias)];
        if let Some((name, _)) = bias.into_iter().find(|(_, flag)| *flag == Some(true)) {
            return Err(format!("found {name} true, expected false"));
        }
        if let Some(other) = self.hidden_act.as_deref().filter(|name| *name != "silu") {
            return Err(format!("found hidden_act {other:?}, expected \"silu\""));
        }
        if self.num_attention_heads == 0 || !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            let (dim, heads) = (self.hidden_size, self.num_attention_heads);
            return Err(format!("found num_attention_heads {heads}, expected a divisor of hidden_size {dim}"));
        }
        let usual = self.hidden_size / self.num_attention_heads;
        if let Some(other) = self.head_dim.filter(|width| *width != usual) {
            return Err(format!("found head_dim {other}, expected hidden_size / num_attention_heads = {usual}"));
        }
        for (name, rope) in [("rope_scaling", &self.rope_scaling), ("rope_parameters", &self.rope_parameters)] {
            let kind = rope["rope_type"].as_str().or(rope["type"].as_str()).unwrap_or("default");
            if kind != "default" {
                return Err(format!("found {name} of type {kind:?}, expected \"default\""));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn folder(change: impl Fn(&mut Value)) -> tempfile::TempDir {
        let mut value = json!({
            "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "vocab_size": 100, "rms_norm_eps": 1e-6, "hidden_act": "silu",
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
        });
        change(&mut value);
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("config.json"), value.to_string()).expect("it is written");
        folder
    }

    #[test]
    fn sizes_are_read_in_the_newer_and_the_older_form() {
        let config = configuration(folder(|_| ()).path()).expect("a Llama");
        assert_eq!((config.model.rope_theta, config.model.kv_heads, config.model.vocab), (5e5, 4, Some(100)));
        let old = folder(|value| {
            value["rope_parameters"] = Value::Null;
            value["rope_theta"] = json!(1e6);
        });
        assert_eq!(configuration(old.path()).expect("a Llama").model.rope_theta, 1e6);
    }

    #[test]
    fn what_would_be_computed_otherwise_is_refused_by_name() {
        let cases: [(&str, Value, &str); 6] = [
            ("model_type", json!("gpt2"), "found model_type \"gpt2\", expected \"llama\""),
            ("attention_bias", json!(true), "found attention_bias true, expected false"),
            ("hidden_act", json!("gelu"), "found hidden_act \"gelu\", expected \"silu\""),
            ("head_dim", json!(16), "found head_dim 16, expected hidden_size / num_attention_heads = 8"),
            ("num_attention_heads", json!(0), "found num_attention_heads 0, expected a divisor of hidden_size 32"),
            ("rope_scaling", json!({"rope_type": "llama3"}), "found rope_scaling of type \"llama3\", expected \"default\""),
        ];
        for (key, value, expected) in cases {
            let folder = folder(|config| config[key] = value.clone());
            let failure = configuration(folder.path()).expect_err("not a Llama of ours");
            assert!(failure.to_string().ends_with(expected), "{failure}");
        }
    }

    #[test]
    fn other_sizes_than_the_configurations_are_refused() {
        let folder = folder(|_| ());
        let mut config = configuration(folder.path()).expect("a Llama");
        assert!(check_folder(folder.path(), &config).is_ok());
        config.model.layers = 3;
        let failure = check_folder(folder.path(), &config).expect_err("another size");
        assert!(failure.to_string().ends_with("model.layers = 2, expected the configuration's 3"), "{failure}");
    }
}
