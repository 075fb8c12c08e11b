"""Adapters by `lora_request=`: each as if merged, in any company; the base as if without."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from loire import LLM, LoRARequest, SamplingParams
from loire.base.config import EngineOptions
from loire.base.errors import ConfigError, ModelError, RequestError
from loire.checkpoint.open import open_checkpoint
from loire.engine.adapters import AdapterNames
from loire.planning.adapter_size import Adapters, adapter_bytes
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


# --- while it runs ----------------------------------------------------------------------------


def saved(model: Path, folder: Path, seed: int, rank: int = 4) -> Path:
    modules = ("q_proj", "v_proj", "up_proj", "o_proj")
    return save_adapter(folder, adapter_tensors(base(model), rank, modules, seed=seed), rank)


def test_names_come_and_go(llm: LLM, model: Path, tmp_path: Path) -> None:
    path = saved(model, tmp_path / "x", 21)
    assert llm.load_adapter("team/x", path).rank == 4
    assert [named.name for named in llm.adapters] == ["team/x"]
    by_path = tokens(llm, [PROMPTS[0]], LoRARequest("any", 1, str(path)))
    assert tokens(llm, [PROMPTS[0]], "team/x") == by_path
    with pytest.raises(RequestError, match=r"has already been loaded.*load_inplace"):
        llm.load_adapter("team/x", path)
    llm.unload_adapter("team/x")
    with pytest.raises(ModelError, match="The lora adapter 'team/x' cannot be found"):
        llm.unload_adapter("team/x")
    with pytest.raises(RequestError, match="there is no adapter 'team/x'"):
        tokens(llm, [PROMPTS[0]], "team/x")
    for name in ("", "../x", "a/../b", "/x", "a//b", "a b", "a/", ".x", "x" * 201, "a\nb", "é?"):
        with pytest.raises(RequestError, match="is no name for an adapter"):
            llm.load_adapter(name, path)


def test_a_running_request_keeps_its_content(model: Path, tmp_path: Path) -> None:
    """Over a reload of its name with other content at the same place, and over an unload; also when
    it is preempted meanwhile, and whatever comes and goes beside it."""
    long = SamplingParams(temperature=0, max_tokens=120, ignore_eos=True)
    path = saved(model, tmp_path / "x", 31)
    others = [saved(model, tmp_path / str(seed), seed, rank=seed % 7 + 1) for seed in range(40, 46)]

    def whole(llm: LLM, lora: object) -> list[int]:
        return list(llm.generate([PROMPTS[0]], long, lora_request=lora)[0].outputs[0].token_ids)  # type: ignore[arg-type]

    with start(model, enable_prefix_caching=False) as fresh:
        first = whole(fresh, LoRARequest("x", 1, str(path)))
        plain = whole(fresh, None)
    # Room for one sequence and a half, and for one adapter: all the time something has to go.
    with start(model, lora_memory_bytes=1, kv_cache_memory_bytes=120_000, max_model_len=160) as llm:
        llm.load_adapter("x", path)
        # All come at once and cannot fit together, however busy the machine is.
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(
                llm.generate, [PROMPTS[0]] * 3, long, lora_request=["x", None, "x"]
            )
            while not (llm.engine.core.scheduler.num_requests or running.done()):
                time.sleep(0.001)
            for number, other in enumerate(others):
                if number == 1:
                    saved(model, tmp_path / "x", 32)
                    llm.load_adapter("x", path, load_inplace=True)
                if number == 2:
                    llm.unload_adapter("x")
                tokens(llm, [PROMPTS[1]], LoRARequest("y", 2, str(other)))
            found = [list(output.outputs[0].token_ids) for output in running.result()]
        assert llm.engine.core.scheduler.num_preemptions
        assert found == [first, plain, first]
        # The content that had the name goes with its last request, at the next step.
        tokens(llm, [PROMPTS[1]])
        second = LoRARequest("x", 1, str(path))
        assert whole(llm, second) != first, "no block of the first is found"
        with start(model) as fresh:
            assert whole(fresh, second) == whole(llm, second)


def test_what_has_no_name_leaves_the_memory(model: Path, tmp_path: Path) -> None:
    with start(model) as llm:
        shelf = llm.engine.adapters
        path = saved(model, tmp_path / "x", 51)
        first = llm.load_adapter("x", path)
        llm.load_adapter("same", path)
        tokens(llm, [PROMPTS[0]], "x")
        before = shelf.counts
        assert (before.num_resident, before.loads) == (1, 1)
        tokens(llm, [PROMPTS[0]])
        assert shelf.counts is before, "nothing changed, so nothing is told"
        llm.unload_adapter("x")
        tokens(llm, [PROMPTS[0]])
        assert shelf.resident == (first.identity,), "another name stands for it"
        llm.unload_adapter("same")
        tokens(llm, [PROMPTS[0]])
        assert shelf.resident == ()
        counts = shelf.counts
        assert (counts.num_resident, counts.num_bytes, counts.loads) == (0, 0, 1)
        assert counts.evictions == 0


def test_what_is_switched_off_or_too_large(model: Path, tmp_path: Path) -> None:
    """By vLLM's options; those that mean nothing are refused."""
    told: list[object] = []
    names = AdapterNames(open_checkpoint(model).description, told.append)
    path = saved(model, tmp_path / "x", 71)
    rank = names.load("x", path).rank
    names.limit(EngineOptions(max_lora_rank=rank, max_loras=1, max_cpu_loras=1))
    names.load("y", path)
    names.limit(EngineOptions(max_lora_rank=rank - 1))
    with pytest.raises(ModelError, match=rf"has rank {rank}, but max_lora_rank is {rank - 1}"):
        names.load("z", path)
    names.limit(EngineOptions(enable_lora=False))
    with pytest.raises(ModelError, match="switched off"):
        names.use(LoRARequest("x", 1, str(path)))
    for options, message in (
        (EngineOptions(max_lora_rank=513), "max_lora_rank is 513, but lies between 1 and 512"),
        (EngineOptions(max_loras=0), "max_loras is 0"),
        (EngineOptions(max_loras=4, max_cpu_loras=2), "less than max_loras, 4"),
    ):
        with pytest.raises(ConfigError, match=message):
            names.limit(options)


def test_pins_and_the_least_recently_used(model: Path, tmp_path: Path) -> None:
    with start(model, max_cpu_loras=2) as llm:
        shelf = llm.engine.adapters
        names = {
            name: llm.load_adapter(name, saved(model, tmp_path / name, seed), pinned=name == "a")
            for seed, name in enumerate("abcd", start=60)
        }

        def resident() -> set[str]:
            return {name for name, one in names.items() if one.identity in shelf.resident}

        tokens(llm, [PROMPTS[0]], "a")
        for name in "bcd":
            tokens(llm, [PROMPTS[0]], name)
            assert resident() == {"a", name}
        assert shelf.counts.evictions == 2
        tokens(llm, [PROMPTS[0]], "a")
        assert shelf.counts.hits >= 1
        # Not pinned any more, it goes when its turn comes.
        llm.load_adapter("a", tmp_path / "a", load_inplace=True)
        tokens(llm, [PROMPTS[0]], "d")
        tokens(llm, [PROMPTS[0]], "b")
        assert resident() == {"d", "b"}
        assert shelf.counts.num_bytes > 0


def test_files_that_are_gone_end_their_own_requests(model: Path, tmp_path: Path) -> None:
    """However many: nobody else notices, and nothing that was computed for them is found."""
    with start(model) as llm:
        path = saved(model, tmp_path / "x", 71)
        named = llm.load_adapter("x", path)
        expected = tokens(llm, PROMPTS)
        (path / "adapter_model.safetensors").rename(tmp_path / "elsewhere")
        many = [*PROMPTS, *PROMPTS, *PROMPTS]
        outputs = llm.generate(many, GREEDY, lora_request=["x"] * len(many))
        assert {output.outputs[0].finish_reason for output in outputs} == {"error"}
        assert "the adapter's weights are missing" in str(outputs[0].outputs[0].error)
        assert tokens(llm, PROMPTS) == expected
        saved(model, path, 72)
        [output] = llm.generate([PROMPTS[0]], GREEDY, lora_request="x")
        assert "is not what it was when it was loaded" in str(output.outputs[0].error)
        (tmp_path / "elsewhere").rename(path / "adapter_model.safetensors")
        with start(model) as fresh:
            assert tokens(llm, PROMPTS, "x") == tokens(
                fresh, PROMPTS, LoRARequest("x", 1, str(path))
            )
        assert llm.engine.adapters.resident == (named.identity,)


def test_few_are_read_ahead(model: Path, tmp_path: Path) -> None:
    """Requests that wait do not fill the memory, and those that went leave nothing."""
    shelf_room = 3
    with start(model, max_cpu_loras=shelf_room, max_num_seqs=1) as llm:
        shelf = llm.engine.adapters
        loras = [
            LoRARequest("x", 1, str(saved(model, tmp_path / str(seed), seed)))
            for seed in range(80, 92)
        ]
        prompts = [PROMPTS[0]] * len(loras)
        outputs = tokens(llm, prompts, loras)
        assert len({tuple(output) for output in outputs}) == len(loras)
        assert len(shelf.resident) <= shelf_room
        assert shelf.counts.loads >= len(loras)


def test_plans_count_what_is_held(model: Path, tmp_path: Path) -> None:
    with start(model, dtype="bfloat16") as llm:
        path = save_adapter(tmp_path, adapter_tensors(base(model), 8), 8)
        tokens(llm, [PROMPTS[0]], LoRARequest("x", 1, str(path)))
        description = llm.engine.checkpoint.description
        planned = adapter_bytes(description, Adapters(1, 8), element_bytes=2)
        assert llm.engine.adapters.counts.num_bytes == pytest.approx(planned, rel=0.05)


def test_no_adapter_changes_the_base(model: Path, tmp_path: Path) -> None:
    """To the bit, while adapters are read, used, thrown out and withdrawn beside it."""
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, logprobs=3)
    paths = [saved(model, tmp_path / str(seed), seed, rank=8) for seed in (101, 102, 103)]
    with start(model) as fresh:
        expected = fresh.generate([PROMPTS[0]], params)[0].outputs[0].logprobs
    with start(model, max_cpu_loras=1) as llm:
        found: list[object] = []
        for turn, piece in enumerate(llm.stream(PROMPTS[0], params)):
            found += piece.outputs[0].logprobs or ()
            if turn < 6:
                llm.load_adapter("x", paths[turn % 3])
                tokens(llm, [PROMPTS[turn % 5]], "x")
                llm.unload_adapter("x")
        assert found == list(expected or ())
        assert llm.engine.adapters.counts.loads >= 3
