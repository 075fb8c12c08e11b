"""From a checkpoint to one of fewer bits, layer by layer, so that no more than a layer need be in
memory. What is done is kept in a folder beside the result, and a run that was broken off goes on.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from loire import __version__
from loire.base.errors import ConfigError
from loire.checkpoint.checkpoint import Checkpoint
from loire.checkpoint.digest import model_digest
from loire.checkpoint.formats import LEVEL_ROWS
from loire.kernels.block_formats import StoredTensor
from loire.quantize.allocation import Candidate, FormatCost, allocate
from loire.quantize.calibration import cut, num_calibrated
from loire.quantize.gguf import GGUFOutput
from loire.quantize.layer_run import CalibrationRun, Moments
from loire.quantize.levels import LEVELS, STANDARD_LEVELS, Levels
from loire.quantize.rounding import round_with_feedback
from loire.quantize.save import OWN, Piece, finish, read_piece, shared_levels, write_piece
from loire.quantize.sensitivity import measure, units
from loire.quantize.work import WorkFolder, write_whole, writing
from loire.text.tokenizer import Tokenizer

MEASURED_TEXTS = 2
MEASURED_TOKENS = 128
"""Of each: for every weight a model is computed."""
TRIED_CHARACTERS = 20_000
"""Of the text, on which the vocabulary of a GGUF file is tried."""
LEAST_BITS, MOST_BITS = 2.25, 8.5
BY_NAME: Mapping[str, Levels] = {levels.name: levels for levels in (*LEVELS, *STANDARD_LEVELS)}
FileFormat = Literal["safetensors", "gguf"]
Progress = Callable[[str, float], None]
"""Told a stage and the share of it that is done."""


@dataclass(frozen=True, slots=True)
class Report:
    """What became of a model.

    Attributes:
        bits: per weight, on average.
        formats: of each weight, by name.
        level_rows: of those with levels of their own, by name, how many rows share them.
        perplexity_before, perplexity_after: of texts that were not calibrated on.
    """

    bits: float
    num_bytes: int
    formats: Mapping[str, str]
    level_rows: Mapping[str, int]
    perplexity_before: float
    perplexity_after: float

    def summary(self) -> dict[str, float]:
        """Without the weights one by one."""
        plain = asdict(self)
        del plain["formats"], plain["level_rows"]
        return plain


def quantize(
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    text: str,
    out: Path,
    bits: float,
    progress: Progress = lambda stage, share: None,
    file_format: FileFormat = "safetensors",
    *,
    kept: Path,
    num_own: int = 0,
    write: Callable[[int], Sequence[Sequence[int]]] = lambda count: (),
) -> Report:
    """Write a directory that Loire runs like any other model, or a GGUF file.

    bits: per weight at most, on average over all matrices, scales included. text: to calibrate on.
    file_format: a GGUF file has standard types alone. kept: a folder for what weights cost, which
    is the same whatever the bits: another run on the same model and text takes it from there.
    write: gives num_own texts (token ids) that the model wrote, as long as those that the text is
    cut into, to calibrate on, too; asked once, also if the run is broken off.

    Raises ConfigError if out exists, bits are out of range or something cannot be written,
    UnsupportedModelError for a model that it is not made for.
    """
    if not LEAST_BITS <= bits <= MOST_BITS:
        raise ConfigError(f"bits must be from {LEAST_BITS} to {MOST_BITS}, but are {bits}")
    as_gguf = None
    if file_format == "gguf":  # seconds, where a large vocabulary is made
        as_gguf = GGUFOutput.of(checkpoint, tokenizer, text[:TRIED_CHARACTERS])
    given = cut(tokenizer, text, checkpoint.description.max_positions)
    known = num_calibrated(len(given))
    work = _Work(
        out,
        checkpoint,
        {
            "model": model_digest(checkpoint),
            "bits": bits,
            "texts": given,
            "own": num_own,
            "format": file_format,
        },
    )
    among = STANDARD_LEVELS if file_format == "gguf" else LEVELS
    candidates = work.measured(given, among, kept, lambda share: progress("measuring", share))
    chosen = allocate(candidates, bits)
    work.begin()
    calibrated = [*given[:known], *work.own(num_own, write)]
    rounding = _Rounding(checkpoint, calibrated, given[known:], chosen, work)
    rounding.run(lambda share: progress("rounding", share))
    report = rounding.report(lambda share: progress("checking", share))
    with writing(out):
        if as_gguf is not None:
            whole = work.path / "model.gguf"
            as_gguf.write(rounding.pieces(), whole, report.summary())
            whole.replace(out)
            shutil.rmtree(work.path)
        else:
            finish(work.path, out, checkpoint, tokenizer, asdict(report))
    return report


class _Work(WorkFolder):
    """What is done already."""

    def __init__(self, out: Path, checkpoint: Checkpoint, asked: Mapping[str, object]) -> None:
        super().__init__(out, asked)
        self._checkpoint = checkpoint

    def own(self, count: int, write: Callable[[int], Sequence[Sequence[int]]]) -> list[list[int]]:
        """Texts that the model wrote before, or writes now."""
        path = self.path / OWN
        if not path.exists():
            write_whole(path, json.dumps(write(count)))
        found: list[list[int]] = json.loads(path.read_text())
        return found

    def measured(
        self,
        texts: Sequence[Sequence[int]],
        among: Sequence[Levels],
        kept: Path,
        progress: Callable[[float], None],
    ) -> list[Candidate]:
        """What each weight costs in each of some formats, as it was found before or anew."""
        short = [text[:MEASURED_TOKENS] for text in texts[:MEASURED_TEXTS]]
        names = [levels.name for levels in among]
        asked = json.dumps([__version__, model_digest(self._checkpoint), short, names])
        path = kept / f"{hashlib.sha256(asked.encode()).hexdigest()}.json"
        if not path.exists():
            found = measure(CalibrationRun(self._checkpoint, short), among, progress)
            with writing(kept):
                kept.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps([asdict(candidate) for candidate in found]))
        return [
            Candidate(
                entry["name"],
                entry["num_elements"],
                [FormatCost(**choice) for choice in entry["choices"]],
            )
            for entry in json.loads(path.read_text())
        ]


class _Rounding:
    """Layers are rounded one after another, each for the inputs that those before it give now."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        calibrated: Sequence[Sequence[int]],
        checked: Sequence[Sequence[int]],
        chosen: Mapping[str, FormatCost],
        work: _Work,
    ) -> None:
        self._run = CalibrationRun(checkpoint, calibrated)
        self._check = CalibrationRun(checkpoint, checked)
        self._chosen = chosen
        self._work = work

    def run(self, progress: Callable[[float], None]) -> None:
        """All layers, then the embedding and the head."""
        num_layers = self._run.description.num_layers
        table = self._run.matrix(self._run.weights.embedding)
        stream = self._run.embed(table)
        for index in range(num_layers):
            path = self._layer_path(index)
            if not path.exists():
                tensors, moments = self._run.layer_tensors(index), Moments()
                self._run.layer(index, tensors, [stream], moments)
                write_piece(path, self._rounded_layer(index, tensors, moments))
            [stream] = self._run.layer(index, _values(read_piece(path)), [stream])
            progress((index + 1) / (num_layers + 1))
        if not self._ends_path.exists():
            write_piece(self._ends_path, self._rounded_ends(table, stream))
        progress(1.0)

    def report(self, progress: Callable[[float], None]) -> Report:
        """When all is done: the model as it was and as it is now, over the texts kept apart."""
        check = self._check
        weights, num_layers = check.weights, check.description.num_layers
        head = weights.embedding if weights.head is None else weights.head
        ends = read_piece(self._ends_path)
        now, sizes = _values(ends), _Sizes()
        sizes.add(ends)
        before = check.embed(check.matrix(weights.embedding))
        after = check.embed(now[f"{weights.embedding.name}.weight"])
        for index in range(num_layers):
            piece = read_piece(self._layer_path(index))
            sizes.add(piece)
            [before] = check.layer(index, check.layer_tensors(index), [before])
            [after] = check.layer(index, _values(piece), [after])
            progress((index + 1) / num_layers)
        return Report(
            bits=sizes.bits,
            num_bytes=sizes.num_bytes,
            formats=sizes.formats,
            level_rows=sizes.level_rows,
            perplexity_before=self._perplexity(before, check.matrix(head)),
            perplexity_after=self._perplexity(after, now[f"{head.name}.weight"]),
        )

    def pieces(self) -> Iterator[Piece]:
        """What was rounded, when all is done."""
        yield read_piece(self._ends_path)
        for index in range(self._run.description.num_layers):
            yield read_piece(self._layer_path(index))

    @property
    def _ends_path(self) -> Path:
        return self._work.path / "ends.safetensors"

    def _layer_path(self, index: int) -> Path:
        return self._work.path / f"layer-{index:04}.safetensors"

    def _rounded_layer(
        self, index: int, tensors: Mapping[str, Tensor | StoredTensor], moments: Moments
    ) -> Piece:
        rounded: Piece = dict(tensors)
        for unit in units(self._run.weights.layers[index], tensors):
            levels = BY_NAME[self._chosen[unit.name].name]
            for name, inputs_of in unit.tensors.items():
                tensor = tensors[name]
                assert isinstance(tensor, Tensor)
                inputs = moments.mean(inputs_of, tensor.shape[1])
                rounded[name] = round_with_feedback(tensor, inputs, levels)
        return rounded

    def _rounded_ends(self, table: Tensor, stream: Tensor) -> Piece:
        """The embedding, the final norm and the head. stream: after the last layer."""
        weights, piece = self._run.weights, Piece()
        states = self._run.final_states(stream)
        moments = states.T @ states / len(states)
        levels = BY_NAME[self._chosen[weights.embedding.name].name]
        tied = weights.head is None
        # Rows that are only looked up are used by themselves: no input makes up for another.
        inputs = moments if tied else torch.eye(table.shape[1])
        piece[f"{weights.embedding.name}.weight"] = round_with_feedback(table, inputs, levels)
        if weights.head is not None:
            levels = BY_NAME[self._chosen[weights.head.name].name]
            head = self._run.matrix(weights.head)
            piece[f"{weights.head.name}.weight"] = round_with_feedback(head, moments, levels)
        return piece | self._run.reader.read([weights.final_norm])

    @torch.inference_mode()
    def _perplexity(self, stream: Tensor, head: Tensor) -> float:
        ids = self._check.token_ids
        logits = self._check.logits(stream, head).view(*ids.shape, -1)
        found = torch.log_softmax(logits[:, :-1], dim=-1).gather(2, ids[:, 1:, None])
        return float(torch.exp(-found.mean()))


def _values(piece: Piece) -> dict[str, Tensor]:
    """The numbers that its tensors stand for."""
    return {
        name: tensor.values() if isinstance(tensor, StoredTensor) else tensor
        for name, tensor in piece.items()
    }


class _Sizes:
    """What pieces take."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self.formats: dict[str, str] = {}
        self.level_rows: dict[str, int] = {}
        self._rounded_bytes = 0
        self._elements = 0

    @property
    def bits(self) -> float:
        """Per weight, of all that were rounded."""
        return self._rounded_bytes * 8 / self._elements

    def add(self, piece: Piece) -> None:
        """Count one more."""
        for name, tensor in piece.items():
            if isinstance(tensor, Tensor):
                self.num_bytes += tensor.nbytes
                continue
            levels = shared_levels(tensor)
            num_bytes = tensor.blocks.nbytes + (0 if levels is None else levels.nbytes)
            self.num_bytes += num_bytes
            self._rounded_bytes += num_bytes
            self._elements += math.prod(tensor.shape)
            self.formats[name] = tensor.format.name
            if levels is not None:
                self.level_rows[name] = LEVEL_ROWS
