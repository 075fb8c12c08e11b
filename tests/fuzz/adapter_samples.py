"""A LoRA adapter in PEFT's format for the sample model, with one mistake."""

import json
import random
import struct
from collections.abc import Callable
from typing import Any

import samples

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
RANK = 2
_DTYPES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I32": 4, "I64": 8, "U8": 1, "F8_E4M3": 1}


def config() -> dict[str, Any]:
    """With the fields that PEFT writes and Loire reads."""
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 4, "bias": "none",
        "use_rslora": False, "use_dora": False, "fan_in_fan_out": False, "modules_to_save": None,
        "rank_pattern": {"mlp.up_proj": RANK}, "alpha_pattern": {"q_proj": 8},
        "target_modules": ["q_proj", "v_proj", "up_proj"],
    }  # fmt: skip


def header() -> tuple[dict[str, Any], bytes]:
    """Both halves for three linear layers."""
    q, inner = samples.SIZE
    kv = q // samples.HEADS * samples.KV_HEADS
    outputs = {"self_attn.q_proj": q, "self_attn.v_proj": kv, "mlp.up_proj": inner}
    head: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for module, size in outputs.items():
        for half, shape in (("A", (RANK, q)), ("B", (size, RANK))):
            count = shape[0] * shape[1]
            numbers = struct.pack(f"<{count}f", *((i % 7 - 3) / 50 for i in range(count)))
            name = f"base_model.model.model.layers.0.{module}.lora_{half}.weight"
            offsets = [len(body), len(body) + len(numbers)]
            head[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": offsets}
            body += numbers
    return head, body


def changed(
    rng: random.Random, json_value: Callable[..., Any], data: Callable[..., bytes]
) -> tuple[str, dict[str, Any]]:
    """Name of the changed file, and the adapter's directory. json_value, data: of mutate.py."""
    settings: Any = config()
    head, body = header()
    whole = samples.safetensors(head, body)
    name = rng.choice((CONFIG, WEIGHTS))
    if name == CONFIG:
        if rng.random() < 0.15:
            settings = data(rng, json.dumps(settings).encode(), 10_000)
        else:
            settings = json_value(rng, settings)
    elif rng.random() < 0.3:
        whole = data(rng, whole, len(whole))
    elif rng.random() < 0.4:
        whole = samples.safetensors(json_value(rng, head), body)
    else:
        whole = samples.safetensors(_other_tensor(rng, head), body)
    return name, {CONFIG: settings, WEIGHTS: whole}


def _other_tensor(rng: random.Random, head: dict[str, Any]) -> dict[str, Any]:
    """As many bytes in another dtype and shape, or under another name."""
    name = rng.choice([name for name in head if name != "__metadata__"])
    entry = head[name]
    if rng.random() < 0.3:
        old, new = rng.choice(
            ((".lora_A", ".lora_B"), ("layers.0", "layers.1"), ("q_proj", "x"), (".weight", ""),
             (".lora_A.", ".lora_embedding_A."), ("self_attn.q_proj", "self_attn.k_proj"))
        )  # fmt: skip
        head[name.replace(old, new)] = head.pop(name)
        return head
    size = entry["data_offsets"][1] - entry["data_offsets"][0]
    entry["dtype"] = rng.choice(list(_DTYPES))
    count = size // _DTYPES[entry["dtype"]]
    entry["shape"] = rng.choice(([count], [RANK, count // RANK], [count // RANK, RANK], [0, 5]))
    return head
