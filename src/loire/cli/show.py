"""What a model is, from its files: family, sizes, window, template, sampling."""

import argparse
import json
from collections import Counter
from typing import TYPE_CHECKING

from loire.checkpoint.open import open_checkpoint
from loire.checkpoint.store import resolve_model
from loire.cli.columns import aligned
from loire.cli.options import DEFAULT_MODEL, MODEL_HELP

if TYPE_CHECKING:
    from loire.checkpoint.checkpoint import Checkpoint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `loire show`."""
    parser.add_argument("model", nargs="?", default=DEFAULT_MODEL, help=MODEL_HELP)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    """Run the verb; the exit status."""
    checkpoint = open_checkpoint(resolve_model(args.model, allow_download=False))
    facts: dict[str, dict[str, object]] = {
        "model": _model(args.model, checkpoint),
        "text": _text(checkpoint),
        "sampling": sampling_facts(checkpoint),
    }
    if args.json:
        print(json.dumps(facts))
        return 0
    for section, entries in facts.items():
        print(section)
        for line in aligned(entries):
            print(line)
    return 0


def sampling_facts(checkpoint: "Checkpoint") -> dict[str, object]:
    """What requests that say nothing of sampling get, and who recommends it."""
    defaults = checkpoint.sampling_defaults
    nobody = "nobody: temperature 1, all tokens"
    return {**defaults.values, "recommended by": defaults.source or nobody}


def _model(name: str, checkpoint: "Checkpoint") -> dict[str, object]:
    description = checkpoint.description
    held = Counter[str]()
    for tensor in checkpoint.tensors.values():
        held[tensor.format.name] += tensor.num_bytes
    shares = {key: size / max(checkpoint.weight_bytes, 1) for key, size in held.most_common()}
    facts: dict[str, object] = {
        "name": name,
        "path": str(checkpoint.path),
        "family": description.architecture,
        "parameters": f"{checkpoint.num_parameters / 1e6:,.1f} million",
        "weights": f"{checkpoint.weight_bytes / 1e6:,.1f} MB in the files",
        "formats": [f"{key} {share:.0%}" for key, share in shares.items()],
        "layers": len(description.layers),
        "window": f"{description.max_positions:,} tokens",
        "KV per token": f"{description.kv_bytes_per_token('bfloat16') / 1e3:,.1f} kB in bfloat16",
    }
    if description.state_bytes:
        facts["state"] = f"{description.state_bytes / 1e6:,.1f} MB per sequence"
    return facts


def _text(checkpoint: "Checkpoint") -> dict[str, object]:
    from loire.text.chat_template import ChatTemplate
    from loire.text.dialect import read_dialect
    from loire.text.tokenizer import checkpoint_tokenizer

    tokenizer = checkpoint_tokenizer(checkpoint)
    ends = [tokenizer.token_text(token_id) for token_id in tokenizer.eos_token_ids]
    facts: dict[str, object] = {
        "vocabulary": f"{tokenizer.vocab_size:,} tokens",
        "ends with": ends or "nothing",
    }
    if checkpoint.chat_template is None:
        return {**facts, "chat template": "none: use --raw, or give one with --chat-template"}
    template = ChatTemplate(checkpoint.chat_template, tokenizer.template_tokens)
    try:
        dialect = read_dialect(template.source, template.variables)
        own = ", of its template" if dialect.knows_tools else ", as its template teaches none"
        return {
            **facts,
            "chat template": sorted(template.sources),
            "reads": sorted(template.variables) or "messages alone",
            "tool calls": f"{dialect.tool_format.name}{own}",
            "reasoning": "none" if dialect.reasoning is None else dialect.reasoning.closing,
        }
    finally:
        template.close()
