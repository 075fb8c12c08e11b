"""quantization_config of config.json: by what method the weights of a checkpoint are quantized.

Which of them are, in how many bits and groups, the tensors themselves tell (quantized_tensors.py):
modules that the configuration says were left alone hold plain weights.

Specifications: https://github.com/vllm-project/compressed-tensors (docs, and the compressors),
https://github.com/casper-hansen/AutoAWQ, https://github.com/ModelCloud/GPTQModel, and transformers'
quantizers for FP8.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from loire.base.errors import UnsupportedModelError
from loire.checkpoint.fields import Fields

Method = Literal["compressed-tensors", "fp8", "awq", "gptq"]
_KEYS = ("quantization_config", "compression_config")
_METHODS: dict[str, Method] = {
    "compressed-tensors": "compressed-tensors",
    "fp8": "fp8",
    "fbgemm_fp8": "fp8",
    "awq": "awq",
    "gptq": "gptq",
}
_COMPRESSED_FORMATS = ("dense", "float-quantized", "int-quantized", "mixed-precision",
                       "naive-quantized", "pack-quantized")  # fmt: skip
_READ = (
    "Loire reads compressed-tensors, FP8, AWQ and GPTQ from safetensors, and GGUF files; use one "
    "of these or the unquantized model"
)


@dataclass(frozen=True, slots=True)
class QuantizationConfig:
    """What a configuration says of the weights, as far as the tensors do not."""

    method: Method
    bits: int = 0
    """Of AWQ and GPTQ."""
    group_size: int = 0
    """Inputs that share a scale in AWQ and GPTQ; 0: all."""
    symmetric: bool = False
    """GPTQ: whether all zero points are the middle."""
    zero_offset: int = 0
    """GPTQ: what is added to the zero points that are stored."""


def parse(config: Mapping[str, Any], source: str) -> QuantizationConfig | None:
    """From a parsed config.json; None where nothing is quantized.

    Raises UnsupportedModelError for what Loire does not read, CheckpointError for nonsense.
    """
    found = _section(config, source)
    if found is None:
        return None
    name = found.text("quant_method", "unknown")
    if name == "mxfp4":  # its tensors say all of it (mxfp4.py)
        return None
    if name == "bitsandbytes":
        raise UnsupportedModelError(
            f"{found.source}: the weights are quantized by bitsandbytes, in tables that are made "
            f"for its CUDA kernels; {_READ}"
        )
    if name not in _METHODS:
        raise UnsupportedModelError(
            f"{found.source}: the weights are quantized by {name[:40]!r}; {_READ}"
        )
    method = _METHODS[name]
    if method == "compressed-tensors":
        _check_compressed(found)
    if method == "awq":
        return _awq(found)
    if method == "gptq":
        return _gptq(found)
    return QuantizationConfig(method)


def _section(config: Mapping[str, Any], source: str) -> Fields | None:
    """Models of text and vision have it inside or outside their text_config."""
    text = config.get("text_config")
    for place in (config, text if isinstance(text, Mapping) else {}):
        for key in _KEYS:
            if place.get(key):
                return Fields(place, source).section(key)
    return None


def _check_compressed(found: Fields) -> None:
    fmt = found.text("format", "dense")
    sparsity = found.values.get("sparsity_config")
    sparse = sparsity.get("format", "dense") if isinstance(sparsity, Mapping) else "dense"
    for given, known in ((fmt, _COMPRESSED_FORMATS), (sparse, ("dense",))):
        if given not in known:
            raise UnsupportedModelError(
                f"{found.source}: compressed-tensors format {str(given)[:40]!r} is not read; "
                f"Loire knows {', '.join(known)}"
            )


def _awq(found: Fields) -> QuantizationConfig:
    bits = found.integer("bits", found.values.get("w_bit", 4), high=8)
    version = found.text("version", "gemm").lower()
    if bits != 4 or version != "gemm":
        raise UnsupportedModelError(
            f"{found.source}: AWQ in {bits} bits, version {version[:40]!r}, is not read; "
            f"Loire knows 4 bits, version 'gemm'"
        )
    default = found.values.get("q_group_size", 128)
    return QuantizationConfig("awq", bits=4, group_size=_group_size(found, default))


def _gptq(found: Fields) -> QuantizationConfig:
    bits = found.integer("bits", high=8)
    fmt = found.text("checkpoint_format", found.values.get("format") or "gptq").lower()
    if bits not in (2, 4, 8) or fmt not in ("gptq", "gptq_v2"):
        raise UnsupportedModelError(
            f"{found.source}: GPTQ in {bits} bits, format {fmt[:40]!r}, is not read; "
            f"Loire knows 2, 4 and 8 bits, formats 'gptq' and 'gptq_v2'"
        )
    dynamic = found.values.get("dynamic")
    others = [key for key in dynamic if not str(key).startswith("-:")] if dynamic else []
    if others:
        raise UnsupportedModelError(
            f"{found.source}: modules are quantized in several ways ({str(others[0])[:60]!r}), "
            f"which Loire does not read from GPTQ"
        )
    return QuantizationConfig(
        "gptq",
        bits=bits,
        group_size=_group_size(found, 128),
        symmetric=found.flag("sym", True),
        zero_offset=1 if fmt == "gptq" else 0,
    )


def _group_size(found: Fields, default: Any) -> int:
    """-1 means one group."""
    size = found.integer("group_size", default, low=-1)
    return max(size, 0)
