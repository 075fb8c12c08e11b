"""A quantized model as a directory: safetensors, a layer each, and a config.json that says all."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from loire import __version__
from loire.checkpoint.checkpoint import Checkpoint
from loire.checkpoint.formats import BLOCK_FORMATS, LEVEL_ROWS
from loire.checkpoint.hub_cache import name_of
from loire.checkpoint.safetensors_header import read_file
from loire.checkpoint.saved_description import LEVELS_ENDING, VERSION, written
from loire.kernels.block_formats import StoredTensor
from loire.quantize.work import ASKED, write_tensors
from loire.text.tokenizer import Tokenizer

OWN = "own.json"
"""A file of unfinished work: texts that the model wrote for it."""
Piece: TypeAlias = dict[str, "Tensor | StoredTensor"]
"""Some of a model's tensors by name."""


def write_piece(path: Path, piece: Mapping[str, Tensor | StoredTensor]) -> None:
    """A whole safetensors file, or none: blocks as bytes, numbers in float32, levels of their own
    once for the rows that share them. Raises ConfigError if it cannot be written."""
    tensors = {
        name: tensor.blocks.contiguous()
        if isinstance(tensor, StoredTensor)
        else tensor.float().contiguous()
        for name, tensor in piece.items()
    }
    formats = {
        name: tensor.format.name
        for name, tensor in piece.items()
        if isinstance(tensor, StoredTensor)
    }
    for name, tensor in piece.items():
        levels = shared_levels(tensor) if isinstance(tensor, StoredTensor) else None
        if levels is not None:
            tensors[f"{name}{LEVELS_ENDING}"] = levels
    write_tensors(path, tensors, {"format": "pt", "formats": json.dumps(formats)})


def read_piece(path: Path) -> Piece:
    """What write_piece() wrote."""
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        formats = json.loads(file.metadata()["formats"])
        found: Piece = {}
        names = set(file.keys())
        for name in names:
            tensor = file.get_tensor(name)
            if name in formats:
                levels = f"{name}{LEVELS_ENDING}"
                of_rows = None
                if levels in names:
                    of_rows = file.get_tensor(levels)[torch.arange(len(tensor)) // LEVEL_ROWS]
                found[name] = StoredTensor(BLOCK_FORMATS[formats[name]], tensor, levels=of_rows)
            elif name.removesuffix(LEVELS_ENDING) not in formats:
                found[name] = tensor
    return found


def shared_levels(tensor: StoredTensor) -> Tensor | None:
    """int8 [tables, levels] of what was rounded, each table of LEVEL_ROWS rows."""
    return None if tensor.levels is None else tensor.levels[::LEVEL_ROWS].contiguous()


def finish(
    folder: Path,
    out: Path,
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    report: Mapping[str, Any],
) -> None:
    """Make the folder of pieces a model's directory, and give it its name."""
    places = {
        name: path.name for path in sorted(folder.glob("*.safetensors")) for name in read_file(path)
    }
    _write(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": report["num_bytes"]}, "weight_map": places},
    )
    _write(
        folder / "config.json",
        {
            "model_type": "loire",
            # (Whoever reads nothing newer can read what has no levels of its own.)
            "version": VERSION if report["level_rows"] else 1,
            "made_by": f"loire {__version__}",
            "made_from": name_of(checkpoint.path),
            **report,
            "description": written(checkpoint.description),
        },
    )
    tokenizer.rust.save(str(folder / "tokenizer.json"))
    _write(folder / "tokenizer_config.json", dict(tokenizer.template_tokens))
    _write(folder / "generation_config.json", dict(checkpoint.sampling_defaults.values))
    template = checkpoint.chat_template
    if template is not None:
        named = {"default": template} if isinstance(template, str) else dict(template)
        (folder / "chat_template.jinja").write_text(named.pop("default"), encoding="utf-8")
        for name, text in named.items():
            more = folder / "additional_chat_templates"
            more.mkdir(exist_ok=True)
            (more / f"{name}.jinja").write_text(text, encoding="utf-8")
    folder.replace(out)
    # (Last: without its first file a folder would be taken for one that holds nothing yet.)
    for name in (OWN, ASKED):
        (out / name).unlink()


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
