"""The operations once more, in float64 and as slowly as one would explain them.

Nothing here is shared with src/loire/kernels: what both agree on is the mathematics.
"""

import math

import torch
from torch import Tensor

from loire.kernels.interface import AttentionShape, RotaryTable


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x = x.double()
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight.double()


def gated_activation(gate_up: Tensor, activation: str) -> Tensor:
    half = gate_up.shape[-1] // 2
    gate, up = gate_up[..., :half].double(), gate_up[..., half:].double()
    if activation == "silu":
        return gate / (1 + (-gate).exp()) * up
    if activation == "gelu":
        return 0.5 * gate * (1 + torch.erf(gate / math.sqrt(2))) * up
    inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate.pow(3))
    return 0.5 * gate * (1 + torch.tanh(inner)) * up


def rotate(x: Tensor, rotary: RotaryTable, positions: Tensor) -> Tensor:
    """x [T, heads, D]."""
    half = rotary.cos.shape[1]
    result = x.double().clone()
    for token, position in enumerate(positions.tolist()):
        cos, sin = rotary.cos[position].double(), rotary.sin[position].double()
        first, second = x[token, :, :half].double(), x[token, :, half : 2 * half].double()
        result[token, :, :half] = first * cos - second * sin
        result[token, :, half : 2 * half] = second * cos + first * sin
    return result


def attend(queries: Tensor, keys: Tensor, values: Tensor, shape: AttentionShape) -> Tensor:
    """Queries [Q, H, D], the newest of a context of keys, values [C, K, D]; [Q, H, D]."""
    queries, keys, values = queries.double(), keys.double(), values.double()
    context = keys.shape[0]
    group = shape.num_heads // shape.num_kv_heads
    output = torch.empty_like(queries)
    for index in range(queries.shape[0]):
        position = context - queries.shape[0] + index
        first = 0 if shape.window is None else max(0, position - shape.window + 1)
        for head in range(shape.num_heads):
            seen = keys[first : position + 1, head // group]
            scores = seen @ queries[index, head] * shape.scale
            if shape.softcap is not None:
                scores = shape.softcap * torch.tanh(scores / shape.softcap)
            if shape.sinks is not None:
                scores = torch.cat([scores, shape.sinks[head : head + 1].double()])
            weights = torch.softmax(scores, dim=0)[: len(seen)]
            output[index, head] = weights @ values[first : position + 1, head // group]
    return output
