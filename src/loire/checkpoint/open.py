"""Open a model on disk, whatever its format."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loire.base.errors import CheckpointError, ModelNotFoundError
from loire.checkpoint import gguf_model, huggingface_config, safetensors_header
from loire.checkpoint.checkpoint import Checkpoint, TensorInfo, TokenizerSource
from loire.checkpoint.description import ModelDescription
from loire.checkpoint.fields import Fields
from loire.checkpoint.gguf_file import read_gguf

MAX_JSON_BYTES = 64 * 2**20
VISION_PREFIXES = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.",
                   "model.multi_modal_projector.")  # fmt: skip


def open_checkpoint(path: Path) -> Checkpoint:
    """Read what a model directory or GGUF file says of itself; no weights are read.

    Raises ModelNotFoundError if there is nothing, CheckpointError if it is damaged or incomplete,
    UnsupportedModelError if Loire has no code for it.
    """
    if path.is_dir():
        return _open_directory(path)
    if path.suffix == ".gguf" and path.is_file():
        return _open_gguf(path)
    if path.exists():
        raise CheckpointError(f"{path} is neither a model directory nor a .gguf file")
    raise ModelNotFoundError(f"{path} does not exist")


def _open_gguf(path: Path) -> Checkpoint:
    file = read_gguf(path)
    description = gguf_model.describe(file)
    template = file.metadata.get("tokenizer.chat_template")
    return Checkpoint(
        path=path,
        description=description,
        tensors=gguf_model.tensors(file, description),
        tokenizer=TokenizerSource(gguf_metadata=file.metadata),
        chat_template=template if isinstance(template, str) else None,
    )


def _open_directory(directory: Path) -> Checkpoint:
    config_path = directory / "config.json"
    if not config_path.exists():
        files = sorted(path.name for path in directory.glob("*.gguf"))
        hint = f"; name one of its GGUF files, such as {files[0]}" if files else ""
        raise CheckpointError(f"{directory} has no config.json: it is no model directory{hint}")
    description = huggingface_config.describe(read_json(config_path), str(config_path))
    description = _with_generation_config(description, directory)
    tokenizer_json = directory / "tokenizer.json"
    tokenizer_config = _read_optional(directory / "tokenizer_config.json")
    return Checkpoint(
        path=directory,
        description=description,
        tensors=_text_tensors(safetensors_header.read_directory(directory)),
        tokenizer=TokenizerSource(
            tokenizer_json=tokenizer_json if tokenizer_json.exists() else None,
            tokenizer_config=tokenizer_config,
        ),
        chat_template=_chat_template(directory, tokenizer_config),
    )


def read_json(path: Path) -> Mapping[str, Any]:
    """An object from a JSON file of sane size. Raises CheckpointError."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path} has {path.stat().st_size} bytes: too much for JSON")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return value


def _read_optional(path: Path) -> Mapping[str, Any]:
    return read_json(path) if path.exists() else {}


def _with_generation_config(description: ModelDescription, directory: Path) -> ModelDescription:
    """generation_config.json often lists more end tokens than config.json does."""
    from dataclasses import replace

    path = directory / "generation_config.json"
    fields = Fields(_read_optional(path), str(path))
    more = huggingface_config.token_ids(fields.values.get("eos_token_id"), fields, "eos_token_id")
    return replace(
        description, eos_token_ids=tuple(dict.fromkeys((*description.eos_token_ids, *more)))
    )


def _text_tensors(tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Common names; the parts of a multimodal model that are not its text decoder are left out."""
    found = {}
    for name, tensor in tensors.items():
        if name.startswith(VISION_PREFIXES) or name.endswith(".rotary_emb.inv_freq"):
            continue
        name = name.removeprefix("language_model.")
        if name.startswith("model.language_model."):
            name = "model." + name.removeprefix("model.language_model.")
        found[name] = tensor
    return found


def _chat_template(directory: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    path = directory / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    template = tokenizer_config.get("chat_template")
    if template is None:
        template = _read_optional(directory / "chat_template.json").get("chat_template")
    if isinstance(template, list):  # several named ones; the default is the one for chat
        named = {str(entry.get("name")): entry.get("template") for entry in template}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise CheckpointError(f"{directory}: the chat template is not text")
    return template
