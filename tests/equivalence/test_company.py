"""Output is independent of company: the same tokens alone and in every other circumstance."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from loire import LLM, SamplingParams
from loire.base.outputs import RequestOutput
from loire.base.structured_outputs import StructuredOutputs
from loire.kernels.native.backend import NativeBackend

NUM_PROMPTS = 32


def _prompts(seed: int = 0, vocab_size: int = 259) -> list[list[int]]:
    rng = random.Random(seed)
    lengths = [1, 2, 15, 16, 17, 31, 32, 33, *(rng.randint(1, 120) for _ in range(24))]
    return [[rng.randrange(3, vocab_size) for _ in range(length)] for length in lengths]


def _params() -> list[SamplingParams]:
    """Greedy, seeded and penalised requests of different lengths."""
    rng = random.Random(1)
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.8, "seed": 7},
        {"temperature": 1.0, "seed": 8, "top_k": 20, "top_p": 0.9},
        {"temperature": 1.2, "seed": 9, "top_p": 0.7, "min_p": 0.02},
        {"temperature": 0.0, "repetition_penalty": 1.3, "presence_penalty": 0.5},
        {"temperature": 0.7, "seed": 10, "frequency_penalty": 0.7, "logit_bias": {5: 2.0}},
        {"temperature": 0.0, "structured_outputs": StructuredOutputs(json_object=True)},
        {"temperature": 1.0, "seed": 11, "structured_outputs": StructuredOutputs(regex="(ab|c)+")},
    ]
    return [
        SamplingParams(max_tokens=rng.randint(1, 40), ignore_eos=True, **kinds[i % len(kinds)])
        for i in range(NUM_PROMPTS)
    ]


def _tokens(outputs: list[RequestOutput]) -> list[tuple[tuple[int, ...], ...]]:
    return [tuple(choice.token_ids for choice in output.outputs) for output in outputs]


# The torch backends promise equal tokens in float32; the native one equal bits in bfloat16 and
# with quantized weights or KV, too.
BACKENDS = (
    "reference float32",
    "cpu float32",
    "native float32",
    "native bfloat16",
    "native bfloat16 int8",
    "native bfloat16 int4",
    "reference float32 kv-int8",
    "native bfloat16 kv-int8",
)


@pytest.fixture(scope="module", params=BACKENDS)
def kernels(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if name.startswith("native") and not NativeBackend.available()[0]:
        pytest.skip(NativeBackend.available()[1])
    return name


@pytest.fixture(scope="module")
def alone(tiny_llama: Path, kernels: str) -> Iterator[list[tuple[tuple[int, ...], ...]]]:
    """Each request run by itself, without a cache."""
    with _llm(tiny_llama, kernels, enable_prefix_caching=False) as llm:
        yield [
            _tokens(llm.generate([p], [s]))[0] for p, s in zip(_prompts(), _params(), strict=True)
        ]


def _llm(path: Path, kernels: str, **options: Any) -> LLM:
    name, dtype, *rounded = kernels.split()
    given = {"dtype": dtype, "kernels": name, "kv_cache_memory_bytes": 8_000_000}
    for what in rounded:
        given["kv_cache_dtype" if what == "kv-int8" else "quantization"] = what[-4:]
    return LLM(str(path), **{**given, **options})


def _odd(kernels: str) -> int:
    """1 for every other backend: of three settings, all pairs are tried, but not all triples."""
    return BACKENDS.index(kernels) % 2


def _block_bytes(kernels: str) -> int:
    head_bytes = 16 + 4 if "kv-int8" in kernels else 16 * (2 if "bfloat16" in kernels else 4)
    return 2 * 2 * 2 * 16 * head_bytes


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="batch of 32"),
        pytest.param({"max_num_batched_tokens": 16}, id="budget of 16, below the batch size"),
        pytest.param({"max_num_batched_tokens": 64, "block_size": 32}, id="chunks of 64"),
        pytest.param({"max_num_seqs": 5}, id="at most 5 at once"),
        pytest.param({"pipeline_depth": 2}, id="scheduling a step ahead"),
    ],
)
def test_batched_is_alone(
    tiny_llama: Path, kernels: str, alone: list[Any], options: dict[str, Any]
) -> None:
    with _llm(tiny_llama, kernels, **options) as llm:
        assert _tokens(llm.generate(_prompts(), _params())) == alone


@pytest.mark.parametrize("caching", [True, False])
def test_preempted_is_uninterrupted(
    tiny_llama: Path, kernels: str, alone: list[Any], caching: bool
) -> None:
    # 32 requests of up to 160 tokens want about 160 blocks; there are 12.
    with _llm(
        tiny_llama,
        kernels,
        kv_cache_memory_bytes=12 * _block_bytes(kernels),
        max_model_len=176,
        enable_prefix_caching=caching,
        pipeline_depth=1 + (caching + _odd(kernels)) % 2,
    ) as llm:
        assert _tokens(llm.generate(_prompts(), _params())) == alone
        assert sum(record.num_preemptions for record in llm.records) > 1
        counts = llm.engine.core.scheduler.allocator.counts
        assert counts.in_use == 0
        llm.engine.core.scheduler.allocator.check()


def test_cached_is_fresh(tiny_llama: Path, kernels: str, alone: list[Any]) -> None:
    with _llm(tiny_llama, kernels) as llm:
        assert _tokens(llm.generate(_prompts(), _params())) == alone
        warm = llm.generate(_prompts(), _params())
        assert _tokens(warm) == alone
        for output in warm:
            assert output.num_cached_tokens == (len(output.prompt_token_ids) - 1) // 16 * 16


class Drafters:
    """Guesses what comes next: from what came before, or knowing it, with every third one wrong."""

    def __init__(self, texts: list[list[int]]) -> None:
        self.texts = texts

    def lookup(self, token_ids: Sequence[int], most: int) -> Sequence[int]:
        """What followed when the last token came before (Saxena 2023, "Prompt lookup decoding")."""
        before = [index for index, token in enumerate(token_ids[:-1]) if token == token_ids[-1]]
        return token_ids[before[-1] + 1 :][: min(most, 5)] if before else ()

    def oracle(self, token_ids: Sequence[int], most: int) -> Sequence[int]:
        """What the sequence said alone."""
        length = len(token_ids)
        for text in self.texts:
            if text[:length] == token_ids:
                drafts = text[length : length + min(most, 7)]
                return [4 if (length + i) % 3 == 0 else t for i, t in enumerate(drafts)]
        return ()


@pytest.mark.parametrize(
    ("number", "options"),
    [
        pytest.param(0, {}, id="batch of 32"),
        pytest.param(1, {"max_num_batched_tokens": 64, "pipeline_depth": 2}, id="a step ahead"),
        pytest.param(2, {"max_model_len": 176, "num_pages": 14}, id="preempted"),
    ],
)
def test_drafted_is_one_by_one(
    tiny_llama: Path, kernels: str, alone: list[Any], number: int, options: dict[str, Any]
) -> None:
    name = ("lookup", "oracle")[(number + _odd(kernels)) % 2]
    given = dict(options)
    if num_pages := given.pop("num_pages", None):
        given["kv_cache_memory_bytes"] = num_pages * _block_bytes(kernels)
    texts = [[*prompt, *choices[0]] for prompt, choices in zip(_prompts(), alone, strict=True)]
    with _llm(tiny_llama, kernels, **given) as llm:
        llm.engine.core.scheduler.drafter = getattr(Drafters(texts), name)
        assert _tokens(llm.generate(_prompts(), _params())) == alone
        slots = [slot for record in llm.records for slot in record.slots]
        # A step ahead, the newest token is known by chance only, and so is what may follow it.
        assert "pipeline_depth" in given or any(slot.num_decode_tokens > 1 for slot in slots)
        if num_pages:
            assert sum(record.num_preemptions for record in llm.records) > 1
        llm.engine.core.scheduler.allocator.check()
        num_rows = sum(slot.num_decode_tokens > 0 for slot in slots)
        if name == "oracle" and not options:
            assert num_rows < sum(len(choices[0]) for choices in alone) * 0.7


def test_drafted_tokens_have_their_logprobs(tiny_llama: Path, kernels: str) -> None:
    params = SamplingParams(temperature=0.7, seed=4, max_tokens=24, logprobs=3, ignore_eos=True)
    prompt = _prompts()[9]
    with _llm(tiny_llama, kernels) as llm:
        [plain] = llm.generate([prompt], params)
        drafters = Drafters([[*prompt, *plain.outputs[0].token_ids]])
        llm.engine.core.scheduler.drafter = drafters.oracle
        [drafted] = llm.generate([prompt], params)
    assert drafted.outputs[0].token_ids == plain.outputs[0].token_ids
    expected, found = plain.outputs[0].logprobs, drafted.outputs[0].logprobs
    assert expected is not None
    assert found is not None
    assert [list(entry) for entry in found] == [list(entry) for entry in expected]
    for one, other in zip(found, expected, strict=True):
        assert [entry.rank for entry in one.values()] == [entry.rank for entry in other.values()]
        logprobs = [entry.logprob for entry in other.values()]
        assert [entry.logprob for entry in one.values()] == pytest.approx(logprobs, abs=1e-4)


def test_siblings_are_the_same_in_any_company(tiny_llama: Path, kernels: str) -> None:
    prompt = _prompts()[12]
    params = [
        SamplingParams(n=4, temperature=0.9, seed=3, max_tokens=24, ignore_eos=True),
        SamplingParams(n=4, temperature=0.0, max_tokens=24, ignore_eos=True),
    ]
    with _llm(tiny_llama, kernels, enable_prefix_caching=False) as llm:
        sampled, greedy = _tokens(llm.generate([prompt, prompt], params))
        [single] = _tokens(
            llm.generate([prompt], SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True))
        )
    assert greedy == single * 4
    assert len(set(sampled)) == 4
    with _llm(tiny_llama, kernels, max_num_batched_tokens=7, max_num_seqs=3) as llm:
        assert _tokens(llm.generate([prompt, prompt], params)) == [sampled, greedy]


def test_shared_prefix_is_computed_once(tiny_llama: Path, kernels: str) -> None:
    """W3 in small: requests that share a prefix and arrive together."""
    rng = random.Random(5)
    prefix = [rng.randrange(3, 259) for _ in range(128)]
    prompts = [[*prefix, *(rng.randrange(3, 259) for _ in range(10))] for _ in range(16)]
    params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
    with _llm(tiny_llama, kernels) as llm:
        outputs = llm.generate(prompts, params)
        computed = sum(slot.num_prefill_tokens for r in llm.records for slot in r.slots)
        assert computed == 128 + 16 * 10
        assert sorted(output.num_cached_tokens for output in outputs) == [0] + [128] * 15
    with _llm(tiny_llama, kernels, enable_prefix_caching=False) as llm:
        assert _tokens(llm.generate(prompts, params)) == _tokens(outputs)


def test_salts_share_nothing(tiny_llama: Path, kernels: str) -> None:
    prompt = _prompts()[-1][:64] * 2
    params = SamplingParams(temperature=0.0, max_tokens=2)
    with _llm(tiny_llama, kernels) as llm:
        for salt, cached in (("a", False), ("b", False), ("a", True), ("", False), ("", True)):
            [output] = llm.generate({"prompt_token_ids": prompt, "cache_salt": salt}, params)
            assert (output.num_cached_tokens > 0) is cached, salt
