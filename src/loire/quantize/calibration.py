"""Text that a model is calibrated on, cut into pieces of one length."""

from importlib.resources import files
from pathlib import Path

from loire.base.errors import ConfigError
from loire.text.tokenizer import Tokenizer

TEXT_TOKENS = 256
MOST_TEXTS = 64
"""More make little difference, and their inputs have to fit into memory."""
TOKEN_CHARACTERS = 16
"""Four times what a token has of usual text."""
CHECKED_SHARE = 5
"""One text of so many is left out of calibration, to check the result with."""


def read_text(path: str | None, most_texts: int = MOST_TEXTS) -> str:
    """The beginning of a file's text, with more than so many texts in it if there are as many; or
    the one that comes with Loire. Raises ConfigError."""
    if path is None:
        return (files("loire.quantize") / "calibration.txt").read_text(encoding="utf-8")
    try:
        with Path(path).open(encoding="utf-8") as file:
            return file.read(most_texts * TEXT_TOKENS * TOKEN_CHARACTERS)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def cut(
    tokenizer: Tokenizer, text: str, most_tokens: int, most: int = MOST_TEXTS
) -> list[list[int]]:
    """Token ids, texts of one length, the last of them for checking. most_tokens: of one. Each
    begins with the token that begins a text, where the tokenizer has one: without it some models
    say nothing sensible, and with it they have states as large as nowhere else.

    Raises ConfigError if the text is too short.
    """
    first, ids = tokenizer.first_ids, tokenizer.encode(text, add_special_tokens=False)
    length = min(TEXT_TOKENS, most_tokens) - len(first)
    texts = [[*first, *ids[at : at + length]] for at in range(0, len(ids) - length + 1, length)]
    if len(texts) < 2:
        raise ConfigError(
            f"the calibration text has {len(ids)} tokens, but needs at least {2 * length}"
        )
    return texts[:most]


def num_calibrated(num_texts: int) -> int:
    """How many of the texts are calibrated on; the others are there to check."""
    return num_texts - max(1, num_texts // CHECKED_SHARE)
