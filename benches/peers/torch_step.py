"""The step and the products of this benchmark in PyTorch on the CPU, as a peer that `cargo bench` in this folder talks to.

Standard input: a line of JSON {"config", "tensors": [[name, shape], ...], "tokens"}, the tensors' float32 values in that order, then
inputs and targets as uint32; after that commands, a line each, each answered by a line:
    step                          one AdamW step; answers the loss before it
    multiply ROWS INNER COLUMNS N N products x·wᵀ; answers the first and last element
"""

import json
import os
import sys

import torch
import torch.nn.functional as F


def read(count, dtype):
    size = 4 * count
    data = sys.stdin.buffer.read(size)
    if len(data) != size:
        sys.exit("torch_step.py: the input ends early")
    return torch.frombuffer(bytearray(data), dtype=dtype)


def rms_norm(x, weight, eps):
    return weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


class Step:
    def __init__(self, header):
        self.config = header["config"]
        self.weights = {
            name: torch.nn.Parameter(read(torch.Size(shape).numel(), torch.float32).reshape(shape))
            for name, shape in header["tensors"]
        }
        self.inputs, self.targets = (read(header["tokens"], torch.int32).long() for _ in range(2))
        c = self.config
        half = c["dim"] // c["heads"] // 2
        angles = torch.arange(c["seq_len"], dtype=torch.float64)[:, None] * c["theta"] ** (
            -torch.arange(half, dtype=torch.float64) / half
        )
        self.cos, self.sin = angles.cos().float(), angles.sin().float()
        self.optimizer = torch.optim.AdamW(
            self.weights.values(), lr=c["lr"], betas=c["betas"], eps=c["eps"], weight_decay=c["weight_decay"], fused=True
        )

    def rotary(self, x):
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * self.cos - b * self.sin, b * self.cos + a * self.sin), dim=-1)

    def heads(self, x):
        return x.view(-1, self.config["seq_len"], self.config["heads"], x.shape[-1] // self.config["heads"]).transpose(1, 2)

    def loss(self):
        c, w = self.config, self.weights
        x = F.embedding(self.inputs, w["model.embed_tokens.weight"])
        for layer in range(c["layers"]):
            block = lambda name: w[f"model.layers.{layer}.{name}.weight"]
            h = rms_norm(x, block("input_layernorm"), c["norm_eps"])
            q, k, v = (self.heads(F.linear(h, block(f"self_attn.{name}_proj"))) for name in "qkv")
            o = F.scaled_dot_product_attention(self.rotary(q), self.rotary(k), v, is_causal=True)
            x = x + F.linear(o.transpose(1, 2).reshape(x.shape), block("self_attn.o_proj"))
            h = rms_norm(x, block("post_attention_layernorm"), c["norm_eps"])
            x = x + F.linear(
                F.silu(F.linear(h, block("mlp.gate_proj"))) * F.linear(h, block("mlp.up_proj")), block("mlp.down_proj")
            )
        x = rms_norm(x, w["model.norm.weight"], c["norm_eps"])
        head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
        return F.cross_entropy(F.linear(x, head), self.targets)

    def step(self):
        self.optimizer.zero_grad()
        total = 0.0
        for _ in range(self.config["micro_batches"]):
            loss = self.loss() / self.config["micro_batches"]
            loss.backward()
            total += loss.item()
        self.optimizer.step()
        return total


def multiply(operands, rows, inner, columns, calls):
    shape = (rows, inner, columns)
    if shape not in operands:
        values = lambda count, seed: (torch.arange(count, dtype=torch.int64) * 7919 + seed) % 1009 / 504.5 - 1.0
        operands[shape] = values(rows * inner, 1).reshape(rows, inner), values(columns * inner, 2).reshape(columns, inner)
    x, w = operands[shape]
    for _ in range(calls):
        product = x @ w.T
    return f"{product[0, 0].item()} {product[-1, -1].item()}"


def main():
    torch.set_num_threads(os.cpu_count())
    step = Step(json.loads(sys.stdin.buffer.readline()))
    operands = {}
    print("ready", torch.__version__, flush=True)
    for line in sys.stdin.buffer:
        command, *numbers = line.decode().split()
        print(step.step() if command == "step" else multiply(operands, *map(int, numbers)), flush=True)


main()
