"""From a checkpoint to one of fewer bits, layer by layer, so that no more than a layer need be in
memory. What is done is kept in a folder beside the result, and a run that was broken off goes on.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from loire.base.errors import ConfigError
from loire.checkpoint.checkpoint import Checkpoint
from loire.checkpoint.digest import model_digest
from loire.kernels.block_formats import StoredTensor
from loire.quantize.allocation import Candidate, Choice, allocate
from loire.quantize.calibration import cut, num_calibrated
from loire.quantize.layer_run import CalibrationRun, Moments
from loire.quantize.levels import LEVELS, Levels
from loire.quantize.rounding import round_with_feedback
from loire.quantize.save import Piece, finish, read_piece, write_piece
from loire.quantize.sensitivity import measure, units
from loire.text.tokenizer import Tokenizer

MEASURED_TEXTS = 2
MEASURED_TOKENS = 128
"""Of each: for every weight a model is computed."""
LEAST_BITS, MOST_BITS = 2.25, 8.5
BY_NAME: Mapping[str, Levels] = {levels.format.name: levels for levels in LEVELS}
Progress = Callable[[str, float], None]
"""Told a stage and the share of it that is done."""


@dataclass(frozen=True, slots=True)
class Report:
    """What became of a model.

    Attributes:
        bits: per weight, on average.
        formats: of each weight, by name.
        perplexity_before, perplexity_after: of texts that were not calibrated on.
    """

    bits: float
    num_bytes: int
    formats: Mapping[str, str]
    perplexity_before: float
    perplexity_after: float

    def summary(self) -> dict[str, float]:
        """Without the weights one by one."""
        plain = asdict(self)
        del plain["formats"]
        return plain


def quantize(
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    text: str,
    out: Path,
    bits: float,
    progress: Progress = lambda stage, share: None,
) -> Report:
    """Write a directory that Loire runs like any other model.

    bits: per weight at most, on average over all matrices, scales included. text: to calibrate on.

    Raises ConfigError if out exists or bits are out of range, UnsupportedModelError for a model
    that it is not made for.
    """
    if not LEAST_BITS <= bits <= MOST_BITS:
        raise ConfigError(f"bits must be from {LEAST_BITS} to {MOST_BITS}, but are {bits}")
    if out.exists():
        raise ConfigError(f"{out} exists already; name another directory, or remove it")
    texts = cut(tokenizer, text, checkpoint.description.max_positions)
    work = _Work(out.with_name(out.name + ".partial"), checkpoint, texts, bits)
    chosen = work.chosen(lambda share: progress("measuring", share))
    rounding = _Rounding(checkpoint, texts, chosen, work)
    rounding.run(lambda share: progress("rounding", share))
    report = rounding.report()
    finish(work.folder, out, checkpoint, tokenizer, asdict(report))
    return report


class _Work:
    """What is done already."""

    def __init__(
        self, folder: Path, checkpoint: Checkpoint, texts: list[list[int]], bits: float
    ) -> None:
        """Raises ConfigError if the folder holds the work on something else."""
        self.folder = folder
        self._checkpoint = checkpoint
        self._texts = texts
        self._bits = bits
        asked = {"model": model_digest(checkpoint), "bits": bits, "texts": texts}
        folder.mkdir(parents=True, exist_ok=True)
        told = folder / "asked.json"
        if not told.exists():
            told.write_text(json.dumps(asked))
        elif json.loads(told.read_text()) != asked:
            raise ConfigError(
                f"{folder} holds unfinished work on another model, text or number of bits; "
                f"finish that, or remove the folder"
            )

    def chosen(self, progress: Callable[[float], None]) -> Mapping[str, Choice]:
        """The format of each weight."""
        path = self.folder / "measured.json"
        if not path.exists():
            texts = [text[:MEASURED_TOKENS] for text in self._texts[:MEASURED_TEXTS]]
            run = CalibrationRun(self._checkpoint, texts)
            found = measure(run, progress)
            _write_whole(path, json.dumps([asdict(candidate) for candidate in found]))
        candidates = [
            Candidate(
                entry["name"],
                entry["num_elements"],
                [Choice(**choice) for choice in entry["choices"]],
            )
            for entry in json.loads(path.read_text())
        ]
        return allocate(candidates, self._bits)


class _Rounding:
    """Layers are rounded one after another, each for the inputs that those before it give now."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        texts: list[list[int]],
        chosen: Mapping[str, Choice],
        work: _Work,
    ) -> None:
        self._run = CalibrationRun(checkpoint, texts)
        self._chosen = chosen
        self._work = work
        self._num_texts = num_calibrated(len(texts))
        self._num_tokens = self._num_texts * len(texts[0])
        self._bytes = 0
        self._elements = 0

    def run(self, progress: Callable[[float], None]) -> None:
        """All layers, then the embedding and the head."""
        description, weights = self._run.description, self._run.weights
        table = self._run.matrix(weights.embedding)
        before = after = self._run.embed(table)
        for index in range(description.num_layers):
            tensors = self._run.layer_tensors(index)
            path = self._work.folder / f"layer-{index:04}.safetensors"
            [before] = self._run.layer(index, tensors, [before])
            if not path.exists():
                moments = Moments(self._num_tokens)
                self._run.layer(index, tensors, [after], moments)
                write_piece(path, self._rounded_layer(index, tensors, moments))
            piece = read_piece(path)
            [after] = self._run.layer(index, self._values(piece), [after])
            progress((index + 1) / (description.num_layers + 1))
        self._before, self._after = before, after
        self._round_ends(table)
        progress(1.0)

    def report(self) -> Report:
        """When all is done."""
        pieces = [read_piece(path) for path in sorted(self._work.folder.glob("*.safetensors"))]
        stored = {name: tensor for piece in pieces for name, tensor in piece.items()}
        blocks = {n: t for n, t in stored.items() if isinstance(t, StoredTensor)}
        elements = sum(t.shape[0] * t.shape[1] for t in blocks.values())
        head = self._run.weights.head
        name = (self._run.weights.embedding if head is None else head).name
        rounded = blocks[f"{name}.weight"].values()
        matrix = self._run.matrix(self._run.weights.embedding if head is None else head)
        return Report(
            bits=sum(t.blocks.numel() for t in blocks.values()) * 8 / elements,
            num_bytes=sum(_num_bytes(tensor) for tensor in stored.values()),
            formats={n: t.format.name for n, t in blocks.items()},
            perplexity_before=self._perplexity(self._before, matrix),
            perplexity_after=self._perplexity(self._after, rounded),
        )

    def _rounded_layer(
        self, index: int, tensors: Mapping[str, Tensor | StoredTensor], moments: Moments
    ) -> Piece:
        rounded: Piece = dict(tensors)
        for unit in units(self._run.weights.layers[index], tensors):
            levels = BY_NAME[self._chosen[unit.name].name]
            inputs = moments.mean(unit.inputs_of)
            for name in unit.tensors:
                tensor = tensors[name]
                assert isinstance(tensor, Tensor)
                rounded[name] = _rounded(tensor, inputs, levels)
        return rounded

    def _round_ends(self, table: Tensor) -> None:
        path = self._work.folder / "ends.safetensors"
        if path.exists():
            return
        weights, piece = self._run.weights, Piece()
        states = self._run.final_states(self._after)[: self._num_tokens]
        moments = states.T @ states / len(states)
        levels = BY_NAME[self._chosen[weights.embedding.name].name]
        tied = weights.head is None
        # Rows that are only looked up are used by themselves: no input makes up for another.
        inputs = moments if tied else torch.eye(table.shape[1])
        piece[f"{weights.embedding.name}.weight"] = _rounded(table, inputs, levels)
        if weights.head is not None:
            levels = BY_NAME[self._chosen[weights.head.name].name]
            head = self._run.matrix(weights.head)
            piece[f"{weights.head.name}.weight"] = _rounded(head, moments, levels)
        piece |= self._run.reader.read([weights.final_norm])
        write_piece(path, piece)

    def _values(self, piece: Piece) -> Piece:
        return {
            name: tensor.values() if isinstance(tensor, StoredTensor) else tensor
            for name, tensor in piece.items()
        }

    @torch.inference_mode()
    def _perplexity(self, stream: Tensor, head: Tensor) -> float:
        ids = self._run.token_ids[self._num_texts :]
        logits = self._run.logits(stream[self._num_tokens :], head).view(*ids.shape, -1)
        found = torch.log_softmax(logits[:, :-1], dim=-1).gather(2, ids[:, 1:, None])
        return float(torch.exp(-found.mean()))


def _rounded(weight: Tensor, inputs: Tensor, levels: Levels) -> StoredTensor:
    return StoredTensor(levels.format, round_with_feedback(weight, inputs, levels))


def _num_bytes(tensor: Tensor | StoredTensor) -> int:
    return tensor.nbytes if isinstance(tensor, Tensor) else tensor.blocks.nbytes


def _write_whole(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)
