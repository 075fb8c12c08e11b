"""The tokenizer of a model, over Hugging Face's `tokenizers`, wherever its definition lies."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer as RustTokenizer

from loire.base.errors import CheckpointError, RequestError
from loire.checkpoint.checkpoint import Checkpoint, TokenizerSource
from loire.text.control_tokens import encode_marked, has_marks
from loire.text.gguf_tokenizer import build_from_gguf
from loire.text.token_bytes import TokenBytes
from loire.text.tokenizer_config import add_tokens
from loire.text.tokenizer_limits import check_added_tokens, check_bounds, errors_of_the_library

_PROBE = "Hello, w\u00f6rld 123\n\t\u4f60\u597d \U0001f642"
"""What any tokenizer must be able to encode."""
_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")


class Tokenizer:
    """Encodes text, decodes token ids, and knows the special tokens.

    template_tokens: special tokens by the names that chat templates use (bos_token, ...). Raises
    CheckpointError for an added token longer than any real one.
    """

    def __init__(
        self,
        rust: RustTokenizer,
        *,
        eos_token_ids: Sequence[int] = (),
        bos_token_id: int | None = None,
        template_tokens: Mapping[str, str] | None = None,
    ) -> None:
        self.rust = rust
        self.vocab_size = rust.get_vocab_size(with_added_tokens=True)
        self.eos_token_ids = tuple(eos_token_ids)
        self.bos_token_id = bos_token_id
        self.template_tokens = dict(template_tokens or {})
        added = rust.get_added_tokens_decoder()
        check_added_tokens(token.content for token in added.values())
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self._bytes = TokenBytes(rust)

    @cached_property
    def first_ids(self) -> tuple[int, ...]:
        """What it puts before each text: the token that begins one, or nothing."""
        begins = self.bos_token_id
        if begins is None or self.encode("", add_special_tokens=True)[:1] != [begins]:
            return ()
        return (begins,)

    @cached_property
    def longest_token(self) -> int:
        """Characters of the longest name of a token: no token stands for more of a text."""
        return max(map(len, self.rust.get_vocab(with_added_tokens=True)))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; special tokens written in it count as such, unless they are marked
        (control_tokens.py).

        Other threads go on meanwhile: the library keeps Python's lock in encode() (seen: 1.9 s for
        1 MB), but not in its functions for several texts, which are quicker, too.
        """
        if has_marks(text):
            return encode_marked(self.rust, text)
        [ids] = self.encode_batch([text], add_special_tokens)
        return ids

    def encode_batch(
        self, texts: Sequence[str], add_special_tokens: bool = True
    ) -> list[list[int]]:
        """Token ids of several texts, in parallel."""
        with errors_of_the_library("the tokenizer cannot encode this text", RequestError):
            encodings = self.rust.encode_batch_fast(
                list(texts), add_special_tokens=add_special_tokens
            )
        return [encoding.ids for encoding in encodings]

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The whole text of token ids; bytes that are no UTF-8 become U+FFFD."""
        text: str = self.rust.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token stands for inside a text."""
        return self._bytes[token_id]

    def token_text(self, token_id: int) -> str:
        """One token as text; parts of characters show as U+FFFD."""
        return self._bytes[token_id].decode("utf-8", "replace")

    def control_tokens(self, template: str) -> set[str]:
        """Texts of the special tokens, and of the added ones that a chat template writes."""
        added = self.rust.get_added_tokens_decoder().values()
        return {
            token.content
            for token in added
            if token.special or (token.content in template and not token.content.isspace())
        }

    def id_of(self, token: str) -> int | None:
        """Id of a token by its name in the vocabulary."""
        token_id: int | None = self.rust.token_to_id(token)
        return token_id


def checkpoint_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer of a checkpoint, with the special tokens that its description names.

    Raises CheckpointError if there is none or it is damaged.
    """
    description = checkpoint.description
    return load_tokenizer(
        checkpoint.tokenizer,
        eos_token_ids=description.eos_token_ids,
        bos_token_id=description.bos_token_id,
    )


def load_tokenizer(
    source: TokenizerSource, *, eos_token_ids: Sequence[int] = (), bos_token_id: int | None = None
) -> Tokenizer:
    """The tokenizer of a checkpoint, from tokenizer.json or from GGUF metadata.

    Raises CheckpointError if there is none or it is damaged.
    """
    if source.gguf_metadata is not None:
        with errors_of_the_library("the tokenizer of the GGUF file cannot be made"):
            rust = build_from_gguf(source.gguf_metadata)
        names = _gguf_special_tokens(source.gguf_metadata)
    elif source.tokenizer_json is not None:
        with errors_of_the_library(f"{source.tokenizer_json} cannot be read"):
            rust = RustTokenizer.from_file(str(source.tokenizer_json))
            check_bounds(rust, str(source.tokenizer_json))
        names = _config_special_tokens(source.tokenizer_config)
        with errors_of_the_library("tokenizer_config.json does not fit tokenizer.json"):
            add_tokens(rust, source.tokenizer_config, names)
    else:
        raise CheckpointError("the model has no tokenizer.json; Loire needs one beside config.json")
    # A length limit or padding in the file is for training; a prompt is never cut silently.
    rust.no_truncation()
    rust.no_padding()
    with errors_of_the_library("the model's tokenizer cannot encode a plain text"):
        rust.encode_batch_fast([_PROBE])
    if "eos_token" in names:
        # config.json and generation_config.json often leave out what ends a turn.
        found = rust.token_to_id(names["eos_token"])
        eos_token_ids = tuple(dict.fromkeys([*eos_token_ids, *([] if found is None else [found])]))
    return Tokenizer(
        rust, eos_token_ids=eos_token_ids, bos_token_id=bos_token_id, template_tokens=names
    )


def _config_special_tokens(config: Mapping[str, object]) -> dict[str, str]:
    names = {}
    for name in _SPECIAL_NAMES:
        value: Any = config.get(name)
        if isinstance(value, Mapping):
            value = value.get("content")
        if isinstance(value, str):
            names[name] = value
    return names


def _gguf_special_tokens(metadata: Mapping[str, Any]) -> dict[str, str]:
    tokens = metadata.get("tokenizer.ggml.tokens", [])
    keys = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    names = {}
    for key, name in keys.items():
        index = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(index, int) and 0 <= index < len(tokens):
            names[name] = tokens[index]
    return names
