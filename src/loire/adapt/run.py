"""From a quantized model and the one that it was made from to an adapter. Where training stands is
kept in a folder beside the result, and a run that was broken off goes on.
"""

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from loire.adapt.distill import (
    chosen_positions,
    divergence,
    hidden_states,
    load,
    pull_together,
    surprise,
)
from loire.adapt.low_rank import AdaptedModule, attach, new_modules, save
from loire.adapt.texts import Texts, texts_for, texts_needed
from loire.adapt.training import TEXTS, Training
from loire.base.errors import ConfigError
from loire.checkpoint.checkpoint import Checkpoint
from loire.checkpoint.digest import model_digest
from loire.checkpoint.hub_cache import name_of
from loire.kernels.cpu import CpuBackend
from loire.kernels.reference import ReferenceBackend
from loire.quantize.calibration import read_text
from loire.quantize.work import WorkFolder, write_tensors, write_whole, writing

SAVED_EVERY_S = 20.0
WARM_UP_STEPS = 10
Progress = Callable[[str, float], None]
"""Told a stage and the share of it that is done."""


@dataclass(frozen=True, slots=True)
class Report:
    """What the adapter repairs, measured on texts that were not trained on.

    Attributes:
        divergence_before, divergence_after: from the model as it was, in nats per token.
        nats_original, nats_before, nats_after: mean surprise per token of the model as it was, and
            of the quantized one without and with the adapter.
    """

    rank: int
    num_bytes: int
    steps: int
    divergence_before: float
    divergence_after: float
    nats_original: float
    nats_before: float
    nats_after: float

    @property
    def repaired(self) -> float:
        """Share of the loss in nats that quantizing had cost."""
        lost = self.nats_before - self.nats_original
        return (self.nats_before - self.nats_after) / lost if lost else 0.0

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return {**asdict(self), "repaired": self.repaired}


def adapt(
    quantized: Checkpoint,
    original: Checkpoint,
    out: Path,
    training: Training,
    *,
    text: Path | None = None,
    num_texts: int = TEXTS,
    progress: Progress = lambda stage, share: None,
    dtype: torch.dtype = torch.bfloat16,
) -> Report:
    """Train an adapter for quantized and write it to the directory out, in PEFT's format.

    text: a file to train on; None for what the original writes. num_texts: most of them. dtype: of
    weights and activations; the adapter itself is trained in float32.

    Raises ConfigError if out exists, the models have not the same vocabulary, the folder beside out
    holds another run, or something cannot be written.
    """
    sizes = quantized.description.vocab_size, original.description.vocab_size
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"{name_of(quantized.path)} has a vocabulary of {sizes[0]:,} tokens and "
            f"{name_of(original.path)} one of {sizes[1]:,}: it was not made from that"
        )
    work = _Work(
        out,
        {
            "models": [model_digest(quantized), model_digest(original)],
            "training": asdict(training),
            "text": None if text is None else read_text(str(text), texts_needed(num_texts)),
            "num_texts": num_texts,
            "dtype": str(dtype),
        },
    )
    texts, checked = work.texts(
        lambda: texts_for(original, text, num_texts, lambda share: progress("writing", share))
    )
    run = _Run(quantized, original, texts, checked, training, dtype)
    run.prepare(lambda share: progress("reading", share))
    run.train(work.state, lambda share: progress("training", share))
    report = run.report()
    work.finish(run.modules, training.rank, name_of(quantized.path), out)
    return report


class _Work(WorkFolder):
    """What is done already."""

    @property
    def state(self) -> Path:
        """Where training stands."""
        return self.path / "state.safetensors"

    def texts(self, make: Callable[[], tuple[Texts, Texts]]) -> tuple[Texts, Texts]:
        """Those that were made before, or new ones."""
        path = self.path / "texts.json"
        if not path.exists():
            made = make()
            self.begin()
            write_whole(path, json.dumps(made))
        texts, checked = json.loads(path.read_text())
        return texts, checked

    def finish(self, modules: Sequence[AdaptedModule], rank: int, base: str, out: Path) -> None:
        """Leave nothing but the adapter, whole."""
        made = self.path / "adapter"
        with writing(out):
            if made.exists():
                shutil.rmtree(made)
            save(modules, rank, base, made)
            made.replace(out)
            shutil.rmtree(self.path)


@dataclass(frozen=True, slots=True)
class _Measured:
    """In nats per token."""

    divergence: float
    nats: float


class _Run:
    """Two models side by side."""

    def __init__(
        self,
        quantized: Checkpoint,
        original: Checkpoint,
        texts: Texts,
        checked: Texts,
        training: Training,
        dtype: torch.dtype,
    ) -> None:
        self._texts, self._checked, self._training = texts, checked, training
        length = len(texts[0])
        self._teacher = load(original, length, dtype, CpuBackend())
        # (Through whose operations gradients go.)
        self._student = load(quantized, length, dtype, ReferenceBackend())
        self.modules: Sequence[AdaptedModule] = new_modules(
            quantized.description, quantized.tensors, training.rank, training.seed
        )
        self.parameters: dict[str, Tensor] = {
            name: half.requires_grad_() for module in self.modules for name, half in module.matrices
        }
        attach(self.modules, self._student)
        self._optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=training.learning_rate, weight_decay=0.0
        )
        self._per_pass = -(-len(texts) // training.step_texts)
        self.num_steps = training.passes * self._per_pass
        self._truth: list[Tensor] = []
        self._checked_truth: list[Tensor] = []
        self._before = _Measured(0.0, 0.0)
        self._nats_original = 0.0

    @torch.inference_mode()
    def prepare(self, progress: Callable[[float], None]) -> None:
        """What the original model makes of all texts."""
        total = len(self._texts) + len(self._checked)
        for index, text in enumerate([*self._texts, *self._checked]):
            states = hidden_states(self._teacher, [text], adapted=False)
            (self._truth if index < len(self._texts) else self._checked_truth).append(states)
            progress((index + 1) / total)
        truth = torch.cat(self._checked_truth)
        self._nats_original = surprise(self._teacher, truth, self._checked)
        self._before = self._measured(adapted=False)

    def report(self) -> Report:
        """After training."""
        after = self._measured(adapted=True)
        return Report(
            rank=self._training.rank,
            num_bytes=sum(half.nbytes for half in self.parameters.values()),
            steps=self.num_steps,
            divergence_before=self._before.divergence,
            divergence_after=after.divergence,
            nats_original=self._nats_original,
            nats_before=self._before.nats,
            nats_after=after.nats,
        )

    @torch.inference_mode()
    def _measured(self, *, adapted: bool) -> _Measured:
        """Of the checked texts."""
        apart, found = 0.0, []
        for text, truth in zip(self._checked, self._checked_truth, strict=True):
            states = hidden_states(self._student, [text], adapted=adapted)
            apart += float(divergence(self._teacher, self._student, truth, states))
            found.append(states)
        nats = surprise(self._student, torch.cat(found), self._checked)
        return _Measured(apart / len(self._checked), nats)

    def train(self, state: Path, progress: Callable[[float], None]) -> None:
        """From where the state's file says it stands to the end."""
        first = self._restore(state)
        saved = time.monotonic()
        for step in range(first, self.num_steps):
            self._step(step)
            if time.monotonic() - saved > SAVED_EVERY_S or step + 1 == self.num_steps:
                self._keep(state, step + 1)
                saved = time.monotonic()
            progress((step + 1) / self.num_steps)

    def _step(self, step: int) -> None:
        generator = torch.Generator().manual_seed(self._training.seed * 2**32 + step)
        chosen = self._texts_of(step)
        texts = [self._texts[index] for index in chosen]
        states = hidden_states(self._student, texts, adapted=True)
        vocab_size = self._student.description.vocab_size
        positions = chosen_positions(len(states), vocab_size, generator)
        # (Made in inference mode, what is kept of the original takes part in no gradient.)
        truth = torch.cat([self._truth[index] for index in chosen])[positions].clone()
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate(step)
        self._optimizer.zero_grad()
        pull_together(self._teacher, self._student, truth, states[positions])
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        self._optimizer.step()

    def _texts_of(self, step: int) -> list[int]:
        """Each pass in an order of its own."""
        turn, place = divmod(step, self._per_pass)
        generator = torch.Generator().manual_seed(self._training.seed * 2**32 + turn)
        order = torch.randperm(len(self._texts), generator=generator).tolist()
        size = self._training.step_texts
        return order[place * size : (place + 1) * size]

    def _rate(self, step: int) -> float:
        rising = min(1.0, (step + 1) / WARM_UP_STEPS)
        falling = 0.5 * (1.0 + math.cos(math.pi * step / self.num_steps))
        return self._training.learning_rate * rising * falling

    def _keep(self, path: Path, step: int) -> None:
        """Whole, or not at all."""
        tensors = {}
        for name, parameter in self.parameters.items():
            own = self._optimizer.state[parameter]
            tensors[name] = parameter.detach()
            tensors[f"first {name}"], tensors[f"second {name}"] = own["exp_avg"], own["exp_avg_sq"]
        write_tensors(path, tensors, {"step": str(step)})

    @torch.no_grad()
    def _restore(self, path: Path) -> int:
        """The step that comes next."""
        from safetensors import safe_open

        if not path.exists():
            return 0
        with safe_open(str(path), framework="pt") as file:
            step = int(file.metadata()["step"])
            for name, parameter in self.parameters.items():
                parameter.copy_(file.get_tensor(name))
                self._optimizer.state[parameter] = {
                    "step": torch.tensor(float(step)),
                    "exp_avg": file.get_tensor(f"first {name}"),
                    "exp_avg_sq": file.get_tensor(f"second {name}"),
                }
        return step
