"""What each engine reads for a format, made from the Hugging Face directory when it is missing."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Format = Literal["bf16", "int8", "int4"]

GGUF_TYPE: dict[Format, str] = {"bf16": "bf16", "int8": "Q8_0", "int4": "Q4_0"}
OPENVINO_FORMAT: dict[Format, str] = {"bf16": "fp16", "int8": "int8", "int4": "int4"}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a model lies in a form that one engine reads, and what to call that form."""

    path: Path
    label: str


def for_vllm(model: Path, prepared: Path, number_format: Format) -> Checkpoint:
    """The directory itself, or one in the compressed-tensors format (W8A8, W4A16)."""
    if number_format == "bf16":
        return Checkpoint(model, "bf16")
    label = {"int8": "W8A8", "int4": "W4A16"}[number_format]
    target = prepared / f"vllm-{label.lower()}"
    bits = {"int8": 8, "int4": 4}[number_format]
    _make(target, lambda out: _write_compressed(model, out, bits))
    return Checkpoint(target, label)


def for_openvino(model: Path, prepared: Path, number_format: Format, python: Path) -> Checkpoint:
    """An export by optimum-cli; its 4 bits are symmetric in groups of 64, in every layer."""
    name = OPENVINO_FORMAT[number_format]
    target = prepared / f"openvino-{name}"
    command = [
        str(python.parent / "optimum-cli"), "export", "openvino", "--model", str(model),
        "--task", "text-generation-with-past", "--weight-format", name,
    ]  # fmt: skip
    if name == "int4":
        command += ["--group-size", "64", "--ratio", "1.0", "--sym"]
    _make(target, lambda out: _run([*command, str(out)]))
    return Checkpoint(target, name)


def for_llama_cpp(gguf: Path, prepared: Path, number_format: Format, binaries: Path) -> Checkpoint:
    """The GGUF file in bf16, or what llama-quantize makes of it (Q8_0, Q4_0)."""
    name = GGUF_TYPE[number_format]
    if number_format == "bf16":
        return Checkpoint(gguf, name)
    target = prepared / f"{name}.gguf"
    command = [str(binaries / "llama-quantize"), "--pure", "--token-embedding-type", "Q8_0"]
    _make(target, lambda out: _run([*command, str(gguf), str(out), name]))
    return Checkpoint(target, name)


def _make(target: Path, write: Callable[[Path], None]) -> None:
    """Write into a name of its own first: an interrupted run leaves nothing half made behind."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f"unfinished-{os.getpid()}-{target.name}")
    print(f"making {target}", flush=True)
    write(unfinished)
    unfinished.rename(target)


def _run(command: list[str]) -> None:
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode != 0:
        raise RuntimeError(
            f"{' '.join(command)} ended with status {finished.returncode}:\n"
            f"{finished.stderr[-2000:]}"
        )


def _write_compressed(model: Path, out: Path, bits: int) -> None:
    """Round every matrix but the embedding and the head, as compressed-tensors lays them out.

    8 bits: a scale per output, activations to 8 bits per token while it runs. 4 bits: a scale
    per 128 inputs (64 or 32 where the width asks for it), eight codes in a 32-bit word, the
    first in the lowest bits, each code plus 8.
    """
    import torch
    from safetensors.torch import load_file, save_file

    out.mkdir(parents=True)
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(model.glob("*.safetensors")):
        tensors |= load_file(file)
    rounded = [
        name
        for name, tensor in tensors.items()
        if name.endswith("_proj.weight") and tensor.dim() == 2
    ]
    width = min(tensors[name].shape[1] & -tensors[name].shape[1] for name in rounded)
    group = min(width, 128)
    for name in rounded:
        weight = tensors.pop(name).float()
        module = name.removesuffix(".weight")
        if bits == 8:
            scale = (weight.abs().amax(1, keepdim=True) / 127).clamp(min=1e-8)
            tensors[name] = (weight / scale).round().to(torch.int8)
        else:
            rows, columns = weight.shape
            blocks = weight.view(rows, columns // group, group)
            scale = (blocks.abs().amax(2) / 7).clamp(min=1e-8)
            codes = ((blocks / scale[..., None]).round().clamp(-8, 7) + 8).to(torch.int64)
            shifts = torch.arange(0, 32, 4)
            words = (codes.view(rows, columns // 8, 8) << shifts).sum(2)
            tensors[f"{module}.weight_packed"] = words.to(torch.int32)
            tensors[f"{module}.weight_shape"] = torch.tensor([rows, columns])
        tensors[f"{module}.weight_scale"] = scale.bfloat16()
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = _compressed_config(bits, group)
    (out / "config.json").write_text(json.dumps(config, indent=1))
    for file in model.iterdir():
        if file.suffix in {".json", ".jinja"} and file.name != "config.json":
            shutil.copy(file, out / file.name)


def _compressed_config(bits: int, group: int) -> dict[str, object]:
    weights: dict[str, object] = {
        "num_bits": bits, "type": "int", "symmetric": True, "dynamic": False,
        "strategy": "channel" if bits == 8 else "group",
    }  # fmt: skip
    if bits == 4:
        weights["group_size"] = group
    activations = {
        "num_bits": 8, "type": "int", "symmetric": True, "dynamic": True, "strategy": "token",
    }  # fmt: skip
    scheme = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": activations if bits == 8 else None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized" if bits == 8 else "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": scheme},
        "ignore": ["lm_head"],
    }
