"""Plans as text for people and as values for JSON."""

import math
from collections.abc import Sequence

from loire.base.cache_geometry import CacheGeometry, CacheGroup
from loire.base.config import KV_MEMORY_SHARE
from loire.planning.capacity import CapacityPlan
from loire.planning.choices import Variant
from loire.planning.known_models import KnownModel, similar_models
from loire.planning.model_size import KV_FORMATS

BAR_WIDTH = 60
_SHADES = {
    "weights": ("█", "#", "34"),
    "adapters": ("▓", "=", "35"),
    "activations": ("▒", "+", "33"),
    "KV cache": ("░", ".", "32"),
}
"""Part of the memory -> its character, the same in ASCII, its ANSI colour."""


def render(plan: CapacityPlan, choice: Variant, *, color: bool, unicode: bool) -> str:
    """One plan, in full."""
    count = f"{plan.tensor_parallel} x " if plan.tensor_parallel > 1 else ""
    lines = [
        f"{plan.model.name} in {format_name(choice)} on {count}{plan.device.label}",
        "",
        *_memory_lines(plan, color, unicode),
        "",
        *_room_lines(plan),
        "",
        *_speed_lines(plan),
    ]
    if plan.device.is_cpu:
        lines += [
            "",
            "This counts all memory; without --kv-cache-memory an engine takes "
            f"{KV_MEMORY_SHARE:.0%} of what is free.",
        ]
    peers = comparison(plan, choice)
    if peers:
        lines += ["", "KV of real models of that size, in the same memory"]
        lines += [
            _row(
                known.name,
                f"{known_bytes / 1e3:,.1f} kB",
                f"({known_bytes / 2**10:,.0f} KiB) {tokens:,} tokens, "
                f"{tokens / plan.load.window:,.1f} requests; {_heads(known)}",
            )
            for known, known_bytes, tokens in peers
        ]
    return "\n".join(lines)


def format_name(choice: Variant) -> str:
    """Format of the weights, and of the KV where it is another."""
    weights = choice.dtype
    if choice.bits is not None:
        weights = f"{choice.bits:g} bits per weight ({choice.dtype})"
    if choice.quantization is not None:
        weights = f"{choice.quantization} ({choice.dtype})"
    if choice.kv_dtype not in (None, choice.dtype):
        weights += f", KV in {choice.kv_dtype}"
    return weights


def _memory_lines(plan: CapacityPlan, color: bool, unicode: bool) -> list[str]:
    model = plan.model
    bits = (model.weight_bytes - model.repeated_bytes) * 8 / model.num_parameters
    weights = f"{_parameters(model.num_parameters)} x {bits:.1f} bits"
    if model.repeated_bytes:
        weights += f", the embedding ({_gb(model.repeated_bytes)}) a second time as packed head"
    activations = "largest tensors of a step" if plan.activation_bytes else "nothing reserved"
    if plan.kv_memory_bytes > 0:
        kv = f"{plan.kv_capacity_tokens:,} tokens of {_size(plan.kv_bytes_per_token)}"
        geometry = model.geometry
        if geometry is not None:
            window = plan.load.window
            kv = (
                f"{plan.kv_capacity_tokens:,} tokens in requests of {window:,}, "
                f"{_size(plan.kv_held_bytes(window))} each: {_groups(geometry)}"
            )
    else:
        kv = f"none left: weights and activations exceed the memory by {_gb(-plan.kv_memory_bytes)}"
    parts = [
        ("weights", plan.weight_bytes, weights),
        *([("adapters", plan.adapter_bytes, "LoRA")] if plan.adapter_bytes else []),
        ("activations", plan.activation_bytes, activations),
        ("KV cache", max(plan.kv_memory_bytes, 0), kv),
    ]
    lines = [f"memory {_gb(plan.memory_bytes)}  ({plan.device.source})"]
    lines.append("  " + _bar([(name, size) for name, size, _ in parts], color, unicode))
    for name, size, note in parts:
        shade = _paint(name, _SHADES[name][0 if unicode else 1], color)
        share = size / plan.memory_bytes
        lines.append(f"  {shade} {name:<14}{_gb(size):>12} {share:>7.1%}   {note}")
    if plan.rank is not None:
        lines.append(
            f"  each of {plan.tensor_parallel} processes holds weights of "
            f"{_gb(plan.rank.weight_bytes)} and {_size(plan.rank.kv_bytes_per_token)} of KV per "
            f"token"
        )
    return lines


def _groups(geometry: CacheGeometry) -> str:
    """What a page holds of each cache group, and how much of it nothing."""
    parts = [_group(group) for group in geometry.groups]
    return f"pages of {' or '.join(parts)}, padding {geometry.padding:.1%}"


def _group(group: CacheGroup) -> str:
    if group.kind == "state":
        return (
            f"a part of the {_size(group.state_bytes)} that {len(group.layers)} layers keep of a "
            f"sequence, whatever its length ({group.pages_per_state} pages)"
        )
    window = "" if group.window is None else f" (window {group.window:,})"
    return f"{len(group.layers)} layers x {group.block_size} tokens{window}"


def _bar(parts: Sequence[tuple[str, int]], color: bool, unicode: bool) -> str:
    total = max(sum(size for _, size in parts), 1)
    text, start, seen = "", 0, 0
    for name, size in parts:
        seen += size
        end = round(BAR_WIDTH * seen / total)
        text += _paint(name, _SHADES[name][0 if unicode else 1] * (end - start), color)
        start = end
    return text


def _paint(name: str, text: str, color: bool) -> str:
    return f"\x1b[{_SHADES[name][2]}m{text}\x1b[0m" if color and text else text


def _room_lines(plan: CapacityPlan) -> list[str]:
    load = plan.load
    requests = plan.concurrent_requests
    whole = f"about {round(requests):,}; {math.floor(requests):,} if all fill their window"
    lines = ["requests at once", _row(f"of {load.window:,} tokens", f"{requests:,.1f}", whole)]
    if load.peak_tokens != load.window:
        lengths = f"of {load.prompt:,} + {load.output:,} tokens"
        lines.append(_row(lengths, f"{plan.max_batch:,}", "each at its full length"))
    return lines


def _speed_lines(plan: CapacityPlan) -> list[str]:
    device, load, batch = plan.device, plan.load, max(plan.max_batch, 1)
    bandwidth, flops = device.bandwidth_bytes_per_s, device.flops
    reach = "unknown" if bandwidth is None else f"{bandwidth / 1e9:,.0f} GB/s"
    compute = "unknown" if flops is None else f"{flops / 1e12:,.1f} TFLOP/s"
    lines = [f"limits of speed  (bandwidth {reach}, throughput {compute} per device)"]
    if bandwidth is None or flops is None:
        given = [("--bandwidth", bandwidth), ("--flops", flops)]
        missing = " and ".join(flag for flag, value in given if value is None)
        lines.append(f"  for what is unknown, give {missing}")
    context = f"{load.mean_context:,.0f}"
    step_gb = _gb(plan.model.step_weight_bytes)
    lines.append(
        _row(
            "decode, 1 request",
            _rate(plan.decode_tokens_per_s_limit),
            f"a step reads {step_gb} of weights; KV left aside",
        )
    )
    if plan.fits:
        bound = decode_bound(plan, batch)
        lines.append(
            _row(
                f"decode, {batch:,} request{'s' if batch > 1 else ''}",
                _rate(plan.batch_tokens_per_s_limit(batch)),
                f"in all, at a context of {context}" + (f"; bound by {bound}" if bound else ""),
            )
        )
    lines.append(_row(f"prefill of {load.prompt:,}", _seconds(plan.prefill_s_limit), "per prompt"))
    lines.append(
        _row("break-even batch", _batch(plan.break_even_batch), "below it weights are the limit")
    )
    note = f"with the KV of {context} tokens each"
    if plan.break_even_batch_with_kv == math.inf:
        note += ": reading it always takes longer"
    lines.append(_row("", _batch(plan.break_even_batch_with_kv), note))
    return lines


def decode_bound(plan: CapacityPlan, batch: int) -> str | None:
    """Which of the two limits a decode step: "memory" or "compute"; None if unknown."""
    memory, compute = plan.decode_memory_s(batch), plan.decode_compute_s(batch)
    if memory is None or compute is None:
        return None
    return "memory" if memory >= compute else "compute"


def comparison(plan: CapacityPlan, choice: Variant) -> list[tuple[KnownModel, int, int]]:
    """Real models of the plan's size: with their KV bytes per token and the tokens that fit.

    Only for a model given by hand: one that is there has its own figure.
    """
    if plan.model.description is not None or plan.kv_memory_bytes <= 0:
        return []
    fmt = KV_FORMATS[choice.dtype]
    found = []
    for known in similar_models(plan.model.num_parameters):
        kv_bytes = known.kv_bytes_per_token(fmt.bits_per_element / 8)
        found.append((known, kv_bytes, plan.kv_memory_bytes // kv_bytes))
    return found


def render_side_by_side(plans: Sequence[tuple[Variant, CapacityPlan]]) -> str:
    """Several plans as the rows of a table."""
    header = ("device", "weights in", "window", "weights", "KV", "tokens", "requests",
              "1 request", "full batch")  # fmt: skip
    rows = [
        (
            (f"{plan.tensor_parallel} x " if plan.tensor_parallel > 1 else "") + plan.device.name,
            format_name(choice),
            f"{plan.load.window:,}",
            _gb(plan.weight_bytes),
            _gb(plan.kv_memory_bytes) if plan.kv_memory_bytes > 0 else "none",
            f"{plan.kv_capacity_tokens:,}",
            f"{plan.concurrent_requests:,.1f}",
            _rate(plan.decode_tokens_per_s_limit),
            _rate(plan.batch_tokens_per_s_limit(plan.max_batch)) if plan.fits else "does not fit",
        )
        for choice, plan in plans
    ]
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, *rows)
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def to_json(plan: CapacityPlan, choice: Variant) -> dict[str, object]:
    """All figures of a plan under plain names; unknown is None."""
    batch = plan.max_batch
    with_kv = plan.break_even_batch_with_kv
    return {
        "model": plan.model.name,
        "device": plan.device.name,
        "tensor_parallel": plan.tensor_parallel,
        "dtype": choice.dtype,
        "quantization": choice.quantization,
        "kv_dtype": None if plan.model.description is None else choice.kv_dtype or choice.dtype,
        "fits": plan.fits,
        "memory_bytes": plan.memory_bytes,
        "bandwidth_bytes_per_s": plan.device.bandwidth_bytes_per_s,
        "flops": plan.device.flops,
        "num_parameters": plan.model.num_parameters,
        "weights_bytes": plan.weight_bytes,
        "rank_weights_bytes": None if plan.rank is None else plan.rank.weight_bytes,
        "rank_kv_bytes_per_token": None if plan.rank is None else plan.rank.kv_bytes_per_token,
        "step_weights_bytes": plan.model.step_weight_bytes,
        "bits": choice.bits,
        "adapter_bytes": plan.adapter_bytes,
        "activation_bytes": plan.activation_bytes,
        "kv_memory_bytes": plan.kv_memory_bytes,
        "kv_bytes_per_token": plan.kv_bytes_per_token,
        "kv_capacity_tokens": plan.kv_capacity_tokens,
        "window": plan.load.window,
        "prompt": plan.load.prompt,
        "output": plan.load.output,
        "concurrent_requests": plan.concurrent_requests,
        "max_batch": batch,
        "decode_tokens_per_s_limit": plan.decode_tokens_per_s_limit,
        "batch_decode_tokens_per_s_limit": plan.batch_tokens_per_s_limit(batch),
        "batch_decode_bound": decode_bound(plan, batch) if plan.fits else None,
        "prefill_s_limit": plan.prefill_s_limit,
        "break_even_batch": plan.break_even_batch,
        "break_even_batch_with_kv": None if with_kv == math.inf else with_kv,
        "always_memory_bound": None if with_kv is None else with_kv == math.inf,
        "comparison": [
            {
                "model": known.name,
                "kv_bytes_per_token": kv_bytes,
                "kv_capacity_tokens": tokens,
                "concurrent_requests": tokens / plan.load.window,
            }
            for known, kv_bytes, tokens in comparison(plan, choice)
        ],
    }


def _row(label: str, value: str, note: str) -> str:
    return f"  {label:<26}{value:>16}   {note}".rstrip()


def _heads(known: KnownModel) -> str:
    if known.grouped:
        return f"GQA: {known.num_kv_heads} KV heads for {known.num_heads} query heads"
    return f"a KV head for each of {known.num_heads} query heads"


def _parameters(count: int) -> str:
    return f"{count / 1e9:,.2f} billion" if count >= 10**9 else f"{count / 1e6:,.1f} million"


def _gb(num_bytes: float) -> str:
    digits = 1 if abs(num_bytes) >= 10**10 else 2 if abs(num_bytes) >= 10**9 or not num_bytes else 3
    return f"{num_bytes / 1e9:,.{digits}f} GB"


def _size(num_bytes: int) -> str:
    if num_bytes >= 10**6:
        return f"{num_bytes / 1e6:,.2f} MB"
    return f"{num_bytes / 1e3:,.1f} kB"


def _rate(value: float | None) -> str:
    return (
        "unknown"
        if value is None
        else f"{value:,.0f} tok/s"
        if value >= 100
        else f"{value:.1f} tok/s"
    )


def _seconds(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:,.2f} s" if value >= 1 else f"{value * 1e3:,.1f} ms"


def _batch(value: float | None) -> str:
    if value is None:
        return "unknown"
    return "never" if value == math.inf else f"{value:,.0f}"
