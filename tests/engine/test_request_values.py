"""Every value of a request that reaches the engine is checked where the request is built."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loire import LLM, SamplingParams
from loire.base.errors import PromptTooLongError, RequestError
from loire.base.structured_outputs import StructuredOutputs
from loire.checkpoint.open import open_checkpoint
from loire.engine.frontend import Frontend
from loire.engine.requests import Origin
from loire.engine.wire import Submit, frame, read_to_engine

NUM_TOKENS = 259
"""The tiny model's; the tokenizer of `frontend` has one more."""
BEYOND = NUM_TOKENS
HALF = "\ud800"
"""Half of a surrogate pair."""


@pytest.fixture(scope="module")
def model(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, whose tokenizer knows a token that the embedding has no row for."""
    folder = tmp_path_factory.mktemp("larger-tokenizer")
    shutil.copytree(tiny_llama, folder, dirs_exist_ok=True)
    path = folder / "tokenizer.json"
    definition = json.loads(path.read_text())
    token = {**definition["added_tokens"][-1], "id": BEYOND, "content": "<|beyond|>"}
    definition["added_tokens"].append(token)
    path.write_text(json.dumps(definition))
    return folder


@pytest.fixture(scope="module")
def frontend(model: Path) -> Frontend:
    return Frontend(open_checkpoint(model), 512)


WRONG = [
    # Tokens: beyond what the model computes, and beyond anything.
    ("prompt", {"prompt": [5, BEYOND]}),
    ("prompt", {"prompt": "text <|beyond|>"}),
    ("prompt", {"prompt": [-1]}),
    ("prompt", {"prompt": [2**70]}),
    ("stop_token_ids", {"stop_token_ids": [BEYOND]}),
    ("stop_token_ids", {"stop_token_ids": [2**31]}),
    ("stop_token_ids", {"stop_token_ids": [-1]}),
    ("logit_bias", {"logit_bias": {BEYOND: 1.0}}),
    ("logit_bias", {"logit_bias": {2**70: 1.0}}),
    ("logit_bias", {"logit_bias": {"9" * 5000: 1.0}}),
    # Other than whole numbers.
    *(
        ("prompt", {"prompt": ids})
        for ids in ([1.5], [True], ["5"], [None], None, 5, b"abc", [[5]])
    ),
    *(("stop_token_ids", {"stop_token_ids": ids}) for ids in ([1.0], [True], ["5"], "5", 5)),
    *(("logit_bias", {"logit_bias": {key: 1.0}}) for key in (1.7, "x", True, None)),
    *(
        (name, {name: value})
        for name in ("n", "top_k", "min_tokens", "max_tokens", "logprobs", "prompt_logprobs")
        for value in (True, 1.0, "1", [1], 2**70, 10**5000, -5, float("nan"))
    ),
    *(("seed", {"seed": value}) for value in (True, 1.5, "1", 2**64, -(2**63) - 1)),
    *(("priority", {"priority": value}) for value in (True, 1.5, "1", 2**31, -(2**63), 2**70)),
    # Other than numbers.
    *(
        (name, {name: value})
        for name in (
            *("temperature", "top_p", "min_p", "repetition_penalty"),
            *("frequency_penalty", "presence_penalty"),
        )
        for value in (True, "0.5", float("nan"), float("inf"), -float("inf"), 10**400)
    ),
    *((name, {name: None}) for name in ("frequency_penalty", "presence_penalty")),
    *(("logit_bias", {"logit_bias": {5: value}}) for value in ("y", float("nan"), 101, None)),
    ("logit_bias", {"logit_bias": [5]}),
    # Other than true or false.
    *(
        (name, {name: value})
        for name in ("ignore_eos", "skip_special_tokens", "include_stop_str_in_output")
        for value in (1, "yes", None)
    ),
    # Other than text.
    ("prompt", {"prompt": HALF}),
    ("cache_salt", {"cache_salt": HALF}),
    ("cache_salt", {"cache_salt": 5}),
    ("cache_salt", {"cache_salt": "x" * 4097}),
    *(("stop", {"stop": stop}) for stop in (5, [5], ["a", HALF], {"a": 1}, [b"a"], [""])),
    ("pooling", {"pooling": "max", "max_tokens": 1}),
    ("structured_outputs", {"structured_outputs": {"json": "{}"}}),
]


def build(frontend: Frontend, fields: dict[str, Any]) -> Any:
    outer = {name: fields.pop(name) for name in ("cache_salt", "priority") if name in fields}
    prompt = fields.pop("prompt", "Hello")
    params = SamplingParams(**{"max_tokens": 4, **fields})
    return frontend.prompt("r", prompt, params, origin=Origin(**outer)).request


@pytest.mark.parametrize(
    ("param", "fields"), WRONG, ids=[f"{param}-{number}" for number, (param, _) in enumerate(WRONG)]
)
def test_wrong_values_are_refused_in_words(
    frontend: Frontend, param: str, fields: dict[str, Any]
) -> None:
    with pytest.raises(RequestError) as refused:
        build(frontend, dict(fields))
    assert refused.value.param == param
    assert param in str(refused.value)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    "fields",
    [
        *({kind: HALF} for kind in ("json", "regex", "grammar")),
        *({kind: 5} for kind in ("json", "regex", "grammar", "choice")),
        {"choice": ("a", HALF)},
        {"choice": "ab"},
        {"json": {"a": HALF}},
        {"json_object": "yes"},
        {"json_object": True, "disable_any_whitespace": 1},
    ],
)
def test_forms_of_other_things_than_text_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as refused:
        StructuredOutputs(**fields)
    assert refused.value.param == "structured_outputs"


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": np.arange(3, 9)},
        {"prompt": [np.int32(5), np.uint8(7)], "stop_token_ids": np.array([4, 5])},
        {"temperature": np.float32(0.5), "top_p": np.float64(0.5), "top_k": np.int64(4)},
        {"temperature": 1, "top_k": -1, "logit_bias": {"5": -1, np.int64(7): np.float32(2)}},
        {"seed": 2**64 - 1, "priority": 2**31 - 1, "cache_salt": "säil"},
        {"seed": -(2**63), "priority": -(2**31) + 1, "stop": "END"},
        {"max_tokens": None, "min_tokens": 2**31 - 1, "logprobs": 20, "prompt_logprobs": 0},
    ],
)
def test_what_is_accepted_can_cross(frontend: Frontend, fields: dict[str, Any]) -> None:
    message = Submit(build(frontend, dict(fields)))
    assert read_to_engine(frame(message)[4:]) == message


def test_the_end_token_may_be_one_that_the_model_lacks(model: Path, tmp_path: Path) -> None:
    """min_tokens forbids the tokens that end an output: only those that have a logit."""
    folder = shutil.copytree(model, tmp_path / "model")
    (folder / "generation_config.json").unlink()
    for name, changes in (
        ("config.json", {"eos_token_id": None}),
        ("tokenizer_config.json", {"eos_token": "<|beyond|>"}),
    ):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, **changes}))
    greedy = SamplingParams(temperature=0, max_tokens=8, min_tokens=8)
    with LLM(str(folder), kv_cache_memory_bytes=8_000_000, num_threads=1) as llm:
        assert llm.frontend.tokenizer.eos_token_ids == (BEYOND,)
        [output] = llm.generate("Hello", greedy)
    assert len(output.outputs[0].token_ids) == 8


def test_a_token_that_the_model_lacks_harms_nobody(model: Path) -> None:
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    with LLM(str(model), kv_cache_memory_bytes=8_000_000, num_threads=1) as llm:
        [expected] = llm.generate("Hello", params)
        for prompt in ([BEYOND], "<|beyond|>", {"prompt_token_ids": [BEYOND]}):
            with pytest.raises(RequestError, match="tokenizer has, but not the model"):
                llm.generate(prompt, params)
        llm.chat([{"role": "user", "content": "<|beyond|>"}], params)  # text to the model
        [again] = llm.generate("Hello", params)
    assert again.outputs[0].token_ids == expected.outputs[0].token_ids


def test_a_text_that_cannot_fit_is_not_even_tokenized(
    frontend: Frontend, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = frontend.tokenizer
    most = frontend.max_model_len * tokenizer.longest_token * 4

    def encode(*_: object, **__: object) -> list[int]:
        raise AssertionError("it was tokenized")

    monkeypatch.setattr(tokenizer, "encode", encode)
    with pytest.raises(PromptTooLongError, match=str(most + 1)):
        frontend.prompt("id", "a" * (most + 1), SamplingParams())
    with pytest.raises(AssertionError, match="tokenized"):
        frontend.prompt("id", "a" * most, SamplingParams())


def test_where_turns_end(frontend: Frontend) -> None:
    """Behind the first end token of a prompt and behind the last: states are kept there."""
    end = frontend.tokenizer.eos_token_ids[0]
    for prompt, marks in (
        ([5, 6], ()),
        ([5, end, 6], (2,)),
        ([5, end, 6, end, 7, 8, end, 9], (2, 7)),
    ):
        request = frontend.prompt("r", prompt, SamplingParams()).request
        assert request.cache_marks == marks


def test_of_a_text_that_is_far_too_long_only_a_part_is_tokenized(
    frontend: Frontend, monkeypatch: pytest.MonkeyPatch
) -> None:
    window, tokenizer = frontend.max_model_len, frontend.tokenizer
    text, lengths = "ab" * 8 * window, []
    whole, encode = tokenizer.encode(text), tokenizer.encode

    def seen(part: str, add_special_tokens: bool = True) -> list[int]:
        lengths.append(len(part))
        return encode(part, add_special_tokens)

    monkeypatch.setattr(tokenizer, "encode", seen)
    message = f"more than {window} tokens: its first {4 * window} of {len(text)}"
    with pytest.raises(PromptTooLongError, match=message):
        frontend.prompt("id", text, SamplingParams())
    params = SamplingParams(truncate_prompt_tokens=100, max_tokens=1)
    assert frontend.prompt("id", text, params).request.prompt_token_ids == tuple(whole[-100:])
    assert lengths == [4 * window, 400]
    # Who only counts may ask for more.
    assert frontend.tokenize(text) == whole
    with pytest.raises(PromptTooLongError):
        frontend.tokenize(8 * text)
