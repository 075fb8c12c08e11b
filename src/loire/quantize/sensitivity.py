"""What a model loses if one of its weights is rounded: measured on calibration text."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loire.base.errors import UnsupportedModelError
from loire.checkpoint.weights import matrices
from loire.kernels.interface import Weight
from loire.quantize.allocation import Candidate, FormatCost
from loire.quantize.layer_run import CalibrationRun, Moments
from loire.quantize.levels import Levels, levels_for
from loire.quantize.rounding import round_to_nearest, weighted_error

LEAST_OUTPUTS = 8
_EXPERT = re.compile(r"(.+\.experts)\.\d+(\..+)")
EVERY = 4
"""One of so many positions is looked at for what comes next."""
PROBE_BITS = 3.0
"""The harm of the first format of more bits is measured; that of others is as their errors are to
its own."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Tensors that get one format, as they are one weight, halves of a gated one, or the same of
    all experts of a layer."""

    name: str
    """Of the weight, or of the first tensor."""
    tensors: Mapping[str, str]
    """Names, and of each the matrix whose inputs are its own."""


def units(weights: object, present: Mapping[str, Weight]) -> Iterator[Unit]:
    """Those of the matrices among some weights; routers stay as they are, and so do matrices of a
    few outputs."""
    experts: dict[str, dict[str, str]] = {}
    for matrix in matrices(weights):
        if matrix.role == "router" or matrix.outputs < LEAST_OUTPUTS:
            continue
        names = matrix.stored_weights(present)
        of_inputs = dict.fromkeys(names, matrix.name)
        expert = _EXPERT.fullmatch(matrix.name)
        if expert is not None:
            experts.setdefault("".join(expert.groups()), {}).update(of_inputs)
        elif matrix.gated or len(names) == 1:
            yield Unit(matrix.name, of_inputs)
        else:
            for name in names:
                yield Unit(name.removesuffix(".weight"), {name: matrix.name})
    for name, tensors in experts.items():
        yield Unit(name, tensors)


def measure(
    run: CalibrationRun, among: Sequence[Levels], progress: Callable[[float], None]
) -> list[Candidate]:
    """What each weight would cost in each format of those.

    The unit is the Kullback-Leibler divergence of the next token's distribution, in nats, from what
    the model says with all its weights as they were. One pass over the layers: the stream of each
    model with one rounded weight goes on through the layers that follow, beside the true one.
    """
    table = run.matrix(run.weights.embedding)
    uniform = torch.ones(table.shape[1])
    first, rounded = _Trial.of(run.weights.embedding.name, [table], uniform, among)
    found, streams = [first], [run.embed(table), run.embed(rounded)]
    num_layers = run.description.num_layers
    for index in range(num_layers):
        tensors, moments = run.layer_tensors(index), Moments()
        [before] = streams[:1]
        streams = run.layer(index, tensors, streams[:1], moments) + run.layer(
            index, tensors, streams[1:]
        )
        for unit in units(run.weights.layers[index], tensors):
            trial, changed = _trial(unit, tensors, moments, among)
            found.append(trial)
            streams += run.layer(index, changed, [before])
        progress((index + 1) / (num_layers + 1))
    weights = run.weights
    head = table if weights.head is None else run.matrix(weights.head)
    states = [run.final_states(stream) for stream in streams]
    truth = run.logits_of(states[0][::EVERY], head).log_softmax(-1)
    harms = [_divergence(truth, run.logits_of(x[::EVERY], head)) for x in states[1:]]
    candidates = [trial.candidate(harm) for trial, harm in zip(found, harms, strict=True)]
    name = (weights.embedding if weights.head is None else weights.head).name
    last, rounded = _Trial.of(name, [head], states[0].square().mean(dim=0), among)
    harm = _divergence(truth, run.logits_of(states[0][::EVERY], rounded))
    if weights.head is None:
        candidates[0] = _added(candidates[0], last.candidate(harm))
    else:
        candidates.append(last.candidate(harm))
    progress(1.0)
    return candidates


@dataclass(frozen=True, slots=True)
class _Trial:
    """What is known of a weight when the harm of one of its formats has been measured. (Without its
    numbers: there is a trial of each weight, and all of them together may not fit into memory.)"""

    name: str
    num_elements: int
    bits: Mapping[Levels, float]
    """What it takes in each format, per weight."""
    errors: Mapping[Levels, float]
    """What each format gets wrong of the product."""
    probe: Levels

    @classmethod
    def of(
        cls, name: str, parts: Sequence[Tensor], importance: Tensor, among: Sequence[Levels]
    ) -> tuple["_Trial", Tensor]:
        """With the weight, its parts one below the other, in the format whose harm is measured.
        importance: float32 [in], the mean squares of its inputs."""
        weight = parts[0] if len(parts) == 1 else torch.cat([*parts])
        formats = _formats(name, weight, among)
        rows = [len(part) for part in parts]
        bits = {x: x.bits_of(rows, weight.shape[1]) for x in formats}
        errors = {x: weighted_error(weight, importance, x) for x in formats}
        probe = next((x for x in formats if x.bits > PROBE_BITS), formats[-1])
        rounded = round_to_nearest(weight, importance, probe).values()
        return cls(name, weight.numel(), bits, errors, probe), rounded

    def candidate(self, harm: float) -> Candidate:
        """harm: of the format that was measured."""
        unit = max(harm, 0.0) / max(self.errors[self.probe], 1e-30)
        choices = [
            FormatCost(levels.name, self.bits[levels], error * unit)
            for levels, error in self.errors.items()
        ]
        return Candidate(self.name, self.num_elements, choices)


def _trial(
    unit: Unit, tensors: Mapping[str, Weight], moments: Moments, among: Sequence[Levels]
) -> tuple[_Trial, dict[str, Weight]]:
    """With a layer's tensors in which the unit's are rounded."""
    parts = [part for name in unit.tensors if isinstance(part := tensors[name], Tensor)]
    size = parts[0].shape[1]
    seen = {*unit.tensors.values()} & moments.sums.keys()
    importance = torch.ones(size)
    if seen:
        total = sum(moments.counts[name] for name in seen)
        importance = torch.stack([moments.sums[name].diagonal() for name in seen]).sum(0) / total
    trial, rounded = _Trial.of(unit.name, parts, importance, among)
    changed = rounded.split([len(part) for part in parts])
    return trial, {**tensors, **dict(zip(unit.tensors, changed, strict=True))}


def _divergence(truth: Tensor, logits: Tensor) -> float:
    """Mean over rows; truth: log-probabilities [T, V]."""
    return float((truth.exp() * (truth - logits.log_softmax(-1))).sum(-1).mean())


def _formats(name: str, weight: Tensor, among: Sequence[Levels]) -> tuple[Levels, ...]:
    formats = levels_for(weight.shape[1], among)
    if not formats:
        raise UnsupportedModelError(
            f"{name} has rows of {weight.shape[1]} numbers, which no format's groups of 32 fill: "
            f"`loire quantize` is not made for such a model"
        )
    return formats


def _added(first: Candidate, second: Candidate) -> Candidate:
    """One weight that is used twice."""
    choices = [
        FormatCost(a.name, a.bits, a.error + b.error)
        for a, b in zip(first.choices, second.choices, strict=True)
    ]
    return Candidate(first.name, first.num_elements, choices)
