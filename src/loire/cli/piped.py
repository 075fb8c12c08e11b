"""What is piped into a command: the context of a prompt, or the prompt itself."""

import io
import os
import stat
import sys

from loire.base.errors import RequestError


def prompt_with_input(prompt: str | None) -> str:
    """The prompt of a command line, after the text that is piped in, if any.

    None or "-" stands for the text alone. Raises RequestError if there is neither, or the text is
    not UTF-8.
    """
    if prompt == "-":
        text = _read()
        if not text.strip():
            raise RequestError("the prompt - stands for standard input, but nothing came from it")
        return text
    text = _read() if _is_piped() else ""
    if not text.strip():
        if prompt is None or not prompt.strip():
            raise RequestError(
                'there is no prompt: say `loire run "..."`, pipe a text into it, or both'
            )
        return prompt
    return text if prompt is None or not prompt.strip() else f"{text.rstrip()}\n\n{prompt}"


def _is_piped() -> bool:
    """Whether standard input is a pipe or a file: not a terminal, and not /dev/null."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError, io.UnsupportedOperation):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def _read() -> str:
    try:
        # Decoded here: where the locale is C, Python's own way would let anything pass.
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"standard input is not text in UTF-8: {error}") from error
