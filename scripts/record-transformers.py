#!/usr/bin/env python3
"""Records what transformers computes with two tiny models, for the tests of folders from elsewhere.

    scripts/record-transformers.py examples/llama_pc/tests/fixtures/transformers

Needs torch and transformers 5. Writes random weights of a Llama and of a Qwen3, tokens, and cases.json: losses of the weights under
configurations of every kind of rotary embedding, and tables of rotary frequencies of published sizes. The weights depend on the seed
only.
"""
import copy
import json
import os
import sys

import numpy
import torch
import transformers
from safetensors.torch import save_file

CLASSES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
}
LLAMA = dict(
    model_type="llama", architectures=["LlamaForCausalLM"], hidden_size=16, intermediate_size=24, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=6, vocab_size=32, max_position_embeddings=32, rms_norm_eps=1e-5,
    hidden_act="silu", tie_word_embeddings=False, attention_bias=False, mlp_bias=False,
)
QWEN3 = {**LLAMA, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
del QWEN3["mlp_bias"]
LENGTH, WINDOWS = 32, 4

out = sys.argv[1]
os.makedirs(out, exist_ok=True)
rng = numpy.random.default_rng(5)


def model(config):
    settings, network = CLASSES[config["model_type"]]
    settings = settings(**{key: value for key, value in copy.deepcopy(config).items() if key != "model_type"})
    settings._attn_implementation = "eager"
    return network(settings)


def weights(config):
    """Large queries and keys, so that positions matter."""
    drawn = {}
    for name, parameter in model(config).state_dict().items():
        scale = 0.5 if parameter.dim() == 1 else 0.6 if "q_proj" in name or "k_proj" in name else 0.35
        values = (1 if parameter.dim() == 1 else 0) + scale * rng.standard_normal(parameter.shape)
        drawn[name] = torch.tensor(values.astype(numpy.float32))
    return drawn


def loss(config):
    network = model(config)
    network.load_state_dict(drawn[config["model_type"]])
    total = 0.0
    with torch.no_grad():
        for window in range(WINDOWS):
            part = stream[window * LENGTH : window * LENGTH + LENGTH + 1]
            logits = network.eval()(part[None, :-1]).logits[0].double()
            total += torch.nn.functional.cross_entropy(logits, part[1:], reduction="sum").item()
    return total / (WINDOWS * LENGTH)


def case(name, base, **more):
    config = {**base, **more}
    losses.append(dict(name=name, weights=config["model_type"] + ".safetensors", config=config, loss=loss(config)))


def table(name, **more):
    config = {**LLAMA, **more}
    rotary = model(config).model.rotary_emb
    inv_freq = [float(value) for value in rotary.inv_freq]
    frequencies.append(dict(name=name, config=config, attention_factor=float(rotary.attention_scaling), inv_freq=inv_freq))


drawn = {name: weights(config) for name, config in (("llama", LLAMA), ("qwen3", QWEN3))}
for name, tensors in drawn.items():
    save_file(tensors, f"{out}/{name}.safetensors", metadata={"format": "pt"})
tokens = rng.integers(0, LLAMA["vocab_size"], WINDOWS * LENGTH + 1).astype("<u4")
tokens.tofile(f"{out}/tokens.bin")
stream = torch.tensor(tokens.astype(numpy.int64))
losses, frequencies = [], []

linear = dict(factor=4.0)
llama3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
yarn = dict(factor=4.0, original_max_position_embeddings=16, beta_fast=4.0, beta_slow=0.5)
plain_yarn = dict(rope_type="yarn", factor=2.0, original_max_position_embeddings=16)
theta = dict(rope_theta=100.0)


def scaled(**scaling):
    return dict(rope_theta=100.0, rope_scaling=scaling)


def parameters(**scaling):
    return dict(rope_parameters={**scaling, "rope_theta": 100.0})


case("head_dim beside hidden_size / heads", LLAMA, **theta)
case("no rope key at all", LLAMA)
case("linear, type", LLAMA, **scaled(type="linear", **linear))
case("linear, rope_type", LLAMA, **scaled(rope_type="linear", **linear))
case("linear, rope_parameters", LLAMA, **parameters(rope_type="linear", **linear))
case("llama3, rope_type", LLAMA, **scaled(rope_type="llama3", **llama3))
case("llama3, rope_parameters", LLAMA, **parameters(rope_type="llama3", **llama3))
case("yarn, type", LLAMA, **scaled(type="yarn", **yarn))
case("yarn, rope_type, defaults", LLAMA, **scaled(**plain_yarn))
case("yarn, no original length", LLAMA, **scaled(rope_type="yarn", factor=2.0))
case("yarn, factor null", LLAMA, **scaled(rope_type="yarn", factor=None, original_max_position_embeddings=16))
case("yarn, mscale", LLAMA, **scaled(rope_type="yarn", **yarn, mscale=2.0, mscale_all_dim=0.8))
case("yarn, mscale alone", LLAMA, **scaled(rope_type="yarn", **yarn, mscale=2.0))
case("yarn, attention_factor", LLAMA, **parameters(rope_type="yarn", **yarn, attention_factor=1.5))
case("qwen3", QWEN3, **theta)
unused = dict(use_sliding_window=False, sliding_window=4, max_window_layers=1)
case("qwen3, sliding_window not in use", QWEN3, **theta, **unused)
case("qwen3, yarn", QWEN3, **scaled(rope_type="yarn", **yarn))
case("qwen3, rope_parameters", QWEN3, **parameters(rope_type="default"))
case("qwen3, yarn, defaults", QWEN3, **parameters(**plain_yarn))

of_llama3 = dict(low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192, rope_type="llama3")
table("Llama 3.1 8B", head_dim=128, max_position_embeddings=131072, rope_theta=5e5, rope_scaling=dict(factor=8.0, **of_llama3))
table("Llama 3.2 1B", head_dim=64, max_position_embeddings=131072, rope_theta=5e5, rope_scaling=dict(factor=32.0, **of_llama3))
table("linear", head_dim=128, rope_theta=1e4, rope_scaling=dict(type="linear", factor=2.5))
long = dict(factor=4.0, original_max_position_embeddings=32768, rope_type="yarn")
table("yarn of long contexts", head_dim=128, max_position_embeddings=131072, rope_theta=1e6, rope_scaling=long)
mscale = dict(beta_fast=32, beta_slow=1, factor=40, mscale=1.0, mscale_all_dim=0.707)
mscale.update(original_max_position_embeddings=4096, type="yarn")
table("yarn with mscale", head_dim=64, max_position_embeddings=163840, rope_theta=1e4, rope_scaling=mscale)
ratio = dict(factor=None, original_max_position_embeddings=4096, rope_type="yarn")
table("yarn whose factor is the ratio", head_dim=128, max_position_embeddings=65536, rope_theta=1e4, rope_scaling=ratio)

versions = f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}"
with open(f"{out}/cases.json", "w") as file:
    json.dump({"made_with": versions, "losses": losses, "frequencies": frequencies}, file, indent=1)
    file.write("\n")
