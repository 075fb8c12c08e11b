"""What tokenizer_config.json adds to a tokenizer.json, as transformers 5 understands it.

(What comes before and after a text is tokenizer.json's affair alone: add_bos_token counts for
files of other kinds only.)
"""

from collections.abc import Iterator, Mapping
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as RustTokenizer

from loire.base.errors import CheckpointError

MAX_ADDED = 2**16
"""Most added tokens; the longest known lists have some thousand."""


def add_tokens(rust: RustTokenizer, config: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Add the tokens that only the configuration knows, and make those special that it calls so.

    names: its special tokens by their names (bos_token, ...). Raises CheckpointError where an
    added token would get another id than it says.
    """
    known = {token.content for token in rust.get_added_tokens_decoder().values()}
    listed = sorted(_listed(config.get("added_tokens_decoder")), key=lambda pair: pair[0])
    for token_id, token in listed:
        if token.content in known:
            continue
        present = rust.token_to_id(token.content)
        expected = rust.get_vocab_size(with_added_tokens=True) if present is None else present
        if expected != token_id:
            raise CheckpointError(
                f"added_tokens_decoder says that {token.content[:80]!r} is token {token_id}, but "
                f"it would be {expected}"
            )
        rust.add_tokens([token])
        known.add(token.content)
    special = [*names.values(), *_extra(config)]
    rust.add_special_tokens(
        [
            AddedToken(text, special=True, normalized=False)
            for text in dict.fromkeys(special)
            # What is not in the vocabulary has no row in the embedding either.
            if text not in known and rust.token_to_id(text) is not None
        ]
    )


def _listed(given: object) -> Iterator[tuple[int, AddedToken]]:
    if not isinstance(given, Mapping):
        return
    if len(given) > MAX_ADDED:
        raise CheckpointError(f"added_tokens_decoder has {len(given)} tokens, over {MAX_ADDED}")
    for key, entry in given.items():
        content = entry.get("content") if isinstance(entry, Mapping) else None
        if not isinstance(content, str) or not content or not str(key).isdecimal():
            raise CheckpointError(f"added_tokens_decoder has the entry {str(key)[:80]!r}: no token")
        flags = {
            name: bool(entry.get(name, False))
            for name in ("single_word", "lstrip", "rstrip", "normalized", "special")
        }
        yield int(key), AddedToken(content, **flags)


def _extra(config: Mapping[str, Any]) -> Iterator[str]:
    """Special tokens without a name."""
    for key in ("additional_special_tokens", "extra_special_tokens"):
        given = config.get(key)
        values = [*given.values()] if isinstance(given, Mapping) else given
        for value in values if isinstance(values, list) else []:
            content = value.get("content") if isinstance(value, Mapping) else value
            if isinstance(content, str) and content:
                yield content
