"""LoRA adapters (Hu et al. 2021) in PEFT's format: adapter_config.json and
adapter_model.safetensors, checked against the model that they are for.

What an adapter is called follows from its content alone: a hash of the settings that count and of
the weights. Names and paths may change or be used again.
"""

import hashlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from loire.base.errors import CheckpointError, ModelNotFoundError, UnsupportedModelError
from loire.checkpoint.adapter_targets import AdapterTarget, adapter_targets
from loire.checkpoint.checkpoint import TensorInfo
from loire.checkpoint.description import ModelDescription
from loire.checkpoint.fields import Fields
from loire.checkpoint.formats import BF16, F16, F32
from loire.checkpoint.json_file import read_json
from loire.checkpoint.safetensors_header import read_file

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
MOST_RANK = 512
_READ_BYTES = 2**22
_HALVES = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")
_NOT_SUPPORTED: Mapping[str, str] = {
    "use_dora": "DoRA",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "BD-LoRA",
    "lora_bias": "biases of adapters",
    "fan_in_fan_out": "fan_in_fan_out",
    "modules_to_save": "modules_to_save, which replace weights of the model",
    "target_parameters": "target_parameters, such as those of experts",
    "trainable_token_indices": "trained tokens",
    "layer_replication": "layer_replication",
    "alora_invocation_tokens": "activated LoRA",
    "megatron_config": "Megatron's layers",
    "arrow_config": "Arrow routing",
}
"""Settings that change what an adapter computes -> what they are called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterPart:
    """What is added to one module: up (down x) times scale."""

    target: AdapterTarget
    down: TensorInfo
    """[rank, inputs]."""
    up: TensorInfo
    """[outputs, rank]."""
    scale: float

    @property
    def rank(self) -> int:
        """Of both matrices."""
        return self.down.shape[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """An adapter on disk. open_adapter() makes one; it keeps nothing of the weights."""

    path: Path
    identity: str
    """Hexadecimal: of its content."""
    parts: tuple[AdapterPart, ...]

    @property
    def rank(self) -> int:
        """The largest of its parts."""
        return max(part.rank for part in self.parts)


Take = Callable[[TensorInfo, bytearray], None]


def open_adapter(path: Path, description: ModelDescription, take: Take | None = None) -> Adapter:
    """Read and check an adapter's directory; its weights are read once, for the hash.

    take: is given each half as it was hashed, so that what is kept is what the identity says even
    if somebody writes to the file meanwhile.

    Raises ModelNotFoundError if there is nothing, UnsupportedModelError for what Loire does not
    compute, CheckpointError if it is damaged or made for another model.
    """
    config_path, weights_path = path / CONFIG, path / WEIGHTS
    if not config_path.is_file():
        raise ModelNotFoundError(f"{path} is no adapter in PEFT's format: it has no {CONFIG}")
    if not weights_path.is_file():
        if (path / PICKLE).exists():
            raise UnsupportedModelError(
                f"{path / PICKLE} is a pickle: loading one would run whatever code is in it; "
                f"save the adapter as safetensors"
            )
        raise CheckpointError(f"{path} has no {WEIGHTS}: the adapter's weights are missing")
    settings = _Settings(Fields(read_json(config_path), str(config_path)))
    tensors = read_file(weights_path)
    parts = _parts(tensors, settings, adapter_targets(description), str(weights_path))
    return Adapter(path=path, identity=_identity(weights_path, parts, take), parts=parts)


class _Settings:
    """What adapter_config.json says of ranks and scales."""

    def __init__(self, fields: Fields) -> None:
        kind = fields.text("peft_type", "LORA")
        if kind != "LORA":
            raise UnsupportedModelError(
                f"{fields.source}: the adapter is of type {kind!r}; Loire reads LORA"
            )
        for key, name in _NOT_SUPPORTED.items():
            if fields.values.get(key):
                raise UnsupportedModelError(f"{fields.source}: {name} ({key}) is not supported")
        bias = fields.values.get("bias")
        if bias not in (None, "none"):
            raise UnsupportedModelError(
                f"{fields.source}: trained biases (bias {str(bias)[:40]!r}) are not supported"
            )
        self._source = fields.source
        self._rank = fields.integer("r", 8, high=MOST_RANK)
        self._alpha = fields.number("lora_alpha", 8, low=-1e6, high=1e6)
        self._root = fields.flag("use_rslora", False)
        self._ranks = self._pattern(fields, "rank_pattern")
        self._alphas = self._pattern(fields, "alpha_pattern")

    def rank(self, module: str) -> int:
        """Of a module."""
        return int(_matching(self._ranks, module, self._rank))

    def scale(self, module: str) -> float:
        """alpha / rank, or alpha / sqrt(rank) (Kalajdzievski 2023, "rsLoRA")."""
        alpha, rank = _matching(self._alphas, module, self._alpha), self.rank(module)
        return alpha / (math.sqrt(rank) if self._root else rank)

    def _pattern(self, fields: Fields, key: str) -> Mapping[str, float]:
        values = fields.values.get(key) or {}
        if not isinstance(values, Mapping):
            raise fields.wrong(key, values, "an object")
        own = Fields(values, f"{fields.source}, {key}")
        found: dict[str, float] = {}
        for pattern in values:
            # PEFT takes them as regular expressions; those that it writes are names.
            name = str(pattern).replace("\\.", ".").removeprefix("^").removesuffix("$")
            if not re.fullmatch(r"[\w.]+", name):
                raise UnsupportedModelError(
                    f"{own.source}: {str(pattern)[:80]!r} is no name of modules; regular "
                    f"expressions are not supported"
                )
            if key == "rank_pattern":
                found[name] = own.integer(pattern, high=MOST_RANK)
            else:
                found[name] = own.number(pattern, low=-1e6, high=1e6)
        return found


def _matching(values: Mapping[str, float], module: str, otherwise: float) -> float:
    """Of the first name that the module's ends with."""
    for name, value in values.items():
        if f".{module}".endswith(f".{name}"):
            return value
    return otherwise


def _parts(
    tensors: Mapping[str, TensorInfo],
    settings: _Settings,
    targets: Mapping[str, AdapterTarget],
    source: str,
) -> tuple[AdapterPart, ...]:
    halves: dict[str, dict[str, TensorInfo]] = {}
    for name, info in tensors.items():
        match = _HALVES.fullmatch(name)
        if match is None:
            what = "embeddings" if "lora_embedding_" in name else "such tensors"
            raise UnsupportedModelError(
                f"{source}: tensor {name!r} is no half of an adapted linear layer; adapters of "
                f"{what} are not supported"
            )
        module = match[1].replace("model.language_model.", "model.", 1)
        module = module.removeprefix("language_model.")
        if match[2] in halves.setdefault(module, {}):
            raise CheckpointError(f"{source}: {module} has two tensors lora_{match[2]}")
        halves[module][match[2]] = info
    if not halves:
        raise CheckpointError(f"{source} holds no adapter: it has no tensors")
    return tuple(
        _part(module, found, settings, targets, source) for module, found in sorted(halves.items())
    )


def _part(
    module: str,
    halves: Mapping[str, TensorInfo],
    settings: _Settings,
    targets: Mapping[str, AdapterTarget],
    source: str,
) -> AdapterPart:
    if len(halves) < 2:
        missing = "B" if "A" in halves else "A"
        raise CheckpointError(f"{source}: lora_{missing} of {module} is missing")
    target = targets.get(module)
    if target is None:
        raise CheckpointError(
            f"{source} adapts {module!r}, which is no linear layer that adapters can have in this "
            f"model; was it made for another one?"
        )
    down, up, rank = halves["A"], halves["B"], settings.rank(module)
    for info in (down, up):
        if info.format.name not in _EXPONENTS:
            raise UnsupportedModelError(
                f"{source}: tensor {info.name!r} is {info.format.name}; adapters have "
                f"{', '.join(_EXPONENTS)}"
            )
    expected = (rank, target.inputs), (target.outputs, rank)
    if (down.shape, up.shape) != expected:
        raise CheckpointError(
            f"{source}: {module} has lora_A {list(down.shape)} and lora_B {list(up.shape)}, but "
            f"with rank {rank} this model needs {list(expected[0])} and {list(expected[1])}"
        )
    for half in (down, up):
        if half.format.name not in _EXPONENTS:
            raise UnsupportedModelError(
                f"{source}: tensor {half.name!r} is {half.format.name}; weights of adapters are "
                f"{', '.join(_EXPONENTS)}"
            )
    return AdapterPart(target=target, down=down, up=up, scale=settings.scale(module))


def _identity(path: Path, parts: tuple[AdapterPart, ...], take: Take | None) -> str:
    """Of all that counts. Raises CheckpointError if a weight is not finite, or a file shrank."""
    whole = hashlib.sha256(b"loire-lora")
    with path.open("rb") as file:
        for part in parts:
            whole.update(repr((part.target, part.rank, part.scale)).encode())
            for info in (part.down, part.up):
                whole.update(info.format.name.encode())
                data = _read(file, info)
                for start in range(0, len(data), _READ_BYTES):
                    piece = memoryview(data)[start : start + _READ_BYTES]
                    if not _all_finite(piece, info):
                        raise CheckpointError(
                            f"{path}: tensor {info.name!r} holds numbers that are not finite"
                        )
                    whole.update(piece)
                if take is not None:
                    take(info, data)
    return whole.hexdigest()


def _read(file: BinaryIO, info: TensorInfo) -> bytearray:
    """Not mapped: a mapped file that somebody cuts short ends the process that reads it."""
    data = bytearray(info.num_bytes)
    file.seek(info.offset)
    if file.readinto(data) != len(data):  # type: ignore[attr-defined]
        raise CheckpointError(f"{info.path} became shorter while it was read")
    return data


_EXPONENTS: Mapping[str, tuple[Any, int]] = {
    F32.name: (np.uint32, 0x7F800000),
    F16.name: (np.uint16, 0x7C00),
    BF16.name: (np.uint16, 0x7F80),
}
"""The bits that are all set in infinities and in what is no number."""


def _all_finite(data: memoryview, info: TensorInfo) -> bool:
    dtype, exponent = _EXPONENTS[info.format.name]
    bits = np.frombuffer(data, dtype=dtype) & dtype(exponent)
    return not bool((bits == exponent).any())
