"""What `loire bench` says of a run is right in every format and for runs of any length."""

from pathlib import Path

import pytest

from loire import LLM
from loire.engine.core import NUM_RECORDS
from loire.planning.this_machine import Measurement
from loire.workloads.bench import BenchResult, run_load
from loire.workloads.loads import Load, LoadRequest

HIDDEN, INNER, VOCAB, LAYERS, KV = 64, 128, 259, 2, 32
LAYER = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * KV + 3 * HIDDEN * INNER
HEAD = HIDDEN * VOCAB
REST = 2 * HIDDEN * HIDDEN + 3 * HIDDEN * INNER
"""Of the last layer: needed only where logits are wanted."""


def loaded(model: Path, **options: object) -> LLM:
    small = {"kv_cache_memory_bytes": 4_000_000, "num_threads": 1, "max_num_batched_tokens": 64}
    return LLM(str(model), **{**small, **options})


def load_of(*lengths: tuple[int, int]) -> Load:
    prompts = [
        tuple(3 + (7 * number + at) % 256 for at in range(prompt))
        for number, (prompt, _) in enumerate(lengths)
    ]
    requests = [
        LoadRequest(prompt, output) for prompt, (_, output) in zip(prompts, lengths, strict=True)
    ]
    return Load("test", tuple(requests))


def flops_of(result: BenchResult, machine: Measurement) -> float:
    return result.compute_share * machine.flops * result.wall_s


@pytest.mark.parametrize("form", ["float32", "bfloat16", "int8", "int4"])
def test_shares_do_not_depend_on_the_format(tiny_llama: Path, form: str) -> None:
    machine = Measurement(bandwidth_bytes_per_s=1e9, flops=1e9)
    options = {"quantization": form} if form.startswith("int") else {"dtype": form}
    with loaded(tiny_llama, **options) as llm:
        result = run_load(llm, load_of((10, 5)), machine)
        engine = llm.engine
    # The prompt's tokens and four of the outputs are computed; five times logits are wanted.
    expected = 2 * ((LAYERS * LAYER - REST) * 14 + (HEAD + REST) * 5)
    assert flops_of(result, machine) == pytest.approx(expected)
    assert result.steps == 5
    read = result.bandwidth_share * machine.bandwidth_bytes_per_s * result.wall_s
    assert read == pytest.approx(5 * engine.bytes_per_step)
    if form == "float32":
        assert engine.bytes_per_step - engine.head_bytes == 4 * LAYERS * LAYER
        assert engine.head_bytes >= 4 * HEAD  # kernels may pad it


def test_steps_without_logits_read_less(tiny_llama: Path) -> None:
    machine = Measurement(bandwidth_bytes_per_s=1e9, flops=1e9)
    with loaded(tiny_llama, dtype="float32") as llm:
        result = run_load(llm, load_of((150, 2)), machine)  # 64, 64 and 22 tokens, then one
        head_bytes = llm.engine.head_bytes
    assert result.steps == 4
    read = result.bandwidth_share * machine.bandwidth_bytes_per_s * result.wall_s
    assert read == pytest.approx(4 * 4 * LAYERS * LAYER - 2 * 4 * REST + 2 * head_bytes)


def test_all_steps_of_a_long_run_count(tiny_llama: Path) -> None:
    rounds = NUM_RECORDS // 450 + 1
    with loaded(tiny_llama, max_num_seqs=1, enable_prefix_caching=False) as llm:
        result = run_load(llm, load_of(*[(10, 450)] * rounds), Measurement(1e9, 1e9))
        assert result.steps == rounds * 450 > NUM_RECORDS
        assert result.computed_tokens == rounds * 459
        assert len(llm.records) == 0  # as before


def test_records_are_counted_through_preemption(tiny_llama: Path) -> None:
    machine = Measurement(bandwidth_bytes_per_s=1e9, flops=1e9)
    requests = [(40, 60)] * 6
    memory = {"kv_cache_memory_bytes": 200_000, "max_model_len": 128}
    with loaded(tiny_llama, dtype="float32", **memory) as llm:
        result = run_load(llm, load_of(*requests), machine)
    assert result.preemptions > 0
    assert result.output_tokens == 360
    assert flops_of(result, machine) == pytest.approx(
        2 * ((LAYERS * LAYER - REST) * result.computed_tokens + (HEAD + REST) * 360)
    )
