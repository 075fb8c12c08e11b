"""Whole models give the tokens, and the bits of logits, that are written down here.

Those of llama and gemma3 were recorded before KV memory was cut into groups. A change of a
kernel's order of additions shows here; so does one of batching, memory or sampling, which must not
change any.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from loire.base.config import EngineOptions
from loire.base.messages import EngineRequest
from loire.base.sampling import SamplingParams
from loire.checkpoint.open import open_checkpoint
from loire.engine.start import load_engine
from loire.kernels.interface import FlatBatch
from loire.kernels.native.backend import NativeBackend
from support.recorded_models import MODELS, save

usable, why = NativeBackend.available()
pytestmark = pytest.mark.skipif(not usable, reason=why)

FORMATS: dict[str, dict[str, Any]] = {
    "bfloat16": {},
    "int8": {"quantization": "int8"},
    "int4": {"quantization": "int4"},
    "kv-int8": {"kv_cache_dtype": "int8"},
}
RECORDED = {
    "llama bfloat16": "559902df687c",
    "llama int8": "1f13d9851331",
    "llama int4": "33c4e658e65e",
    "llama kv-int8": "43fcbddae49f",
    "gemma3 bfloat16": "2927bf256713",
    "gemma3 int8": "42281557c131",
    "gemma3 int4": "94f3eb03abfe",
    "gemma3 kv-int8": "e5dc51bd2491",
    "qwen3_5 bfloat16": "81a07324745c",
    "qwen3_5 int8": "3687033100cf",
    "qwen3_5 int4": "af2927ad8ce9",
    "qwen3_5 kv-int8": "720d0a87d086",
    "nemotron_h bfloat16": "696423689958",
    "nemotron_h int8": "dff3f6c6d6bf",
    "nemotron_h int4": "a5ceb68c7170",
    "nemotron_h kv-int8": "801230d16685",
    "gemma4 bfloat16": "bc4ef4f09495",
    "gemma4 int8": "07c9ce79eadd",
    "gemma4 int4": "327bfd402ebd",
    "gemma4 kv-int8": "9b223ce83ed9",
    "deepseek_v3 bfloat16": "d55e7b8c1317",
    "deepseek_v3 int8": "e756a94c78d2",
    "deepseek_v3 int4": "9587a0643abf",
    "deepseek_v3 kv-int8": "398d0ab1c3b5",
    "gemma4_dense bfloat16": "90b15c639da7",
    "gemma4_dense int8": "50295553c9c1",
    "gemma4_dense int4": "e1db801a919c",
    "gemma4_dense kv-int8": "1d2847c28312",
}


def requests() -> list[EngineRequest]:
    """Of one token to several blocks, with and without a shared prefix; greedy and drawn."""
    random = np.random.default_rng(1)
    shared = random.integers(3, 259, 40).tolist()
    prompts = [random.integers(3, 259, n).tolist() for n in (1, 15, 33, 90)]
    prompts += [shared + random.integers(3, 259, n).tolist() for n in (3, 30)]
    return [
        EngineRequest(
            request_id=str(index),
            prompt_token_ids=tuple(prompt),
            params=SamplingParams(temperature=index % 2 * 0.9, max_tokens=40, ignore_eos=True),
            seed=index,
        )
        for index, prompt in enumerate(prompts)
    ]


def outputs(path: Path, options: dict[str, Any]) -> tuple[dict[str, list[int]], list[bytes]]:
    """Token ids by request, and the digests of all rows of logits, in any order."""
    given = EngineOptions(
        kernels="native", num_threads=1, kv_cache_memory_bytes=8_000_000, **options
    )
    engine = load_engine(open_checkpoint(path), given, name="recorded")
    rows: list[bytes] = []
    decoder: Any = engine.executor.decoder  # type: ignore[attr-defined]
    compute = decoder.logits

    def watched(hidden: Tensor, batch: FlatBatch | None) -> Tensor:
        logits: Tensor = compute(hidden, batch)
        rows.extend(hashlib.sha256(row.numpy().tobytes()).digest() for row in logits)
        return logits

    decoder.logits = watched
    tokens: dict[str, list[int]] = {}
    for request in requests():
        engine.core.add(request)
    while engine.core.has_work:
        for update in engine.core.step():
            tokens.setdefault(update.request_id, []).extend(update.token_ids)
    engine.core.close()
    return tokens, rows


def digest(tokens: dict[str, list[int]], rows: Sequence[bytes]) -> str:
    whole = hashlib.sha256(repr(sorted(tokens.items())).encode())
    for row in sorted(rows):
        whole.update(row)
    return whole.hexdigest()[:12]


@pytest.fixture(scope="module", params=list(MODELS))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its folder has the name of its kind."""
    return save(request.param, tmp_path_factory.mktemp("models") / request.param)


@pytest.mark.parametrize("fmt", list(FORMATS))
def test_outputs_are_those_recorded(model: Path, fmt: str) -> None:
    instruction_set = NativeBackend(1).instruction_set
    if instruction_set in ("portable", "amx"):
        pytest.skip(f"{instruction_set} rounds or adds otherwise")
    tokens, rows = outputs(model, FORMATS[fmt])
    assert all(len(ids) == 40 for ids in tokens.values())
    assert len({tuple(ids) for ids in tokens.values()}) == len(tokens)
    assert digest(tokens, rows) == RECORDED[f"{model.name} {fmt}"]
