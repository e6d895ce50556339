#!/usr/bin/env python3
"""Trains small SentencePiece models of every kind on invented text, and records what Google's library makes of texts with them.

    pip install sentencepiece==0.2.3 protobuf
    scripts/sentencepiece-fixtures.py

Writes examples/llama_pc/tests/fixtures/sentencepiece/: the models, fragments.json, from which `text` below and the Rust test build the
same texts, and hashes.txt: for each model, sixteen bits of a hash of the ids of each text, in hexadecimal.
"""

import io
import json
import pathlib
import random
import tempfile

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as proto

OUT = pathlib.Path(__file__).parent.parent / "examples/llama_pc/tests/fixtures/sentencepiece"
TEXTS = 3000
SEPARATORS = ["", "", " ", " ", " ", "  ", "   ", "\n"]
FRAGMENTS = (
    "river stone kettle naïve café größe привет 日本語 日本 東京 ﬁne ﬁ ＡＢＣ ① ½ e\u0301 A\u030a \u0301 don't 12345 0 1 12 121 3.14 foo_bar "
    "the and <sep> <s </s> <s> <unk> <ctl> Q a-b ab abc abab <0x41> \u2581 \u2581\u2581 \u2581the \u00a0 \u3000 \u200b … 🦀 "
    "👨\u200d👩 か\u3099 が ㍿ ﷺ İ ẞ \x00 \x7f \r é E"
).split(" ") + ["a b", "\n", "\n\n", "\n\n\n", "\t", "\r\n", " ", "  "]
SYMBOLS = ["<sep>", "\n", "\n\n", "0", "1", "12", "<s", "a b", " ", "  ", "\u2581\u2581", "ﬁ", "日本"]
WORDS = "river stone market kettle paper naïve café größe привет мир 日本語 東京 don't 12345 3.14 C++ foo_bar the and of in to".split()

# Replacements: several characters to one, one to several, to nothing, to spaces, overlapping; and cases folded.
MAP = {"ﬁ": "fi", "½": "1⁄2", "e\u0301": "é", "A\u030a": "Å", "\u200b": "", "…": "...", "㍿": "株式会社", "ab": "x y", "abc": "Z"}
MAP |= {"か\u3099": "が", "①": "1", "ﷺ": "a b  c"} | {space: " " for space in ["\u00a0", "\u3000", "\t", "\r\n", "\n", "\r"]}
MAP |= {chr(0xFF21 + i): chr(ord("A") + i) for i in range(26)}
FOLD = MAP | {chr(ord("A") + i): chr(ord("a") + i) for i in range(26)} | {"ẞ": "ss", "İ": "i\u0307"}


def train(lines, rules=None, **options):
    """A model without what encoding does not need, such as paths."""
    out, codes = io.BytesIO(), lambda text: " ".join(f"{ord(c):X}" for c in text)
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as file:
        if rules:
            file.write("".join(f"{codes(left)}\t{codes(right)}\n" for left, right in rules.items()))
            file.flush()
            options["normalization_rule_tsv"] = file.name
        else:
            options["normalization_rule_name"] = "identity"
        options = {"vocab_size": 180, "character_coverage": 0.99, "hard_vocab_limit": False} | options
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=out, minloglevel=2, num_threads=1, **options
        )
    model = proto.ModelProto.FromString(out.getvalue())
    keep = ["model_type", "byte_fallback", "treat_whitespace_as_suffix", "bos_piece", "eos_piece"]
    spec = proto.TrainerSpec(**{key: getattr(model.trainer_spec, key) for key in keep})
    model.trainer_spec.CopyFrom(spec)
    model.normalizer_spec.name = ""
    model.normalizer_spec.ClearField("normalization_rule_tsv")
    model.ClearField("denormalizer_spec")
    return model


def models():
    rng = random.Random(20261127)

    def line():
        words = (rng.choice(WORDS) + rng.choice(["", "", ",", ".", "<sep>"]) for _ in range(rng.randint(3, 10)))
        return rng.choice([" ", " ", "  "]).join(words)

    lines = [line() for _ in range(1500)]
    for kind in ["bpe", "unigram"]:
        yield f"{kind}_bytes", train(lines, MAP, model_type=kind, byte_fallback=True, vocab_size=420)
        yield f"{kind}_fold_symbols", train(lines, FOLD, model_type=kind, user_defined_symbols=SYMBOLS)
        plain = {"remove_extra_whitespaces": False, "add_dummy_prefix": False, "control_symbols": ["<ctl>", "Q"]}
        yield f"{kind}_keep_symbols", train(lines, model_type=kind, user_defined_symbols=SYMBOLS, **plain)
        ends = {"bos_piece": "[B]", "eos_piece": "[E]", "user_defined_symbols": ["<sep>"]}
        yield f"{kind}_suffix", train(lines, MAP, model_type=kind, treat_whitespace_as_suffix=True, **ends)
        across = {"split_by_whitespace": False, "remove_extra_whitespaces": False, "vocab_size": 250}
        model = train(lines, model_type=kind, **across)
        for piece in model.pieces:
            if piece.type == piece.NORMAL and rng.random() < 0.25:
                piece.type = piece.UNUSED
            elif piece.type == piece.NORMAL and rng.random() < 0.3:
                piece.score = round(piece.score)
        yield f"{kind}_unused_ties", model
    for kind in ["word", "char"]:
        yield kind, train(lines, MAP, model_type=kind, user_defined_symbols=["<sep>", "12"])


def text(index):
    state = index

    def below(n):
        nonlocal state
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (state >> 33) % n

    below(1)
    return "".join(SEPARATORS[below(len(SEPARATORS))] + FRAGMENTS[below(len(FRAGMENTS))] for _ in range(below(10)))


def hash16(ids):
    state = 0xCBF29CE484222325
    for number in ids:
        state = ((state ^ number) * 0x100000001B3) % 2**64
    return f"{(state >> 40) & 0xFFFF:04x}"


OUT.mkdir(parents=True, exist_ok=True)
(OUT / "fragments.json").write_text(json.dumps({"separators": SEPARATORS, "fragments": FRAGMENTS}) + "\n")
with open(OUT / "hashes.txt", "w") as hashes:
    for name, model in models():
        (OUT / f"{name}.model").write_bytes(model.SerializeToString())
        processor = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
        found = [hash16(processor.encode(text(index))) for index in range(TEXTS)]
        hashes.write(f"{name} {''.join(found)}\n")
