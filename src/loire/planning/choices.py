"""From what is asked (a model, a device, formats, lengths) to plans, and what would help."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from loire.base.errors import ConfigError
from loire.checkpoint.checkpoint import Checkpoint
from loire.planning.adapter_size import Adapters, adapter_bytes
from loire.planning.capacity import (
    CapacityPlan,
    activation_reserve,
    plan_capacity,
    settle_lengths,
)
from loire.planning.devices import Device
from loire.planning.held_bytes import DTYPES, QUANTIZATIONS
from loire.planning.model_size import (
    ModelSize,
    RankSize,
    size_by_hand,
    size_of_checkpoint,
    size_of_rank,
)

HAND_WINDOW = 8192
"""Window when nothing says one: with --params there is no model to ask."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """A model given by hand."""

    num_parameters: int
    kv_bytes_per_token: int
    active_parameters: int | None = None
    """Of a mixture of experts, those that a token is multiplied by; None for all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """What may vary between plans that stand side by side."""

    device: Device
    dtype: str = "bfloat16"
    quantization: str | None = None
    """None is what the file has."""
    bits: float | None = None
    """Per weight on average, in place of a format."""
    kv_dtype: str | None = None
    """None is the dtype of the model, or what a model given by hand says."""
    tensor_parallel: int = 1
    window: int | None = None
    """None is the model's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What stays the same."""

    model: Checkpoint | Shapes
    model_name: str = ""
    prompt: int | None = None
    output: int | None = None
    max_num_batched_tokens: int = 2048
    max_num_seqs: int = 128
    adapters: Adapters | None = None
    activation_bytes: int | None = None
    """Per device; None takes the formula, which needs a model's shapes: 0 by hand."""


def answer(question: Question, choice: Variant) -> CapacityPlan:
    """The plan of one choice. Raises ConfigError for what cannot be."""
    size, window = _size(question, choice)
    if choice.tensor_parallel < 1:
        raise ConfigError(
            f"--tensor-parallel-size must be at least 1, but is {choice.tensor_parallel}"
        )
    activations = question.activation_bytes
    if activations is None:
        activations = 0
        if size.description is not None:
            activations = activation_reserve(
                size.description,
                element_bytes=DTYPES[choice.dtype].block_bytes,
                num_tokens=question.max_num_batched_tokens,
                num_rows=question.max_num_seqs,
                tensor_parallel=choice.tensor_parallel,
            )
    return plan_capacity(
        size,
        choice.device,
        settle_lengths(window, question.prompt, question.output),
        tensor_parallel=choice.tensor_parallel,
        activation_bytes=activations,
        adapter_bytes=_adapter_bytes(question, choice),
        rank=_rank(question, choice),
    )


def _rank(question: Question, choice: Variant) -> RankSize | None:
    """What each of several processes holds; None where Loire does not divide the model like that
    (others may)."""
    if choice.tensor_parallel == 1 or isinstance(question.model, Shapes):
        return None
    try:
        return size_of_rank(
            question.model,
            choice.tensor_parallel,
            dtype=choice.dtype,
            quantization=choice.quantization,
            kv_dtype=choice.kv_dtype or choice.dtype,
            bits=choice.bits,
        )
    except ConfigError:
        if choice.device.is_cpu:
            raise
        return None


def _adapter_bytes(question: Question, choice: Variant) -> int:
    if question.adapters is None:
        return 0
    if isinstance(question.model, Shapes):
        raise ConfigError("--lora needs a MODEL: adapters are of its layers' sizes")
    size = DTYPES[choice.dtype].block_bytes
    return adapter_bytes(question.model.description, question.adapters, element_bytes=size)


def _size(question: Question, choice: Variant) -> tuple[ModelSize, int]:
    """Sizes of the model, and the window to plan for."""
    model = question.model
    if isinstance(model, Shapes):
        if choice.bits is not None:
            raise ConfigError("--bits needs a MODEL; with --params name a --quantization")
        if choice.kv_dtype is not None:
            raise ConfigError("--kv-dtype says nothing beside --kv-per-token: leave one out")
        size = size_by_hand(
            model.num_parameters,
            model.kv_bytes_per_token,
            active_parameters=model.active_parameters,
            dtype=choice.dtype,
            quantization=choice.quantization,
        )
        return size, HAND_WINDOW if choice.window is None else choice.window
    description = model.description
    window = description.default_window if choice.window is None else choice.window
    if window > description.max_positions:
        raise ConfigError(
            f"a window of {window} tokens is longer than the {description.max_positions} "
            f"positions that {question.model_name} is made for"
        )
    size = size_of_checkpoint(
        model,
        question.model_name,
        dtype=choice.dtype,
        quantization=choice.quantization,
        kv_dtype=choice.kv_dtype or choice.dtype,
        on_cpu=choice.device.is_cpu,
        bits=choice.bits,
    )
    return size, window


def usual_variations(question: Question, base: Variant) -> list[Variant]:
    """Windows and weight formats that people weigh against each other."""
    longest = None
    if not isinstance(question.model, Shapes):
        longest = question.model.description.max_positions
    least = (question.prompt or 1) + (question.output or 0)
    windows = [2**11, 2**13, 2**15, 2**17]
    if base.window is not None:
        windows.append(base.window)
    windows = [w for w in windows if w >= least and (longest is None or w <= longest)]
    return [
        replace(base, window=window, quantization=quantization, bits=None)
        for quantization in (None, "q8_0", "q4_0")
        for window in sorted(set(windows or [longest or least]))
    ]


def remedies(question: Question, choice: Variant) -> list[str]:
    """Single changes under which a plan that does not fit would: flags and their values."""
    tries: Sequence[tuple[str, Variant]] = [
        *(
            (f"--tensor-parallel-size {size}", replace(choice, tensor_parallel=size))
            for size in (2, 4, 8, 16)
            if size > choice.tensor_parallel
        ),
        *(
            (f"--quantization {name}", replace(choice, quantization=name))
            for name in QUANTIZATIONS
            if choice.quantization is None and choice.bits is None
        ),
    ]
    helping: dict[str, str] = {}
    for change, changed in tries:
        try:
            plan = answer(question, changed)
        except ConfigError:
            continue  # this model cannot be split or packed that way: no remedy
        if plan.fits:
            helping.setdefault(change.split()[0], change)
    return list(helping.values())
