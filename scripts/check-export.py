#!/usr/bin/env python3
"""Loads a folder that `llama_pc export --format hf` wrote with transformers and measures its loss.

    scripts/check-export.py FOLDER TOKENS.bin [--seq-len S] [--windows N] [--loss L] [--predictions FILE]

Needs torch and transformers. The loss is over the first N windows of a file of little-endian u32 tokens, as `llama_pc eval FOLDER
--data TOKENS.bin --seq-len S` measures it; with --loss it must agree to 1e-3. --predictions saves the top-1 tokens for
scripts/check-gguf.mjs.
"""
import argparse
import json

import numpy
import torch
import transformers

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("folder")
parser.add_argument("tokens")
parser.add_argument("--seq-len", type=int, default=128)
parser.add_argument("--windows", type=int, help="all, if absent")
parser.add_argument("--loss", type=float)
parser.add_argument("--predictions")
arguments = parser.parse_args()

model = transformers.AutoModelForCausalLM.from_pretrained(arguments.folder, dtype=torch.float32).eval()
tokens = torch.from_numpy(numpy.fromfile(arguments.tokens, dtype="<u4").astype(numpy.int64))
length = arguments.seq_len
windows = (len(tokens) - 1) // length
windows = min(windows, arguments.windows or windows)
total, predictions = 0.0, []
with torch.no_grad():
    for window in range(windows):
        part = tokens[window * length : window * length + length + 1]
        logits = model(part[None, :-1]).logits[0]
        total += torch.nn.functional.cross_entropy(logits, part[1:], reduction="sum").item()
        predictions.append({"tokens": part[:-1].tolist(), "likeliest": logits.argmax(-1).tolist()})
loss = total / (windows * length)
print(f"transformers {transformers.__version__}: loss {loss:.6f} over {windows} windows of {length} tokens")
if arguments.predictions:
    with open(arguments.predictions, "w") as file:
        json.dump(predictions, file)
if arguments.loss is not None and not abs(loss - arguments.loss) <= 1e-3:
    raise SystemExit(f"the loss should be {arguments.loss}, to 1e-3")
