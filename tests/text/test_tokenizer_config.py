"""tokenizer_config.json changes a tokenizer.json as it does in transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from loire.base.errors import CheckpointError
from loire.checkpoint.checkpoint import TokenizerSource
from loire.text.tokenizer import Tokenizer, load_tokenizer
from support.tiny_models import VOCAB_SIZE, save_tokenizer

TEXT = "<think>hello <tool> </think><|im_end|> you<|endoftext|>"


def token(content: str, **flags: bool) -> dict[str, object]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"content": content, **plain, **flags}


ADDED = {
    str(VOCAB_SIZE): token("<think>"),
    str(VOCAB_SIZE + 1): token("</think>", special=True),
    str(VOCAB_SIZE + 2): token("<tool>", lstrip=True, rstrip=True),
}
CASES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "added tokens": {"added_tokens_decoder": ADDED},
    "begin": {"bos_token": "<|endoftext|>", "add_bos_token": True},
    "begin and end": {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>",
                      "add_bos_token": True, "add_eos_token": True},
    "no begin": {"bos_token": "<|endoftext|>", "add_bos_token": False},
    "no such token": {"add_bos_token": True},
    "special by name alone": {"pad_token": "a", "additional_special_tokens": ["b"]},
}  # fmt: skip


def loaded(folder: Path, config: dict[str, Any], template: bool = False) -> Tokenizer:
    save_tokenizer(folder)
    if template:
        path = folder / "tokenizer.json"
        content = json.loads(path.read_text())
        special = {
            "<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}
        }
        sequence = {"Sequence": {"id": "A", "type_id": 0}}
        before = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
        content["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [before, sequence],
            "pair": [before, sequence],
            "special_tokens": special,
        }
        path.write_text(json.dumps(content))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    source = TokenizerSource(tokenizer_json=folder / "tokenizer.json", tokenizer_config=config)
    return load_tokenizer(source)


@pytest.mark.parametrize("template", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_the_same_tokens_as_transformers(tmp_path: Path, case: str, template: bool) -> None:
    ours = loaded(tmp_path, CASES[case], template)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in (TEXT, "plain"):
        assert ours.encode(text) == theirs(text)["input_ids"]
    ids = list(range(ours.vocab_size))
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_end_tokens_are_those_of_all_files(tmp_path: Path) -> None:
    tokenizer = loaded(tmp_path, {"eos_token": "<|im_end|>"})
    assert tokenizer.eos_token_ids == (2,)
    source = TokenizerSource(
        tokenizer_json=tmp_path / "tokenizer.json", tokenizer_config={"eos_token": "<|im_end|>"}
    )
    assert load_tokenizer(source, eos_token_ids=(0,)).eos_token_ids == (0, 2)
    assert load_tokenizer(source, eos_token_ids=(2, 0)).eos_token_ids == (2, 0)


@pytest.mark.parametrize(
    ("added", "message"),
    [
        (
            {str(VOCAB_SIZE + 5): token("<late>")},
            f"'<late>' is token {VOCAB_SIZE + 5}, but it would",
        ),
        ({"x": token("<a>")}, "the entry 'x': no token"),
        ({"300": {"content": 5}}, "the entry '300': no token"),
    ],
)
def test_lists_of_added_tokens_that_do_not_fit(
    tmp_path: Path, added: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        loaded(tmp_path, {"added_tokens_decoder": added})
