"""Open a model on disk, whatever its format."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from loire.base.errors import CheckpointError, ModelNotFoundError, UnsupportedModelError
from loire.checkpoint import (
    gguf_model,
    gguf_parts,
    huggingface_config,
    quantization_config,
    quantized_tensors,
    safetensors_header,
    sampling_defaults,
    saved_description,
)
from loire.checkpoint.checkpoint import Checkpoint, TensorInfo, TokenizerSource
from loire.checkpoint.description import ModelDescription
from loire.checkpoint.families.config_fields import token_ids
from loire.checkpoint.fields import Fields
from loire.checkpoint.json_file import read_json, read_text
from loire.checkpoint.weights import each

GENERATION_CONFIG = "generation_config.json"
MAX_TEMPLATE = 2**18
"""Characters; the longest known has a fifth of them."""
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def open_checkpoint(path: Path) -> Checkpoint:
    """Read what a model directory or GGUF file says of itself; the weights stay on disk.

    Raises ModelNotFoundError if there is nothing, CheckpointError if it is damaged or incomplete,
    UnsupportedModelError if Loire has no code for it.
    """
    try:
        if path.is_dir():
            return _checked(_open_directory(path))
        if not path.exists():
            raise ModelNotFoundError(f"{path} does not exist")
        if gguf_parts.is_gguf(path):
            return _checked(_open_gguf(path))
        if path.suffix in safetensors_header.PICKLE_SUFFIXES:
            raise UnsupportedModelError(safetensors_header.PICKLE_REFUSAL.format(path))
        raise CheckpointError(f"{path} is neither a model directory nor a GGUF file")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _checked(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint whose named tokens exist. Raises CheckpointError."""
    description = checkpoint.description
    beyond = [
        token_id
        for token_id in description.eos_token_ids
        if not 0 <= token_id < description.vocab_size
    ]
    if beyond:
        raise CheckpointError(
            f"{checkpoint.path}: outputs should end with token {beyond[0]}, but the embedding has "
            f"{description.vocab_size} rows"
        )
    templates = checkpoint.chat_template or ""
    texts = [templates] if isinstance(templates, str) else templates.values()
    longest = max(map(len, texts), default=0)
    if longest > MAX_TEMPLATE:
        raise CheckpointError(
            f"{checkpoint.path}: a chat template has {longest} characters, more than {MAX_TEMPLATE}"
        )
    return checkpoint


def _open_gguf(path: Path) -> Checkpoint:
    file = gguf_parts.read_model(path)
    description = gguf_model.describe(file)
    template = _gguf_chat_template(file.metadata)
    return Checkpoint(
        path=path,
        description=description,
        tensors=_read(gguf_model.tensors(file, description), description),
        tokenizer=TokenizerSource(gguf_metadata=file.metadata),
        chat_template=template,
        sampling_defaults=sampling_defaults.from_gguf(file.metadata, path),
    )


def _gguf_chat_template(metadata: Mapping[str, Any]) -> str | Mapping[str, str] | None:
    default, prefix = metadata.get("tokenizer.chat_template"), "tokenizer.chat_template."
    if not isinstance(default, str):
        return None
    named = {
        key.removeprefix(prefix): value
        for key, value in metadata.items()
        if key.startswith(prefix) and isinstance(value, str)
    }
    return {"default": default, **named} if named else default


def _open_directory(directory: Path) -> Checkpoint:
    config_path = directory / "config.json"
    if not config_path.exists():
        raise CheckpointError(f"{directory} has no config.json{_hint(directory)}")
    config = read_json(config_path)
    is_own = config.get("model_type") == saved_description.MODEL_TYPE
    read = _own_model if is_own else _hugging_face_model
    description, tensors = read(directory, config, str(config_path))
    generation_config = _read_optional(directory / GENERATION_CONFIG)
    description = _with_generation_config(description, generation_config, directory)
    description = _settle_tying(description, tensors)
    tokenizer_json = directory / "tokenizer.json"
    tokenizer_config = _read_optional(directory / "tokenizer_config.json")
    return Checkpoint(
        path=directory,
        description=description,
        tensors=tensors,
        tokenizer=TokenizerSource(
            tokenizer_json=tokenizer_json if tokenizer_json.exists() else None,
            tokenizer_config=tokenizer_config,
        ),
        chat_template=_chat_template(directory, tokenizer_config),
        sampling_defaults=sampling_defaults.from_generation_config(
            generation_config, str(directory / GENERATION_CONFIG)
        ),
    )


def _read(
    tensors: Mapping[str, TensorInfo], description: ModelDescription
) -> dict[str, TensorInfo]:
    """Those that the model has a use for, as far as the description tells."""
    unread = description.unread_names()
    return {name: info for name, info in tensors.items() if name not in unread}


def _hugging_face_model(
    directory: Path, config: Mapping[str, Any], source: str
) -> tuple[ModelDescription, dict[str, TensorInfo]]:
    quantization = quantization_config.of_directory(directory, config, source)
    family, _ = huggingface_config.family_of(config, source)
    description = huggingface_config.describe(config, source)
    stored = huggingface_config.tensors(
        safetensors_header.read_directory(directory), family, description.num_layers
    )
    combined = quantized_tensors.combined(stored, quantization)
    if quantization is not None:
        weights = each(description.weights())
        needed = {name for weight in weights for name in weight.stored_names(combined)}
        combined = quantized_tensors.without_empty_biases(combined, needed)
    return description, _read(combined, description)


def _own_model(
    directory: Path, config: Mapping[str, Any], source: str
) -> tuple[ModelDescription, dict[str, TensorInfo]]:
    """What `loire quantize` has written."""
    description = saved_description.read(config, source)
    stored = safetensors_header.read_directory(directory)
    return description, saved_description.tensors(stored, config, source)


def _hint(directory: Path) -> str:
    """What a directory without config.json may be instead."""
    files = sorted(path.name for path in directory.iterdir() if path.suffix.lower() == ".gguf")
    if files:
        return f"; name one of its GGUF files instead, such as {directory / files[0]}"
    if next(directory.iterdir(), None) is None:
        return ": it is empty"
    return ": it is no model directory in the format of Hugging Face"


def _read_optional(path: Path) -> Mapping[str, Any]:
    return read_json(path) if path.exists() else {}


def _with_generation_config(
    description: ModelDescription, generation_config: Mapping[str, Any], directory: Path
) -> ModelDescription:
    """generation_config.json often lists more end tokens than config.json does."""
    fields = Fields(generation_config, str(directory / GENERATION_CONFIG))
    more = token_ids(fields, "eos_token_id")
    return replace(
        description, eos_token_ids=tuple(dict.fromkeys((*description.eos_token_ids, *more)))
    )


def _settle_tying(
    description: ModelDescription, tensors: dict[str, TensorInfo]
) -> ModelDescription:
    """Where a tied model's files hold the output weights as well, their contents decide.

    Some files repeat the embeddings there (then the copy is dropped), a few hold other weights and
    the configuration is wrong. transformers decides in the same way.
    """
    if not description.tied_embeddings or HEAD not in tensors or EMBEDDING not in tensors:
        return description
    if _same_contents(tensors[HEAD], tensors[EMBEDDING]):
        del tensors[HEAD]
        return description
    return replace(description, tied_embeddings=False)


def _same_contents(first: TensorInfo, second: TensorInfo) -> bool:
    if (first.shape, first.format) != (second.shape, second.format):
        return False
    with first.path.open("rb") as a, second.path.open("rb") as b:
        a.seek(first.offset)
        b.seek(second.offset)
        left = first.num_bytes
        while left:
            size = min(left, 2**20)
            if a.read(size) != b.read(size):
                return False
            left -= size
    return True


def _chat_template(
    directory: Path, tokenizer_config: Mapping[str, Any]
) -> str | Mapping[str, str] | None:
    path = directory / "chat_template.jinja"
    if path.exists():
        template: Any = read_text(path)
        folder = directory / "additional_chat_templates"
        named = {file.stem: read_text(file) for file in sorted(folder.glob("*.jinja"))}
        template = {"default": template, **named} if named else template
    else:
        template = tokenizer_config.get("chat_template")
        if template is None:
            template = _read_optional(directory / "chat_template.json").get("chat_template")
        if isinstance(template, list):
            template = _named_templates(template)
    texts = template.values() if isinstance(template, Mapping) else (template,)
    if template is not None and not all(isinstance(text, str) for text in texts):
        raise CheckpointError(f"{directory}: the chat template is not text")
    found: str | Mapping[str, str] | None = template
    return found


def _named_templates(entries: list[Any]) -> str | dict[str, str] | None:
    """Several templates by name, such as default, tool_use and rag; alone, the text itself."""
    named = {
        entry["name"]: entry["template"]
        for entry in entries
        if isinstance(entry, Mapping)
        and isinstance(entry.get("name"), str)
        and isinstance(entry.get("template"), str)
    }
    return named["default"] if set(named) == {"default"} else named or None
