"""Opening a model: the right reader, the tokenizer's files, the chat template, clear refusals."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import (
    LLAMA,
    llama_tensors,
    safetensors_bytes,
    write_gguf,
    write_llama,
    write_safetensors,
)

from loire.base.errors import CheckpointError, ModelNotFoundError, UnsupportedModelError
from loire.checkpoint.open import open_checkpoint


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def test_a_directory_with_everything(tmp_path: Path) -> None:
    write_llama(tmp_path)
    write_json(tmp_path / "tokenizer.json", {"model": {}})
    write_json(tmp_path / "tokenizer_config.json", {"add_bos_token": True})
    write_json(tmp_path / "generation_config.json", {"eos_token_id": [5, 2]})
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.path == tmp_path
    assert checkpoint.description.architecture == "llama"
    assert checkpoint.description.eos_token_ids == (2, 5)
    assert checkpoint.tokenizer.tokenizer_json == tmp_path / "tokenizer.json"
    assert checkpoint.tokenizer.tokenizer_config == {"add_bos_token": True}
    assert checkpoint.tokenizer.gguf_metadata is None
    assert checkpoint.chat_template is None
    assert checkpoint.num_parameters == sum(tensor.size for tensor in llama_tensors().values())


def test_a_gguf_file(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_gguf(tmp_path / "model.gguf"))
    assert checkpoint.description.num_layers == 2
    assert checkpoint.tokenizer.tokenizer_json is None


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"tokenizer_config.json": {"chat_template": "A"}}, "A"),
        ({"chat_template.json": {"chat_template": "B"}}, "B"),
        ({"chat_template.jinja": "C", "tokenizer_config.json": {"chat_template": "A"}}, "C"),
        (
            {
                "tokenizer_config.json": {
                    "chat_template": [
                        {"name": "tool_use", "template": "T"},
                        {"name": "default", "template": "D"},
                    ]
                }
            },
            {"tool_use": "T", "default": "D"},
        ),
        ({"tokenizer_config.json": {"chat_template": [{"name": "default", "template": "D"}]}}, "D"),
        (
            {"chat_template.jinja": "C", "additional_chat_templates/rag.jinja": "R"},
            {"default": "C", "rag": "R"},
        ),
        ({"tokenizer_config.json": {"chat_template": ["odd", {"name": []}]}}, None),
    ],
)
def test_where_the_chat_template_may_be(
    tmp_path: Path, files: dict[str, Any], expected: Any
) -> None:
    write_llama(tmp_path)
    for name, value in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(value if isinstance(value, str) else json.dumps(value))
    assert open_checkpoint(tmp_path).chat_template == expected


def test_a_chat_template_that_is_no_text_is_refused(tmp_path: Path) -> None:
    write_llama(tmp_path)
    write_json(tmp_path / "tokenizer_config.json", {"chat_template": 3})
    with pytest.raises(CheckpointError, match="chat template is not text"):
        open_checkpoint(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja cannot be read"):
        open_checkpoint(tmp_path)


def test_output_weights_that_repeat_the_embeddings_are_dropped(tmp_path: Path) -> None:
    write_llama(tmp_path, tie_word_embeddings=True)
    tensors = llama_tensors()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    write_safetensors(tmp_path / "model.safetensors", tensors)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.description.tied_embeddings
    assert "lm_head.weight" not in checkpoint.tensors


def test_output_weights_of_their_own_win_over_the_configuration(tmp_path: Path) -> None:
    write_llama(tmp_path, tie_word_embeddings=True)
    checkpoint = open_checkpoint(tmp_path)
    assert not checkpoint.description.tied_embeddings
    assert "lm_head.weight" in checkpoint.tensors


@pytest.mark.parametrize("prefix", ["language_model.", "model.language_model."])
def test_the_text_part_of_a_multimodal_model(tmp_path: Path, prefix: str) -> None:
    """Both layouts of Gemma 3's files; the vision part is left out."""
    text = {**LLAMA, "model_type": "gemma3_text", "head_dim": 8, "sliding_window": 16}
    write_json(tmp_path / "config.json", {"model_type": "gemma3", "text_config": text})
    tensors = {}
    for name, tensor in llama_tensors().items():
        if name == "lm_head.weight":
            continue
        if prefix == "model.language_model.":
            name = name.removeprefix("model.")
        tensors[prefix + name] = tensor
    expected = set(llama_tensors()) - {"lm_head.weight"}
    root = "" if prefix == "language_model." else "model."
    tensors[root + "vision_tower.vision_model.encoder.weight"] = np.ones(2)
    tensors[root + "multi_modal_projector.mm_soft_emb_norm.weight"] = np.ones(2)
    write_safetensors(tmp_path / "model.safetensors", tensors)
    checkpoint = open_checkpoint(tmp_path)
    assert set(checkpoint.tensors) == expected
    assert all(info.name == name for name, info in checkpoint.tensors.items())


def test_two_tensors_for_one_place_are_refused(tmp_path: Path) -> None:
    write_llama(tmp_path)
    tensors = llama_tensors()
    tensors["language_model.model.norm.weight"] = np.ones(32)
    write_safetensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match=r"are both the model's 'model\.norm\.weight'"):
        open_checkpoint(tmp_path)


def test_rotary_frequencies_of_older_files_are_left_out(tmp_path: Path) -> None:
    write_llama(tmp_path)
    tensors = llama_tensors()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4)
    write_safetensors(tmp_path / "model.safetensors", tensors)
    assert set(open_checkpoint(tmp_path).tensors) == set(llama_tensors())


def test_what_is_not_a_model_is_refused_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="does not exist"):
        open_checkpoint(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"no config\.json: it is empty"):
        open_checkpoint(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(CheckpointError, match=r"no config\.json: it is no model directory"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"neither a model directory nor a GGUF file"):
        open_checkpoint(tmp_path / "notes.txt")
    write_gguf(tmp_path / "small.gguf")
    with pytest.raises(CheckpointError, match=r"name one of its GGUF files.*small\.gguf"):
        open_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(UnsupportedModelError, match="is a pickle: loading one would run"):
        open_checkpoint(tmp_path / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "should hold a JSON object, not list"),
        (b'{"a": 1, "a": 2}', "'a' occurs twice"),
        (b"\xff", "cannot be read"),
        (b'{"a":' * 100_000, "not valid JSON"),
    ],
)
def test_damaged_json_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        write_llama(tmp_path)
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message) as caught:
            open_checkpoint(tmp_path)
        assert name in str(caught.value)
        path.unlink()


def test_json_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    write_llama(tmp_path)
    with (tmp_path / "tokenizer_config.json").open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(CheckpointError, match=r"has 1073741824 bytes"):
        open_checkpoint(tmp_path)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    write_llama(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        open_checkpoint(tmp_path)


def test_the_room_needs_no_torch() -> None:
    script = (
        "import sys, loire.checkpoint.open, loire.checkpoint.store\n"
        "for name in ('torch', 'transformers', 'huggingface_hub', 'rich', 'gguf'):\n"
        "    assert name not in sys.modules, name\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_a_model_without_a_head_has_names_without_a_prefix(tmp_path: Path) -> None:
    write_llama(tmp_path, tie_word_embeddings=True)
    whole = open_checkpoint(tmp_path)
    tensors = {
        name.removeprefix("model."): tensor
        for name, tensor in llama_tensors().items()
        if name != "lm_head.weight"
    }
    write_safetensors(tmp_path / "model.safetensors", tensors)
    checkpoint = open_checkpoint(tmp_path)
    assert set(checkpoint.tensors) == set(whole.tensors) - {"lm_head.weight"}


def test_what_predicts_further_tokens_and_buffers_are_left_aside(tmp_path: Path) -> None:
    write_llama(tmp_path)
    expected = set(open_checkpoint(tmp_path).tensors)
    tensors = llama_tensors() | {
        "mtp.layers.0.self_attn.q_proj.weight": np.ones((2, 2)),
        "model.layers.2.eh_proj.weight": np.ones((2, 2)),
        "model.layers.2.self_attn.q_proj.weight": np.ones((2, 2)),
        "model.visual.blocks.0.attn.qkv.weight": np.ones((2, 2)),
        "model.embeddings.position_ids": np.ones(4),
    }
    write_safetensors(tmp_path / "model.safetensors", tensors)
    data = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    end = len(data) - 8 - length
    for dtype, size in (("I64", 8), ("BOOL", 1)):
        header[f"model.mask_{dtype}"] = {
            "dtype": dtype,
            "shape": [3],
            "data_offsets": [end, end + 3 * size],
        }
        end += 3 * size
    (tmp_path / "model.safetensors").write_bytes(
        safetensors_bytes(header, data[8 + length :] + b"\0" * 27)
    )
    assert set(open_checkpoint(tmp_path).tensors) == expected
