//! `config.json` in Hugging Face's layout: checks that it is a supported model, and reads its sizes.
//!
//! What is absent has the default of transformers. Whatever would be computed otherwise there is refused by name.

use std::path::Path;

use polytape::llama::LlamaConfig;
use serde_json::Value;

use super::fields::Fields;
use super::rope;
use crate::config::Config;
use crate::run::files::read_json;
use crate::terminal::failure::Failure;

/// An architecture of transformers.
pub struct Architecture {
    pub model_type: &'static str,
    /// The name of its class.
    pub class: &'static str,
    /// Whether queries and keys are normed.
    qk_norm: bool,
}

const LLAMA: Architecture = Architecture { model_type: "llama", class: "LlamaForCausalLM", qk_norm: false };
const QWEN3: Architecture = Architecture { model_type: "qwen3", class: "Qwen3ForCausalLM", qk_norm: true };

/// The architecture of a model.
pub fn architecture_of(sizes: &LlamaConfig) -> &'static Architecture {
    if sizes.qk_norm { &QWEN3 } else { &LLAMA }
}

/// Width of a head of Qwen3 where `config.json` has none.
const QWEN3_HEAD_DIM: usize = 128;

/// The most positions that a model may be said to have.
const MOST_POSITIONS: usize = 1 << 30;

/// The configuration of a folder in Hugging Face's layout.
pub fn configuration(folder: &Path) -> Result<Config, Failure> {
    let path = folder.join("config.json");
    read(&read_json(&path)?).map_err(|reason| Failure::other(format!("{}: {reason}", path.display())))
}

fn read(value: &Value) -> Result<Config, String> {
    let fields = Fields(value);
    // The architecture first: others have other fields.
    let architecture = architecture(&fields)?;
    refuse_what_differs(&fields)?;
    let mut config = Config::default();
    let model = &mut config.model;
    model.dim = fields.needed("hidden_size")?;
    model.intermediate_size = fields.needed("intermediate_size")?;
    model.layers = fields.needed("num_hidden_layers")?;
    model.heads = fields.needed("num_attention_heads")?;
    model.kv_heads = fields.count("num_key_value_heads")?.unwrap_or(model.heads);
    model.vocab = Some(fields.needed("vocab_size")?);
    model.norm_eps = fields.number("rms_norm_eps")?.ok_or("found no rms_norm_eps, expected one")?;
    model.tied = fields.flag("tie_word_embeddings")?.unwrap_or(false);
    model.qk_norm = architecture.qk_norm;
    model.head_dim = match fields.count("head_dim")? {
        Some(width) => width,
        None if architecture.qk_norm => QWEN3_HEAD_DIM,
        None if model.heads > 0 && model.dim.is_multiple_of(model.heads) => model.dim / model.heads,
        None => {
            let (heads, dim) = (model.heads, model.dim);
            return Err(format!("found num_attention_heads {heads}, expected a divisor of hidden_size {dim}, or a head_dim"));
        }
    };
    let positions = fields.count("max_position_embeddings")?;
    if let Some(found) = positions.filter(|found| !(1..=MOST_POSITIONS).contains(found)) {
        return Err(format!("found max_position_embeddings {found}, expected a whole number from 1 to {MOST_POSITIONS}"));
    }
    rope::read(&fields, positions, model)?;
    config.check().map_err(|problem| format!("as a {}, {problem}", architecture.class))?;
    // After the check: a model for longer sequences than `data.seq_len` may be is refused where these are asked for, not before.
    config.data.seq_len = positions.unwrap_or(config.data.seq_len);
    Ok(config)
}

fn architecture(fields: &Fields<'_>) -> Result<&'static Architecture, String> {
    let kind = fields.text("model_type")?.unwrap_or_default();
    let found = [&LLAMA, &QWEN3].into_iter().find(|known| known.model_type == kind);
    let found = found.ok_or_else(|| format!("found model_type {kind:?}, expected \"llama\" or \"qwen3\""))?;
    let Some(classes) = fields.value("architectures") else { return Ok(found) };
    // An early spelling has other capitals.
    let is_it = |class: &Value| class.as_str().is_some_and(|class| class.eq_ignore_ascii_case(found.class));
    match classes.as_array().is_some_and(|list| list.is_empty() || list.iter().any(is_it)) {
        true => Ok(found),
        false => Err(format!("found architectures {classes}, expected {}", found.class)),
    }
}

/// Rejects settings with which transformers computes something else.
fn refuse_what_differs(fields: &Fields<'_>) -> Result<(), String> {
    for name in ["attention_bias", "mlp_bias", "use_sliding_window"] {
        if fields.flag(name)? == Some(true) {
            return Err(format!("found {name} true, expected false"));
        }
    }
    // "swish" is another name of it.
    if let Some(other) = fields.text("hidden_act")?.filter(|name| !["silu", "swish"].contains(name)) {
        return Err(format!("found hidden_act {other:?}, expected \"silu\""));
    }
    if fields.value("quantization_config").is_some() {
        return Err("found a quantization_config, expected weights that are not quantized".to_owned());
    }
    let layers = fields.value("layer_types").and_then(Value::as_array).into_iter().flatten();
    if let Some(other) = layers.into_iter().find(|kind| *kind != "full_attention") {
        return Err(format!("found {other} in layer_types, expected \"full_attention\" only"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::engine;

    fn json_of(change: impl Fn(&mut Value)) -> Value {
        let mut value = json!({
            "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "vocab_size": 100, "rms_norm_eps": 1e-6, "hidden_act": "silu",
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
        });
        change(&mut value);
        value
    }

    #[test]
    fn sizes_are_read_in_the_newer_and_the_older_form() {
        let config = read(&json_of(|_| ())).expect("a Llama");
        let model = &config.model;
        assert_eq!((model.rope_theta, model.kv_heads, model.head_dim, model.vocab), (5e5, 4, 8, Some(100)));
        let old = json_of(|value| {
            value["rope_parameters"] = Value::Null;
            value["rope_theta"] = json!(1e6);
            value["torch_dtype"] = json!("bfloat16");
            value["architectures"] = json!(["LLaMAForCausalLM"]);
            value["hidden_act"] = json!("swish");
        });
        assert_eq!(read(&old).expect("a Llama").model.rope_theta, 1e6);
    }

    /// Tables that transformers computed in float32.
    #[test]
    fn rotary_frequencies_are_those_of_transformers() {
        let cases: Value = serde_json::from_str(include_str!("../../../tests/fixtures/transformers/cases.json")).expect("JSON");
        let cases = cases["frequencies"].as_array().expect("a list");
        assert!(cases.len() > 5);
        for case in cases {
            let config = read(&case["config"]).unwrap_or_else(|problem| panic!("{}: {problem}", case["name"]));
            let sizes = engine::model(&config);
            let factor = sizes.rope_scaling.map_or(1.0, |scaling| scaling.attention_factor());
            let is_near = |found: f64, wanted: &Value| (found / wanted.as_f64().expect("a number") - 1.0).abs() < 1e-5;
            assert!(is_near(factor, &case["attention_factor"]), "{}: {factor}", case["name"]);
            let (found, wanted) = (sizes.rope_frequencies(), case["inv_freq"].as_array().expect("a list"));
            assert_eq!(found.len(), wanted.len());
            for (found, wanted) in found.iter().zip(wanted) {
                assert!(is_near(*found, wanted), "{}: {found}, {wanted}", case["name"]);
            }
        }
    }

    /// More than one can train with here, which is no reason not to export the model or to write text with it.
    #[test]
    fn a_model_may_have_very_many_positions() {
        let positions = |count: Value| {
            let config = read(&json_of(|config| config["max_position_embeddings"] = count.clone()));
            config.expect("a Llama").data.seq_len
        };
        assert_eq!(positions(json!(4_194_304)), 4_194_304);
        assert_eq!(positions(Value::Null), Config::default().data.seq_len);
    }

    #[test]
    fn qwen3_has_normed_heads_of_their_own_width() {
        let qwen3 = |head_dim: Value| {
            let json = json_of(|value| {
                value["model_type"] = json!("qwen3");
                value["architectures"] = json!(["Qwen3ForCausalLM"]);
                value["head_dim"] = head_dim.clone();
                value["sliding_window"] = json!(4096);
                value["layer_types"] = json!(["full_attention", "full_attention"]);
            });
            read(&json).expect("a Qwen3").model
        };
        assert!(qwen3(json!(16)).qk_norm);
        assert_eq!([qwen3(json!(16)).head_dim, qwen3(Value::Null).head_dim], [16, 128]);
    }

    #[test]
    fn what_would_be_computed_otherwise_is_refused_by_name() {
        let cases: [(&str, Value, &str); 21] = [
            ("model_type", json!("gpt2"), "found model_type \"gpt2\", expected \"llama\" or \"qwen3\""),
            ("architectures", json!(["LlamaForTokenClassification"]), "expected LlamaForCausalLM"),
            ("attention_bias", json!(true), "found attention_bias true, expected false"),
            ("mlp_bias", json!(true), "found mlp_bias true, expected false"),
            ("hidden_act", json!("gelu"), "found hidden_act \"gelu\", expected \"silu\""),
            ("use_sliding_window", json!(true), "found use_sliding_window true, expected false"),
            (
                "layer_types",
                json!(["sliding_attention"]),
                "found \"sliding_attention\" in layer_types, expected \"full_attention\" only",
            ),
            ("quantization_config", json!({"quant_method": "fp8"}), "expected weights that are not quantized"),
            ("head_dim", json!(7), "model.head_dim: found 7, expected an even number (rotary turns pairs within a head)"),
            ("head_dim", json!(512), "model.head_dim: found 512, expected a whole number from 2 to 256"),
            ("num_attention_heads", json!(0), "found num_attention_heads 0, expected a divisor of hidden_size 32, or a head_dim"),
            ("num_attention_heads", json!(5), "found num_attention_heads 5, expected a divisor of hidden_size 32, or a head_dim"),
            ("num_key_value_heads", json!(3), "model.kv_heads: found 3, expected a divisor of heads = 4"),
            ("hidden_size", json!(1u64 << 60), "model.dim: found 1152921504606846976, expected a whole number from 2 to 65536"),
            ("hidden_size", json!("32"), "found hidden_size \"32\", expected a whole number below 2^63"),
            (
                "max_position_embeddings",
                json!(1u64 << 63),
                "found max_position_embeddings 9223372036854775808, expected a whole number below 2^63",
            ),
            ("vocab_size", json!(u64::MAX), "found vocab_size 18446744073709551615, expected a whole number below 2^63"),
            ("vocab_size", Value::Null, "found no vocab_size, expected one"),
            ("rms_norm_eps", Value::Null, "found no rms_norm_eps, expected one"),
            (
                "max_position_embeddings",
                json!(0),
                "found max_position_embeddings 0, expected a whole number from 1 to 1073741824",
            ),
            (
                "max_position_embeddings",
                json!(1u64 << 40),
                "found max_position_embeddings 1099511627776, expected a whole number from 1 to 1073741824",
            ),
        ];
        for (key, value, expected) in cases {
            let problem = read(&json_of(|config| config[key] = value.clone())).expect_err("not a model of ours");
            assert!(problem.ends_with(expected), "{problem}");
        }
    }
}
