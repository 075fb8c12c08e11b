"""quantization_config of config.json: by what method the weights of a checkpoint are quantized.

Which of them are, in how many bits and groups, the tensors themselves tell (quantized_tensors.py):
modules that the configuration says were left alone hold plain weights.

Specifications: https://github.com/vllm-project/compressed-tensors (docs, and the compressors),
https://github.com/casper-hansen/AutoAWQ, https://github.com/ModelCloud/GPTQModel,
https://github.com/intel/auto-round, https://github.com/NVIDIA/Model-Optimizer (its export to
unified Hugging Face checkpoints), and transformers' quantizers for FP8.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from loire.base.errors import UnsupportedModelError
from loire.checkpoint.fields import Fields
from loire.checkpoint.json_file import read_json

Method = Literal["compressed-tensors", "fp8", "awq", "gptq"]
_KEYS = ("quantization_config", "compression_config")
_BESIDE = {"hf_quant_config.json": "modelopt", "quantize_config.json": "gptq",
           "quant_config.json": "awq"}  # fmt: skip
"""Files in which it stands where config.json says nothing (ModelOpt, and older AutoGPTQ and
AutoAWQ), and whose they are."""
_COMPRESSED_FORMATS = ("dense", "float-quantized", "int-quantized", "mixed-precision",
                       "mxfp4-pack-quantized", "mxfp8-quantized", "naive-quantized",
                       "nvfp4-pack-quantized", "pack-quantized")  # fmt: skip
_MODELOPT = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "MXFP8", "NVFP4", "W4A16_NVFP4")
_READ = (
    "Loire reads compressed-tensors, FP8, AWQ, GPTQ, AutoRound and ModelOpt's FP8 and NVFP4 from "
    "safetensors, and GGUF files; use one of these or the unquantized model"
)
_NOT_READ = {
    "aqlm": "AQLM, as sums of entries of codebooks",
    "bitnet": "BitNet, in two bits for kernels of its own",
    "bitsandbytes": "bitsandbytes, in tables that are made for its CUDA kernels",
    "eetq": "EETQ, in the order that its CUDA kernels want",
    "exl2": "ExLlamaV2, in the order that its CUDA kernels want",
    "exl3": "ExLlamaV3, as paths through a trellis",
    "fp_quant": "FP-Quant, rotated before they were rounded",
    "higgs": "HIGGS, rotated before they were rounded",
    "hqq": "HQQ, with zero points that are no whole numbers",
    "mlx": "MLX, with minimums of 16 bits in words of its own",
    "quanto": "Quanto, in tensors of its own kind",
    "quark": "Quark, whose files differ by its version",
    "sinq": "SINQ, with scales of rows and of columns",
    "spqr": "SpQR, with single weights apart",
    "torchao": "torchao, in tensors of its own kind",
    "vptq": "VPTQ, as entries of codebooks",
}
"""Methods that somebody may well have files of, and what is in the way."""


@dataclass(frozen=True, slots=True)
class QuantizationConfig:
    """What a configuration says of the weights, as far as the tensors do not."""

    method: Method
    bits: int = 0
    """Of AWQ and GPTQ; 0: each weight has its own, as its tensors tell."""
    group_size: int = 0
    """Inputs that share a scale in AWQ and GPTQ; 0: all."""
    symmetric: bool = False
    """GPTQ: whether all zero points are the middle."""
    zero_offset: int = 0
    """GPTQ: what is added to the zero points that are stored."""


def of_directory(
    directory: Path, config: Mapping[str, Any], source: str
) -> QuantizationConfig | None:
    """As parse(); where config.json says nothing, by the file beside it that does."""
    if _section(config, source) is None:
        for name, method in _BESIDE.items():
            if (directory / name).exists():
                return _parsed(Fields(read_json(directory / name), str(directory / name)), method)
    return parse(config, source)


def parse(config: Mapping[str, Any], source: str) -> QuantizationConfig | None:
    """From a parsed config.json; None where nothing is quantized.

    Raises UnsupportedModelError for what Loire does not read, CheckpointError for nonsense.
    """
    found = _section(config, source)
    if found is not None and not _only_leaves_alone(found):
        return _parsed(found, _method(found, config))
    if isinstance(config.get("quantization"), Mapping):
        raise _refused(source, "mlx")
    return None


def _section(config: Mapping[str, Any], source: str) -> Fields | None:
    """Models of text and vision have it inside or outside their text_config."""
    text = config.get("text_config")
    for place in (config, text if isinstance(text, Mapping) else {}):
        for key in _KEYS:
            if place.get(key):
                return Fields(place, source).section(key)
    return None


def _only_leaves_alone(found: Fields) -> bool:
    """Whether nothing but lists of modules is there: those that are not quantized."""
    return all(value is None or isinstance(value, list) for value in found.values.values())


def _method(found: Fields, config: Mapping[str, Any]) -> str:
    name = found.text("quant_method", "unknown")
    if name != "unknown":
        return name
    if found.values.get("load_in_4bit") is True or found.values.get("load_in_8bit") is True:
        return "bitsandbytes"
    if found.values.get("quant_algo") is not None:
        return "modelopt"
    return "mlx" if isinstance(config.get("quantization"), Mapping) else name


def _parsed(found: Fields, method: str) -> QuantizationConfig | None:
    if method == "mxfp4":  # its tensors say all of it (mxfp4.py)
        return None
    if method not in _PARSERS:
        raise _refused(found.source, method)
    return _PARSERS[method](found)


def _refused(source: str, method: str) -> UnsupportedModelError:
    by = _NOT_READ.get(method, repr(method[:40]))
    return UnsupportedModelError(f"{source}: the weights are quantized by {by}; {_READ}")


def _fp8(found: Fields) -> QuantizationConfig:
    return QuantizationConfig("fp8")


def _compressed(found: Fields) -> QuantizationConfig:
    fmt = found.text("format", "dense")
    sparsity = found.values.get("sparsity_config")
    sparse = sparsity.get("format", "dense") if isinstance(sparsity, Mapping) else "dense"
    for given, known in ((fmt, _COMPRESSED_FORMATS), (sparse, ("dense",))):
        if given not in known:
            raise UnsupportedModelError(
                f"{found.source}: compressed-tensors format {str(given)[:40]!r} is not read; "
                f"Loire knows {', '.join(known)}"
            )
    place = _rotated(found)
    if place is not None:
        raise UnsupportedModelError(
            f"{found.source}: transform_config wants {place[:40]!r} of modules rotated at each "
            f"step, which Loire does not compute"
        )
    return QuantizationConfig("compressed-tensors")


def _rotated(found: Fields) -> str | None:
    """What a transform changes while the model runs; None where all are in the weights."""
    if not found.values.get("transform_config"):
        return None
    transforms = found.section("transform_config")
    groups = transforms.values.get("config_groups") or {}
    if not isinstance(groups, Mapping):
        raise transforms.wrong("config_groups", groups, "an object")
    for group in groups.values():
        applied = group.get("apply") if isinstance(group, Mapping) else None
        if not isinstance(applied, list) or not all(isinstance(one, Mapping) for one in applied):
            raise transforms.wrong("config_groups", groups, "an object of lists of places")
        for one in applied:
            if one.get("location") not in ("weight_input", "weight_output"):
                return str(one.get("location"))
    return None


def _modelopt(found: Fields) -> QuantizationConfig:
    """In config.json, or within "quantization" of a file of its own. Keys and values that it wants
    in FP8 have what the user asks for."""
    inner = found.section("quantization") if found.values.get("quantization") else found
    algorithms = {inner.text("quant_algo", "none").upper()}
    if algorithms == {"MIXED_PRECISION"}:
        layers = inner.section("quantized_layers")
        algorithms = {layers.section(name).text("quant_algo").upper() for name in layers.values}
    unknown = sorted(algorithms.difference(_MODELOPT, ("NONE",)))
    if unknown:
        raise UnsupportedModelError(
            f"{inner.source}: the weights are quantized by ModelOpt's {unknown[0][:40]!r}; Loire "
            f"knows {', '.join(_MODELOPT)} of these"
        )
    return QuantizationConfig("fp8")


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
    fmt = "marlin" if found.flag("is_marlin_format", False) else fmt
    if bits not in (2, 3, 4, 8) or fmt not in ("gptq", "gptq_v2"):
        raise UnsupportedModelError(
            f"{found.source}: GPTQ in {bits} bits, format {fmt[:40]!r}, is not read; "
            f"Loire knows 2, 3, 4 and 8 bits, formats 'gptq' and 'gptq_v2'"
        )
    offset = 1 if fmt == "gptq" else 0
    dynamic = found.section("dynamic").values if found.values.get("dynamic") else {}
    if any(not str(key).startswith("-:") for key in dynamic):
        return QuantizationConfig("gptq", zero_offset=offset)
    return QuantizationConfig(
        "gptq",
        bits=bits,
        group_size=_group_size(found, 128),
        symmetric=found.flag("sym", True),
        zero_offset=offset,
    )


def _auto_round(found: Fields) -> QuantizationConfig:
    """AutoRound's files lie as GPTQ's or AWQ's."""
    default = found.values.get("backend") or "auto_round:auto_gptq"
    packing = found.text("packing_format", default).lower()
    kind = found.text("data_type", "int").lower()
    if kind != "int" or not ("gptq" in packing or "awq" in packing):
        raise UnsupportedModelError(
            f"{found.source}: AutoRound in {kind[:40]!r}, packed as {packing[:40]!r}, is not read; "
            f"Loire knows 'int', packed as GPTQ or AWQ do"
        )
    given = {key: found.values[key] for key in ("bits", "group_size", "sym") if key in found.values}
    if "awq" in packing:
        return _awq(Fields(given, found.source))
    if found.values.get("extra_config"):
        return QuantizationConfig("gptq", zero_offset=1)
    return _gptq(Fields(given, found.source))


def _group_size(found: Fields, default: Any) -> int:
    """-1 means one group."""
    size = found.integer("group_size", default, low=-1)
    return max(size, 0)


_PARSERS: dict[str, Callable[[Fields], QuantizationConfig]] = {
    "compressed-tensors": _compressed,
    "fp8": _fp8,
    "fbgemm_fp8": _fp8,
    "modelopt": _modelopt,
    "awq": _awq,
    "gptq": _gptq,
    "auto-round": _auto_round,
    "intel/auto-round": _auto_round,
}
