"""Model files that lie are refused in one sentence, before they cost anything."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import samples
from samples import ARRAY, I32, STRING, U32

from loire import LLM, SamplingParams
from loire.base.errors import MAX_MESSAGE, CapacityError, CheckpointError, ModelError
from loire.checkpoint.open import MAX_TEMPLATE, open_checkpoint
from loire.checkpoint.safetensors_header import MAX_HEADER_BYTES
from loire.execution import build
from loire.models import layer_loader
from loire.models.rotary import rotary_table
from loire.text.tokenizer import checkpoint_tokenizer

NUM_TOKENS = len(samples.tokens())
I64 = 11


def opened(path: Path) -> None:
    """What a start does with a model's files before the weights."""
    tokenizer = checkpoint_tokenizer(open_checkpoint(path))
    tokenizer.decode(tokenizer.encode("Hello, world"))


def gguf(folder: Path, kind: str = "gpt2", **changes: tuple[int, Any]) -> Path:
    """A GGUF file with other keys; a double underscore stands for the point."""
    keys = samples.metadata(kind)
    keys |= {name.replace("__", "."): value for name, value in changes.items()}
    path = folder / "model.gguf"
    path.write_bytes(samples.gguf(keys))
    return path


def directory(folder: Path, **changes: Any) -> Path:
    """A directory with other fields; `config__eos_token_id` is one of config.json."""
    contents = samples.files()
    for name, value in changes.items():
        file, _, field = name.partition("__")
        contents[f"{file}.json"][field] = value
    return samples.write(folder, contents)


def test_the_samples_themselves_are_taken(tmp_path: Path) -> None:
    opened(gguf(tmp_path))
    opened(gguf(tmp_path, "llama"))
    opened(directory(tmp_path / "model"))


KINDS = "tokenizer__ggml__token_type"


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("gpt2", {KINDS: (STRING, "x" * NUM_TOKENS)}, "token_type should have 261 numbers"),
        ("gpt2", {KINDS: (U32, 5)}, "token_type should have 261 numbers"),
        ("gpt2", {KINDS: (ARRAY, (STRING, ["x"] * NUM_TOKENS))}, "token_type should have 261"),
        ("gpt2", {KINDS: (ARRAY, (I32, [1]))}, "261 numbers, one per token, but has 1"),
        ("llama", {"tokenizer__ggml__scores": (STRING, "x" * NUM_TOKENS)}, "scores should have"),
        ("gpt2", {"tokenizer__ggml__eos_token_id": (U32, NUM_TOKENS)}, "with token 261"),
        ("gpt2", {"tokenizer__ggml__eos_token_id": (I64, -5)}, "with token -5"),
        ("gpt2", {"llama__context_length": (U32, 2**31 - 1)}, "from 1 to 16777216"),
        ("gpt2", {"tokenizer__ggml__pre": (STRING, "x" * 10**6)}, "pre-tokenizer"),
        ("gpt2", {"tokenizer__chat_template": (STRING, "{{x}}" * 10**5)}, str(MAX_TEMPLATE)),
    ],
)
def test_gguf_files(kind: str, changes: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        opened(gguf(tmp_path, kind, **changes))
    assert len(str(caught.value)) <= MAX_MESSAGE


def test_an_unknown_token_that_is_none(tmp_path: Path) -> None:
    opened(gguf(tmp_path, "llama", tokenizer__ggml__unknown_token_id=(I64, -(10**9))))


def test_a_piece_whose_halves_are_many(tmp_path: Path) -> None:
    words = samples.tokens()
    words[-1] = "a" * 10**6
    path = gguf(tmp_path, "llama", tokenizer__ggml__tokens=(ARRAY, (STRING, words)))
    with pytest.raises(CheckpointError, match="a piece of 1000000 characters"):
        opened(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config__eos_token_id": 999_999}, "with token 999999, but the embedding has 261 rows"),
        ({"generation_config__eos_token_id": [2, 300]}, "with token 300"),
        ({"config__max_position_embeddings": 2**31}, "from 1 to 16777216"),
        ({"config__model_type": "x" * 10**5}, r"model type 'xxx.* \.\.\. .*"),
        ({"tokenizer__model": {"type": "Unigram", "unk_id": 9, "vocab": [["a", 0.0]]}}, "token"),
        ({"tokenizer__model": "x" * 10**6}, "cannot be read"),
    ],
)
def test_directories(changes: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        opened(directory(tmp_path, **changes))
    assert len(str(caught.value)) <= MAX_MESSAGE


@pytest.mark.parametrize("text", [False, 5, None, ["x"], {}])
@pytest.mark.parametrize("where", ["tokenizer_config.json", "chat_template.json"])
def test_named_templates_are_texts(where: str, text: Any, tmp_path: Path) -> None:
    contents = samples.files()
    del contents["chat_template.jinja"]
    for template in ({"default": samples.TEMPLATE, "tool_use": text}, False, 5):
        contents[where] = {**contents.get(where, {}), "chat_template": template}
        with pytest.raises(CheckpointError, match="the chat template is not text"):
            opened(samples.write(tmp_path, contents))


def replaced(content: str, times: int) -> dict[str, Any]:
    step = {"type": "Replace", "pattern": {"String": "l"}, "content": content}
    return {"type": "Sequence", "normalizers": [step] * times}


def test_a_tokenizer_that_lengthens_texts_without_end(tmp_path: Path) -> None:
    opened(directory(tmp_path, tokenizer__normalizer=replaced("ll", 6)))
    with pytest.raises(CheckpointError, match=r"make a text 1\.09951e\+12 times as long"):
        opened(directory(tmp_path, tokenizer__normalizer=replaced("ll", 40)))
    with pytest.raises(CheckpointError, match="1002 steps before its tokens"):
        opened(directory(tmp_path, tokenizer__normalizer=replaced("l", 1000)))


def test_a_pattern_without_end(tmp_path: Path) -> None:
    pattern = {"Regex": "(a|b)" * 5000}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    with pytest.raises(CheckpointError, match="a pattern of 25000 characters"):
        opened(directory(tmp_path, tokenizer__pre_tokenizer=split))


def test_an_added_token_without_end(tmp_path: Path) -> None:
    """All of its beginnings together had gigabytes."""
    path = samples.write(tmp_path, samples.files())
    file = path / "tokenizer.json"
    definition = json.loads(file.read_text())
    definition["added_tokens"][0]["content"] *= 10_000
    file.write_text(json.dumps(definition))
    with pytest.raises(CheckpointError, match=r"an added token of .* characters, more than 1000"):
        opened(path)


def test_a_header_that_would_fill_the_memory(tmp_path: Path) -> None:
    path = samples.write(tmp_path, samples.files())
    length = MAX_HEADER_BYTES + 1
    head = struct.pack("<Q", length) + b'{"a":['
    with (path / "model.safetensors").open("wb") as file:
        file.write(head)
        file.truncate(length + 8)
    with pytest.raises(CheckpointError, match=f"a header of {length} bytes, more than"):
        opened(path)


def test_a_panic_of_the_tokenizers_library_is_an_error_of_the_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class PanicException(BaseException):
        """As pyo3 raises it: no Exception."""

    class Panicking:
        @staticmethod
        def from_file(path: str) -> None:
            raise PanicException("index out of bounds")

    monkeypatch.setattr("loire.text.tokenizer.RustTokenizer", Panicking)
    with pytest.raises(CheckpointError, match="cannot be read: index out of"):
        opened(directory(tmp_path))


def loaded(path: Path, **options: Any) -> LLM:
    return LLM(str(path), num_threads=1, **{"kv_cache_memory_bytes": 4_000_000, **options})


def test_a_matrix_in_blocks_that_is_none(tmp_path: Path) -> None:
    entries, body = samples.gguf_tensors("Q4_0")
    [entry] = [entry for entry in entries if entry.name == "blk.0.attn_q.weight"]
    entry.shape = entry.shape[1:]
    path = tmp_path / "model.gguf"
    path.write_bytes(samples.gguf(samples.metadata(), tensors=(entries, body)))
    with pytest.raises(CheckpointError, match=r"q_proj.weight' has the shape \(32,\), but"):
        loaded(path)


def test_a_window_of_millions_takes_no_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = directory(tmp_path, config__max_position_embeddings=2**24)
    made: list[int] = []

    def noting(rope: Any, num_positions: int, device: Any) -> Any:
        made.append(num_positions)
        return rotary_table(rope, num_positions, device)

    monkeypatch.setattr(layer_loader, "rotary_table", noting)
    with pytest.raises(CapacityError, match="lower max_model_len to at most"):
        loaded(path, max_model_len=2**24)
    assert made == []
    monkeypatch.setattr(build, "available_memory", lambda device: 10**7)
    with loaded(path, kv_cache_memory_bytes=None) as llm:
        assert made == [llm.config.max_model_len]
        assert llm.config.max_model_len < 10**5


def test_a_tokenizer_larger_than_the_embedding_is_loaded(tmp_path: Path) -> None:
    tokenizer = samples.tokenizer()
    extra = {**tokenizer["added_tokens"][0], "id": NUM_TOKENS + 5, "content": "Hi"}
    path = directory(tmp_path, tokenizer__added_tokens=[*tokenizer["added_tokens"], extra])
    with loaded(path) as llm:
        [output] = llm.generate("he", SamplingParams(max_tokens=2, temperature=0.0))
        assert len(output.outputs[0].token_ids) == 2
        assert llm.frontend.tokenizer.encode("Hi") == [NUM_TOKENS]


@pytest.mark.parametrize(
    "broken",
    [
        {"tokenizer__model": {"type": "Unigram", "unk_id": None, "vocab": []}},
        {"tokenizer__model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "x"}},
        {
            "tokenizer__post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "zz", "type_id": 0}}],
                "pair": [],
                "special_tokens": {},
            }
        },
    ],
)
def test_a_tokenizer_that_cannot_encode(broken: dict[str, Any], tmp_path: Path) -> None:
    """Some fail with an Exception, some by a panic."""
    with pytest.raises(CheckpointError, match="cannot encode a plain text"):
        opened(directory(tmp_path, **broken))
