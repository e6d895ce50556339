//! Tensors that a configuration does not use, and files that an index names.

use std::fs;

use serde_json::{Map, json};

use crate::common::llama_pc;
use crate::{EVAL, Weights, edit_config, loss, refused, steps, tiny_with, train};

#[test]
fn biases_and_more_layers_are_refused_by_name() {
    for (fixture, named) in [("biases", "self_attn.k_proj.bias"), ("more-layers", "model.layers.2.mlp.down_proj.weight")] {
        let folder = tiny_with(fixture);
        let text = refused(llama_pc(folder.path()).args(EVAL), 1);
        assert!(text.contains("found tensors that its configuration does not use: ") && text.contains(named), "{text}");
        assert!(text.contains("hint: "), "{text}");
        let text = refused(&mut train(folder.path(), &["--init", "hf", "--out", "run"]), 1);
        assert!(text.contains(named) && !folder.path().join("run").exists(), "{text}");
        let export = ["export", "hf", "--format", "gguf", "--out", "x.gguf"];
        assert!(refused(llama_pc(folder.path()).args(export), 1).contains(named));
    }
}

#[test]
fn the_inner_model_alone_is_refused_with_what_to_do() {
    let folder = tiny_with("harmless-tensors");
    let path = folder.path().join("hf/model.safetensors");
    let mut weights = Weights::read(&path).without(|name| name.ends_with("inv_freq"));
    let inner = weights.header.iter().map(|(name, info)| (name.trim_start_matches("model.").to_owned(), info.clone())).collect();
    weights.header = inner;
    weights.write(&path);
    let text = refused(llama_pc(folder.path()).args(EVAL), 1);
    assert!(text.contains("embed_tokens.weight") && text.contains("their names lack \"model.\""), "{text}");
}

#[test]
fn frequencies_that_follow_from_the_configuration_are_accepted() {
    let folder = tiny_with("harmless-tensors");
    let wanted = 3.9590647;
    assert!((loss(folder.path(), &EVAL) - wanted).abs() < 1e-4);
    train(folder.path(), &["--init", "hf", "--out", "run"]).assert().success();
    assert_eq!(steps(folder.path(), "run"), [1]);
    // Those of another rope_theta say that the configuration lacks it.
    let path = folder.path().join("hf/model.safetensors");
    let mut weights = Weights::read(&path).without(|name| name.ends_with("layers.1.self_attn.rotary_emb.inv_freq"));
    let other = [1f32, 0.001].map(f32::to_le_bytes).concat();
    weights.add("model.layers.1.self_attn.rotary_emb.inv_freq", "F32", &[2], &other);
    weights.write(&path);
    let text = refused(llama_pc(folder.path()).args(EVAL), 1);
    assert!(text.contains("layers.1.self_attn.rotary_emb.inv_freq than those of rope_theta 10000"), "{text}");
}

#[test]
fn a_head_beside_a_tied_embedding_must_be_the_embedding() {
    let folder = tiny_with("harmless-tensors");
    let path = folder.path().join("hf/model.safetensors");
    let weights = Weights::read(&path);
    edit_config(folder.path(), |config| config["tie_word_embeddings"] = json!(true));
    let text = refused(llama_pc(folder.path()).args(EVAL), 1);
    assert!(text.contains("found another lm_head.weight than model.embed_tokens.weight"), "{text}");
    let mut tied = weights.without(|name| name == "lm_head.weight");
    tied.write(&path);
    let alone = loss(folder.path(), &EVAL);
    tied.add("lm_head.weight", "F32", &[24, 8], weights.bytes("model.embed_tokens.weight"));
    tied.write(&path);
    assert_eq!(loss(folder.path(), &EVAL), alone);
    // And one that is not tied must be there.
    edit_config(folder.path(), |config| config["tie_word_embeddings"] = json!(false));
    weights.without(|name| name == "lm_head.weight").write(&path);
    assert!(refused(llama_pc(folder.path()).args(EVAL), 1).contains("tensor `lm_head.weight` is missing"));
}

#[test]
fn an_index_stays_within_its_folder_and_says_what_is_there() {
    let folder = tiny_with("harmless-tensors");
    let hf = folder.path().join("hf");
    let weights = Weights::read(&hf.join("model.safetensors"));
    fs::remove_file(hf.join("model.safetensors")).expect("it was there");
    let is_first = |name: &str| name.contains("layers.0.");
    weights.without(|name| !is_first(name)).write(&hf.join("a.safetensors"));
    weights.without(is_first).write(&hf.join("b.safetensors"));
    weights.without(is_first).write(&folder.path().join("outside.safetensors"));
    let index = |first: &str, rest: &str| {
        let names = weights.header.keys().filter(|name| *name != "__metadata__");
        let map: Map<_, _> = names.map(|name| (name.clone(), json!(if is_first(name) { first } else { rest }))).collect();
        fs::write(hf.join("model.safetensors.index.json"), json!({"weight_map": map}).to_string()).expect("it is written");
    };
    index("a.safetensors", "b.safetensors");
    assert!((loss(folder.path(), &EVAL) - 3.9590647).abs() < 1e-4);
    let absolute = folder.path().join("outside.safetensors").display().to_string();
    for outside in ["../outside.safetensors", &absolute, "", "x/../../outside.safetensors"] {
        index("a.safetensors", outside);
        let text = refused(llama_pc(folder.path()).args(EVAL), 1);
        assert!(text.contains("model.safetensors.index.json: found the file") && text.contains("of its folder"), "{text}");
    }
    index("a.safetensors", "c.safetensors");
    assert!(refused(llama_pc(folder.path()).args(EVAL), 1).contains("c.safetensors"));
    index("b.safetensors", "a.safetensors");
    let text = refused(llama_pc(folder.path()).args(EVAL), 1);
    assert!(text.contains("found no ") && text.contains("expected it there by the index"), "{text}");
    index("a.safetensors", "b.safetensors");
    weights.write(&hf.join("b.safetensors"));
    let text = refused(llama_pc(folder.path()).args(EVAL), 1);
    assert!(text.contains("in both, expected it in one of them"), "{text}");
}
