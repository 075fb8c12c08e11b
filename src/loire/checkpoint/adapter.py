"""LoRA adapters (Hu et al. 2021) in PEFT's format: adapter_config.json and
adapter_model.safetensors, checked against the model that they are for.

What an adapter is called follows from its content alone: a hash of the settings that count and of
the weights. Names and paths may change or be used again.
"""

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from loire.base.errors import CheckpointError, ModelNotFoundError, UnsupportedModelError
from loire.checkpoint.adapter_settings import AdapterSettings
from loire.checkpoint.adapter_targets import AdapterTarget, AdapterTargets
from loire.checkpoint.checkpoint import TensorInfo
from loire.checkpoint.description import ModelDescription
from loire.checkpoint.fields import Fields
from loire.checkpoint.formats import BF16, F16, F32
from loire.checkpoint.json_file import read_json
from loire.checkpoint.safetensors_header import read_file

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_READ_BYTES = 2**22
_HALVES = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")
_BASE = re.compile(r"(?:base_model\.model\.)?lm_head\.base_layer\.weight")
"""What PEFT saves beside an adapter of the head: the model's own."""
_OF_EXPERTS = ("gate_up_proj", "up_proj", "down_proj")
"""Parameters of all experts, in the order in which models declare them, and PEFT wraps them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterPart:
    """What is added to one module: up (down x) times scale; or to a parameter of all experts."""

    target: AdapterTarget
    down: TensorInfo
    """[rank, inputs]; of experts [experts * rank, inputs], expert by expert."""
    up: TensorInfo
    """[outputs, rank]; of experts [outputs, rank * experts], rank by rank."""
    rank: int
    scale: float
    is_crossed: bool = False
    """Of experts: down has the outputs and up the inputs, as PEFT before 0.20 wrote them: what is
    added is (up down)^T."""


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
    check_place(path)
    config_path, weights_path = path / CONFIG, path / WEIGHTS
    settings = AdapterSettings(Fields(read_json(config_path), str(config_path)))
    tensors = read_file(weights_path)
    parts = _Parts(settings, AdapterTargets(description), str(weights_path)).of(tensors)
    return Adapter(path=path, identity=_identity(weights_path, parts, take), parts=parts)


def check_place(path: Path) -> None:
    """Raises as open_adapter() where a directory has not the files of an adapter."""
    if not (path / CONFIG).is_file():
        raise ModelNotFoundError(f"{path} is no adapter in PEFT's format: it has no {CONFIG}")
    if not (path / WEIGHTS).is_file():
        if (path / PICKLE).exists():
            raise UnsupportedModelError(
                f"{path / PICKLE} is a pickle: loading one would run whatever code is in it; "
                f"save the adapter as safetensors"
            )
        raise CheckpointError(f"{path} has no {WEIGHTS}: the adapter's weights are missing")


class _Parts:
    """Puts the halves of a file together."""

    def __init__(self, settings: AdapterSettings, targets: AdapterTargets, source: str) -> None:
        self._settings = settings
        self._targets = targets
        self._source = source

    def of(self, tensors: Mapping[str, TensorInfo]) -> tuple[AdapterPart, ...]:
        """Of all modules and parameters, in the order of their names."""
        found = []
        for module, halves in sorted(self._halves(tensors).items()):
            for (name, target), depth in self._named(module, set(halves)):
                found.append(self._part(name, target, halves[depth]))
        self._settings.check_parameters(self._source)
        return tuple(found)

    def _halves(
        self, tensors: Mapping[str, TensorInfo]
    ) -> dict[str, dict[int, dict[str, TensorInfo]]]:
        """By module, and by how deep PEFT wrapped it: once for each of its parameters."""
        found: dict[str, dict[int, dict[str, TensorInfo]]] = {}
        for name, info in tensors.items():
            match = _HALVES.fullmatch(name)
            if match is None:
                if _BASE.fullmatch(name):
                    self._check_head(info)
                    continue
                of_embedding = "lora_embedding_" in name or ".embed_tokens." in name
                what = "embeddings" if of_embedding else "such tensors"
                raise UnsupportedModelError(
                    f"{self._source}: tensor {name!r} is no half of an adapted linear layer; "
                    f"adapters of {what} are not supported"
                )
            module = match[1].replace("model.language_model.", "model.", 1)
            module = module.removeprefix("language_model.")
            depth = module.count(".base_layer")
            module = module.replace(".base_layer", "")
            halves = found.setdefault(module, {}).setdefault(depth, {})
            if match[2] in halves:
                raise CheckpointError(f"{self._source}: {module} has two tensors lora_{match[2]}")
            halves[match[2]] = info
        if not found:
            raise CheckpointError(f"{self._source} holds no adapter: it has no tensors")
        return found

    def _check_head(self, info: TensorInfo) -> None:
        """Of a copy of the model's head, which is left aside."""
        head = self._targets.by_name["lm_head"]
        if info.shape != (head.outputs, head.inputs):
            raise CheckpointError(
                f"{self._source} holds a head of {list(info.shape)}, but this model's has "
                f"{[head.outputs, head.inputs]}; was it made for another one?"
            )

    def _named(
        self, module: str, depths: Collection[int]
    ) -> Iterable[tuple[tuple[str, AdapterTarget], int]]:
        """What a module's halves are for, with their depths; names are adapter_config.json's."""
        target = self._targets.of(f"{module}.weight")
        if target is not None and depths == {0}:
            return [((self._settings.named(module), target), 0)]
        parameters = [
            (name, target)
            for part in _OF_EXPERTS
            if (target := self._targets.of(name := f"{module}.{part}")) is not None
        ]
        if not parameters:
            raise CheckpointError(
                f"{self._source} adapts {module!r}, which is no linear layer that adapters can "
                f"have in this model; was it made for another one?"
            )
        wanted = [item for item in parameters if self._settings.names(item[0])]
        if depths != set(range(len(wanted))):
            named = ", ".join(name.rpartition(".")[2] for name, _ in wanted) or "none"
            raise CheckpointError(
                f"{self._source}: {module} has halves for {len(depths)} of its parameters, but "
                f"target_parameters names {len(wanted)} of them ({named})"
            )
        # The first was wrapped first, so it is the innermost.
        return zip(wanted, reversed(range(len(wanted))), strict=True)

    def _part(
        self, module: str, target: AdapterTarget, halves: Mapping[str, TensorInfo]
    ) -> AdapterPart:
        if len(halves) < 2:
            missing = "B" if "A" in halves else "A"
            raise CheckpointError(f"{self._source}: lora_{missing} of {module} is missing")
        down, up, rank = halves["A"], halves["B"], self._settings.rank(module)
        for info in (down, up):
            if info.format.name not in _EXPONENTS:
                raise UnsupportedModelError(
                    f"{self._source}: tensor {info.name!r} is {info.format.name}; adapters have "
                    f"{', '.join(_EXPONENTS)}"
                )
        return AdapterPart(
            target=target,
            down=down,
            up=up,
            rank=rank,
            scale=self._settings.scale(module),
            is_crossed=self._is_crossed(module, target, rank, halves),
        )

    def _is_crossed(
        self, module: str, target: AdapterTarget, rank: int, halves: Mapping[str, TensorInfo]
    ) -> bool:
        """Checks the shapes; see AdapterPart."""
        all_ranks = rank * max(target.experts, 1)
        expected = (all_ranks, target.inputs), (target.outputs, all_ranks)
        crossed = (all_ranks, target.outputs), (target.inputs, all_ranks)
        shapes = halves["A"].shape, halves["B"].shape
        if shapes == expected and expected != crossed:
            return False
        if target.experts and shapes == crossed:
            return expected != crossed or self._settings.crosses_experts(
                module, inputs_first=target.pairs
            )
        if shapes == expected:
            return False
        of_experts = f" for {target.experts} experts" if target.experts else ""
        raise CheckpointError(
            f"{self._source}: {module} has lora_A {list(shapes[0])} and lora_B {list(shapes[1])}, "
            f"but with rank {rank}{of_experts} this model needs {list(expected[0])} and "
            f"{list(expected[1])}"
        )


def _identity(path: Path, parts: tuple[AdapterPart, ...], take: Take | None) -> str:
    """Of all that counts. Raises CheckpointError if a weight is not finite, or a file shrank."""
    whole = hashlib.sha256(b"loire-lora")
    with path.open("rb") as file:
        for part in parts:
            whole.update(repr((part.target, part.rank, part.scale, part.is_crossed)).encode())
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
