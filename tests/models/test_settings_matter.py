"""The equality tests would notice: without any one of a family's settings, the logits differ."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from families import FAMILIES
from torch import Tensor

from loire.checkpoint.checkpoint import Checkpoint
from loire.checkpoint.description import LayerDescription, ModelDescription
from loire.checkpoint.feed_forward import ClampedSwiGLU, ExpertsDescription
from loire.checkpoint.open import open_checkpoint
from loire.checkpoint.recurrent_mixers import Mamba2Description
from loire.kernels.reference import ReferenceBackend
from loire.models.loading import load_decoder
from support.layers import attention, windows, with_attention, with_mlp
from support.paged_driver import CPU, DrivenSequence, PagedDriver

TOKENS = [3 + (7 * i * i + i) % 125 for i in range(100)]

Change = Callable[[ModelDescription], ModelDescription]


def setting(**changes: object) -> Change:
    return lambda description: replace(description, **changes)  # type: ignore[arg-type]


def attending(**changes: object) -> Change:
    return lambda description: with_attention(description, **changes)


def rope(**changes: object) -> Change:
    def change(description: ModelDescription) -> ModelDescription:
        ropes = tuple(replace(mixer.rope, **changes) for mixer in description.attentions)  # type: ignore[arg-type]
        return with_attention(description, rope=ropes)

    return change


def mamba2(**changes: object) -> Change:
    def changed(layer: LayerDescription) -> LayerDescription:
        mixer = layer.mixer
        if not isinstance(mixer, Mamba2Description):
            return layer
        return replace(layer, mixer=replace(mixer, **changes))  # type: ignore[arg-type]

    return lambda description: replace(description, layers=tuple(map(changed, description.layers)))


def local_rope_is_rope(description: ModelDescription) -> ModelDescription:
    [everywhere, *_] = [mixer for mixer in description.attentions if mixer.window is None]
    return with_attention(description, rope=everywhere.rope)


def wider_windows(description: ModelDescription) -> ModelDescription:
    wider = tuple(None if w is None else w + 1 for w in windows(description))
    return with_attention(description, window=wider)


def windows_elsewhere(description: ModelDescription) -> ModelDescription:
    return with_attention(description, window=windows(description)[::-1])


def scored_otherwise(description: ModelDescription) -> ModelDescription:
    experts = description.layers[0].feed_forward
    assert isinstance(experts, ExpertsDescription)
    routing = replace(experts.routing, scores="softmax", renormalise=False)
    return with_mlp(description, routing=routing)


CASES: list[tuple[str, str, Change]] = [
    ("mistral_window", "window by one", wider_windows),
    ("gemma2", "window by one", wider_windows),
    ("qwen2_windows", "which layers have windows", windows_elsewhere),
    ("gemma2", "query scale", attending(scale=24**-0.5)),
    ("gemma2", "soft cap of scores", attending(softcap=None)),
    ("gemma2", "soft cap of logits", setting(logit_softcap=None)),
    ("gemma2", "norm offset", setting(norm_offset=0.0)),
    ("gemma2", "embedding scale", setting(embedding_scale=1.0)),
    ("gemma2", "kind of GELU", lambda d: with_mlp(d, activation="silu")),
    ("gemma3", "local rotary embedding", local_rope_is_rope),
    ("gemma3_stretched", "linear scaling", rope(scaling="none")),
    ("llama31", "llama3 scaling", rope(scaling="none")),
    ("llama31", "band that is blended", rope(high_freq_factor=2.0)),
    ("llama_linear", "linear scaling", rope(scaling="none")),
    ("llama_yarn", "yarn scaling", rope(scaling="none")),
    ("llama_yarn", "attention factor", rope(attention_factor=1.0)),
    ("llama_yarn_explicit", "bounds of the ramp", rope(beta_fast=8.0)),
    ("llama_yarn_explicit", "rounding of the ramp", rope(truncate_band=True)),
    ("ministral3", "growth of queries", attending(query_growth=None)),
    ("smollm3", "layers without rotation", lambda d: with_attention(d, rope=attention(d).rope)),
    ("granite", "embedding scale", setting(embedding_scale=1.0)),
    ("granite", "residual multiplier", setting(residual_multiplier=1.0)),
    ("granite", "divisor of logits", setting(logit_divisor=1.0)),
    ("granite", "scale of scores", attending(scale=16**-0.5)),
    ("granitemoehybrid", "least step", mamba2(least_step=0.0)),
    ("granitemoehybrid", "most step", mamba2(most_step=float("inf"))),
    ("gpt_oss", "window by one", wider_windows),
    ("gpt_oss", "rounding of the ramp", rope(truncate_band=True)),
    ("gpt_oss", "clamp of the gate", lambda d: with_mlp(d, activation=ClampedSwiGLU(1.5, 7.0))),
    ("gpt_oss", "gain of the gate", lambda d: with_mlp(d, activation=ClampedSwiGLU(1.702, 1.1))),
    ("gpt_oss", "weights of experts", scored_otherwise),
    ("phi4_mini", "partial rotation", rope(rotary_dim=16)),
    ("phi3_longrope_short", "short factors", rope(original_max_positions=64)),
    ("phi3_longrope_long", "long factors", rope(original_max_positions=4096)),
    ("phi3_longrope_long", "attention factor", rope(attention_factor=1.0)),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    families = {family.name: family for family in FAMILIES}

    @cache
    def save(name: str) -> Checkpoint:
        directory: Path = tmp_path_factory.mktemp(name)
        families[name].save(directory)
        return open_checkpoint(directory)

    return save


def logits(checkpoint: Checkpoint) -> Tensor:
    decoder = load_decoder(
        checkpoint,
        dtype=torch.float32,
        device=CPU,
        backend=ReferenceBackend(),
        max_model_len=128,
    )
    return PagedDriver(decoder).step([(DrivenSequence(), TOKENS)])[0]


@pytest.mark.parametrize(
    ("family", "change"), [pytest.param(f, c, id=f"{f}: {what}") for f, what, c in CASES]
)
def test_without_a_setting_the_logits_differ(
    saved: Callable[[str], Checkpoint], family: str, change: Change
) -> None:
    checkpoint = saved(family)
    right = logits(checkpoint)
    wrong = logits(replace(checkpoint, description=change(checkpoint.description)))
    # Twenty times what the equality tests allow.
    assert (right - wrong).abs().max() > 2e-3 * right.abs().max()
