"""Adapters by `lora_request=`: each as if merged, in any company; the base as if without."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from loire import LLM, LoRARequest, SamplingParams
from loire.base.errors import ModelError, RequestError
from support.adapter_files import adapter_tensors, merged, save_adapter
from support.tiny_models import save_tiny_llama

RANKS = (1, 4, 16, 7)
GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
PROMPTS = [[3 + (7 * i * i + n) % 250 for i in range(10 + 5 * n)] for n in range(5)]


def base(path: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def adapters(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[LoRARequest]:
    """Of four ranks; the last one of a few layers only."""
    folder, requests = tmp_path_factory.mktemp("adapters"), []
    for number, rank in enumerate(RANKS):
        modules = (
            ("q_proj", "down_proj", "lm_head")
            if number == 3
            else ("q_proj", "v_proj", "up_proj", "o_proj")
        )
        tensors = adapter_tensors(base(model), rank, modules, seed=number)
        path = save_adapter(folder / str(number), tensors, rank)
        requests.append(LoRARequest(f"adapter {number}", number + 1, str(path)))
    return requests


@pytest.fixture(scope="module")
def expected(model: Path, adapters: Sequence[LoRARequest]) -> list[list[int]]:
    """Of each prompt with its adapter merged; the last prompt has none."""
    from safetensors.torch import load_file

    outputs = []
    for prompt, adapter in zip(PROMPTS, [*adapters, None], strict=True):
        whole = base(model)
        if adapter is not None:
            merged(whole, load_file(Path(adapter.lora_path) / "adapter_model.safetensors"), 2.0)
        tokens = whole.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )[0]
        outputs.append(tokens[len(prompt) :].tolist())
    return outputs


def start(model: Path, **options: object) -> LLM:
    given = {"dtype": "float32", "num_threads": 1, "kv_cache_memory_bytes": 2_000_000}
    return LLM(str(model), **{**given, **options})


@pytest.fixture(scope="module", params=[1, 2])
def llm(request: pytest.FixtureRequest, model: Path) -> Iterator[LLM]:
    with start(model, pipeline_depth=request.param, max_num_batched_tokens=16) as llm:
        yield llm


def tokens(llm: LLM, prompts: Sequence[Sequence[int]], lora: object = None) -> list[list[int]]:
    outputs = llm.generate(prompts, GREEDY, lora_request=lora)  # type: ignore[arg-type]
    return [list(output.outputs[0].token_ids) for output in outputs]


def test_together_as_merged(
    llm: LLM, adapters: list[LoRARequest], expected: list[list[int]]
) -> None:
    """All adapters and the base in one batch, in chunks; and again from the cache."""
    assert len({tuple(output) for output in expected}) == 5
    for _ in range(2):
        assert tokens(llm, PROMPTS, [*adapters, None]) == expected


def test_one_prompt_for_each_of_them(
    llm: LLM, adapters: list[LoRARequest], expected: list[list[int]]
) -> None:
    """A prefix that was computed with one adapter is nobody else's."""
    prompt = PROMPTS[4]
    same = [tokens(llm, [prompt], adapter)[0] for adapter in [*adapters, None]]
    assert same[4] == expected[4]
    assert len({tuple(output) for output in same}) == 5
    assert tokens(llm, [prompt] * 5, [*adapters, None]) == same


def test_the_base_keeps_its_bits(model: Path, adapters: list[LoRARequest]) -> None:
    def logprobs(llm: LLM, lora: object) -> object:
        params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=3)
        [*_, output] = llm.generate(PROMPTS, params, lora_request=lora)  # type: ignore[arg-type]
        return output.outputs[0].logprobs

    with start(model) as plain, start(model) as other:
        logprobs(other, [*adapters, None])
        assert logprobs(other, None) == logprobs(plain, None)


def test_a_small_budget_evicts(
    model: Path, adapters: list[LoRARequest], expected: list[list[int]]
) -> None:
    with start(model, lora_memory_bytes=1) as llm:
        shelf = llm.engine.adapters
        for _ in range(2):
            for prompt, adapter, output in zip(PROMPTS, adapters, expected, strict=False):
                assert tokens(llm, [prompt], adapter) == [output]
                assert len(shelf.resident) == 1
        # What is used together stays, whatever the budget.
        assert tokens(llm, PROMPTS, [*adapters, None]) == expected
    with start(model) as llm:
        tokens(llm, PROMPTS, [*adapters, None])
        assert len(llm.engine.adapters.resident) == 4


def test_other_content_at_the_same_place(
    llm: LLM, model: Path, adapters: list[LoRARequest], tmp_path: Path
) -> None:
    """No stale weights, no stale blocks."""
    path = save_adapter(tmp_path, adapter_tensors(base(model), 4, seed=8), 4)
    request = LoRARequest("changing", 1, str(path))
    first = tokens(llm, [PROMPTS[0]], request)
    save_adapter(tmp_path, adapter_tensors(base(model), 4, seed=9), 4, lora_alpha=9)
    second = tokens(llm, [PROMPTS[0]], request)
    assert first != second
    with start(model) as fresh:
        assert tokens(fresh, [PROMPTS[0]], request) == second


def test_what_cannot_be_used_is_said_at_once(llm: LLM, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no adapter_config.json"):
        llm.generate("x", lora_request=LoRARequest("nothing", 1, str(tmp_path)))
    with pytest.raises(RequestError, match="there are 1 prompts, but 2 adapters"):
        llm.generate("x", lora_request=[None, None])


def test_chats_and_streams(llm: LLM, adapters: list[LoRARequest]) -> None:
    conversation = [{"role": "user", "content": "hello"}]

    def chat(lora: LoRARequest | None) -> str:
        return llm.chat(conversation, GREEDY, lora_request=lora)[0].outputs[0].text

    assert chat(adapters[0]) != chat(None)
    pieces = llm.stream(conversation, GREEDY, lora_request=adapters[0])
    assert "".join(piece.outputs[0].text for piece in pieces) == chat(adapters[0])
