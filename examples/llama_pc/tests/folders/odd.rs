//! Odd folders: number formats, fields that are absent or say something else.

use serde_json::{Value, json};

use crate::common::llama_pc;
use crate::{EVAL, Weights, edit_config, loss, refused, tiny_with};

const LOSS: f64 = 3.9590647;

#[test]
fn number_formats_are_read_or_refused_by_name() {
    let folder = tiny_with("harmless-tensors");
    let path = folder.path().join("hf/model.safetensors");
    let weights = Weights::read(&path);
    // The upper half of a float32.
    weights.as_type("BF16", |value| value.to_le_bytes()[2..].to_vec()).write(&path);
    assert!((loss(folder.path(), &EVAL) - LOSS).abs() < 0.05);
    edit_config(folder.path(), |config| {
        config["torch_dtype"] = Value::Null;
        config["dtype"] = json!("bfloat16");
    });
    assert!((loss(folder.path(), &EVAL) - LOSS).abs() < 0.05);
    weights.as_type("F64", |value| f64::from(value).to_le_bytes().to_vec()).write(&path);
    let text = refused(llama_pc(folder.path()).args(EVAL), 1);
    assert!(text.contains("is F64; F32, F16 or BF16 expected"), "{text}");
    weights.as_type("I8", |value| vec![value as i8 as u8]).write(&path);
    assert!(refused(llama_pc(folder.path()).args(EVAL), 1).contains("is I8; F32, F16 or BF16 expected"));
}

#[test]
fn fields_that_change_nothing_are_read_past() {
    let changes: [(&str, Value); 9] = [
        ("num_key_value_heads", Value::Null),
        ("head_dim", json!(4)),
        ("rope_scaling", json!({"type": "default"})),
        ("rope_parameters", json!({"rope_theta": 10_000, "rope_type": "default"})),
        ("partial_rotary_factor", json!(1.0)),
        ("attention_bias", json!(false)),
        ("sliding_window", json!(4096)), // transformers' Llama has none
        ("hidden_act", json!("swish")),
        ("quantization_config", Value::Null),
    ];
    for (key, value) in changes {
        let folder = tiny_with("harmless-tensors");
        edit_config(folder.path(), |config| config[key] = value.clone());
        assert!((loss(folder.path(), &EVAL) - LOSS).abs() < 1e-4, "{key}");
    }
}

#[test]
fn fields_that_change_the_network_are_refused_by_name() {
    let changes: [(&str, Value); 13] = [
        ("attention_bias", json!(true)),
        ("mlp_bias", json!(true)),
        ("hidden_act", json!("gelu")),
        ("partial_rotary_factor", json!(0.5)),
        ("quantization_config", json!({"quant_method": "gptq", "bits": 4})),
        ("rope_scaling", json!({"rope_type": "dynamic", "factor": 2.0})),
        ("rope_parameters", json!({"rope_theta": 5e5, "rope_type": "default"})),
        ("architectures", json!(["LlamaForSequenceClassification"])),
        ("model_type", json!("mistral")),
        ("head_dim", json!(6)),
        ("num_key_value_heads", json!(1)),
        ("vocab_size", json!(30)),
        ("hidden_size", json!(16)),
    ];
    for (key, value) in changes {
        let folder = tiny_with("harmless-tensors");
        edit_config(folder.path(), |config| config[key] = value.clone());
        let text = refused(llama_pc(folder.path()).args(EVAL), 1);
        let named = match key {
            "rope_parameters" => "rope_theta",
            // A size that the weights do not have is found with a tensor.
            "num_key_value_heads" | "vocab_size" => "tensor `",
            "head_dim" | "hidden_size" => "rotary_emb.inv_freq",
            _ => key,
        };
        assert!(text.contains(named), "{key}: {text}");
    }
    // Qwen3's window.
    let folder = tiny_with("harmless-tensors");
    edit_config(folder.path(), |config| {
        config["model_type"] = json!("qwen3");
        config["architectures"] = json!(["Qwen3ForCausalLM"]);
        config["use_sliding_window"] = json!(true);
    });
    assert!(refused(llama_pc(folder.path()).args(EVAL), 1).contains("found use_sliding_window true"));
    // Without it, the norms of its heads are missing.
    edit_config(folder.path(), |config| {
        config["use_sliding_window"] = json!(false);
        config["head_dim"] = json!(4);
    });
    assert!(refused(llama_pc(folder.path()).args(EVAL), 1).contains("self_attn.q_norm.weight` is missing"));
}
