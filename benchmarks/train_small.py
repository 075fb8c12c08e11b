"""Trains a small Llama in 16 bits, for measuring what fewer bits cost a model that never had them.

    python benchmarks/train_small.py OUT [--minutes 10] [--megabytes 16]

Its text is what lies on any machine with Python: the documentation in the sources of the installed
packages. Files are taken in an order of their own (by a hash of their names), and one of 40 is
kept apart: OUT/held.txt. OUT/model.gguf holds the weights in F16, in the layout of llama.cpp's
files. Rows are whole blocks of 256, as in models of usual sizes, so that llama.cpp's types fit. 4.2
million parameters, a byte-level vocabulary of 4,096; minutes are of processor time, of all threads
together.
"""

import argparse
import ast
import hashlib
import inspect
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ggml
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from gguf import GGUFValueType as Value
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY, LENGTH, BATCH = 4096, 512, 8
END = "<|endoftext|>"
SHORTEST = 200
"""Characters of a documentation that is taken."""
KEPT_APART = 40
LEARNING_RATE, WARM_UP_STEPS = 3e-3, 30
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 256, "intermediate_size": 768,
    "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
    "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
    "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "embed_tokens": "token_embd", "norm": "output_norm",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0, help="of processor time [10]")
    parser.add_argument("--megabytes", type=float, default=16.0, help="of text [16]")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    texts, held = collect(int(args.megabytes * 1e6))
    (args.out / "held.txt").write_text("\n\n".join(held))
    tokenizer = train_tokenizer(texts)
    tokens = [tokenizer.encode_batch_fast(texts[at : at + 256]) for at in range(0, len(texts), 256)]
    ids = torch.tensor([i for batch in tokens for one in batch for i in (*one.ids, 0)])
    print(f"{len(texts):,} texts, {len(ids):,} tokens; {len(held):,} are kept apart", flush=True)
    model = train(ids, args.minutes * 60)
    write(args.out / "model.gguf", model, tokenizer)


def collect(num_bytes: int) -> tuple[list[str], list[str]]:
    """Documentation to train on, and some that is kept apart."""
    paths = {
        hashlib.sha256(str(path.relative_to(root)).encode()).hexdigest(): path
        for root in map(Path, sys.path)
        if root.name == "site-packages"
        for path in root.rglob("*.py")
    }
    texts: list[str] = []
    held: list[str] = []
    seen: set[str] = set()
    left = num_bytes
    for place, name in enumerate(sorted(paths)):
        # (What stands in several files, as of generated ones, is in one of the two alone.)
        found = [text for text in documentation(paths[name]) if text not in seen]
        seen.update(found)
        (held if place % KEPT_APART == 0 else texts).extend(found)
        left -= sum(map(len, found))
        if left < 0:
            break
    return texts, held


def documentation(path: Path) -> Iterator[str]:
    """Of a module, its classes and functions."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, OSError):
        return  # a template, or a test of what is wrong
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = inspect.cleandoc(ast.get_docstring(node) or "")
            if len(text) >= SHORTEST:
                yield text


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE, pieces as GPT-2 has them."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts[:: max(1, len(texts) // 5000)], trainer)
    return tokenizer


def train(ids: torch.Tensor, seconds: float) -> LlamaForCausalLM:
    """For so many seconds of processor time."""
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES)
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1
    )
    started, step, told = time.process_time(), 0, 0.0
    while (share := (time.process_time() - started) / seconds) < 1.0:
        for group in optimizer.param_groups:
            rising = min(1.0, (step + 1) / WARM_UP_STEPS)
            group["lr"] = LEARNING_RATE * rising * 0.5 * (1.0 + math.cos(math.pi * share))
        places = torch.randint(len(ids) - LENGTH, (BATCH,)).tolist()
        batch = torch.stack([ids[at : at + LENGTH] for at in places])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if share - told > 0.05:
            told = share
            print(f"{share:4.0%}  step {step:,}  {loss.item():.3f} nats per token", flush=True)
    print(f"{step:,} steps, {step * BATCH * LENGTH:,} tokens", flush=True)
    return model.eval()


def write(path: Path, model: LlamaForCausalLM, tokenizer: Tokenizer) -> None:
    """A GGUF file in F16, norms in F32."""
    heads = {"attn_q": SIZES["num_attention_heads"], "attn_k": SIZES["num_key_value_heads"]}
    tensors = []
    for name, parameter in model.model.named_parameters():
        *layer, own = name.removesuffix(".weight").removeprefix("layers.").partition(".")
        if layer[0].isdecimal():
            short, prefix = NAMES[own], f"blk.{layer[0]}."
        else:
            short, prefix = NAMES[layer[0]], ""
        values = parameter.detach().float()
        if short in heads:
            # Pairs that are rotated together are neighbours there, half a head apart here.
            values = values.unflatten(0, (heads[short], 2, -1)).transpose(1, 2).flatten(0, 2)
        kind = Type.F32 if values.ndim == 1 else Type.F16
        tensors.append(_tensor(f"{prefix}{short}.weight", kind, values))
    vocabulary = tokenizer.get_vocab()
    merges = [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    numbers: dict[str, tuple[Any, Value]] = {
        "block_count": (SIZES["num_hidden_layers"], Value.UINT32),
        "context_length": (SIZES["max_position_embeddings"], Value.UINT32),
        "embedding_length": (SIZES["hidden_size"], Value.UINT32),
        "feed_forward_length": (SIZES["intermediate_size"], Value.UINT32),
        "attention.head_count": (SIZES["num_attention_heads"], Value.UINT32),
        "attention.head_count_kv": (SIZES["num_key_value_heads"], Value.UINT32),
        "attention.layer_norm_rms_epsilon": (SIZES["rms_norm_eps"], Value.FLOAT32),
        "rope.freq_base": (10000.0, Value.FLOAT32),
        "rope.dimension_count": (SIZES["head_dim"], Value.UINT32),
        "vocab_size": (VOCABULARY, Value.UINT32),
    }
    fields: dict[str, tuple[Any, Any, Any]] = {
        "general.architecture": ("llama", Value.STRING, None),
        "general.name": ("small, trained in 16 bits", Value.STRING, None),
        **{f"llama.{key}": (*number, None) for key, number in numbers.items()},
        "tokenizer.ggml.model": ("gpt2", Value.STRING, None),
        "tokenizer.ggml.pre": ("gpt-2", Value.STRING, None),
        "tokenizer.ggml.tokens": (sorted(vocabulary, key=vocabulary.__getitem__), Value.ARRAY,
                                  Value.STRING),
        "tokenizer.ggml.token_type": ([3, *[1] * (VOCABULARY - 1)], Value.ARRAY, Value.INT32),
        "tokenizer.ggml.merges": (merges, Value.ARRAY, Value.STRING),
        "tokenizer.ggml.bos_token_id": (0, Value.UINT32, None),
        "tokenizer.ggml.eos_token_id": (0, Value.UINT32, None),
        "tokenizer.ggml.add_bos_token": (False, Value.BOOL, None),
    }  # fmt: skip
    ggml.write(path, fields, tensors)


def _tensor(name: str, kind: Type, values: torch.Tensor) -> ggml.Tensor:
    def numbers() -> NDArray[Any]:
        return values.numpy().astype(np.float32 if kind is Type.F32 else np.float16)

    return ggml.Tensor(name, kind, tuple(values.shape), numbers)


if __name__ == "__main__":
    main()
