"""The input of a batch: JSON Lines, one request each, checked before anything of it is run.

{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {...}}
"""

import time
from array import array
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from loire.server.batches.record import BatchError
from loire.server.web.routes import MAX_BODY_BYTES

MAX_LINES = 50_000
"""OpenAI's limit."""
MAX_ALL_LINES = 200_000
"""Empty ones included."""
MAX_LINE_BYTES = MAX_BODY_BYTES
MAX_CUSTOM_ID = 512
MAX_ERRORS = 50
"""So many mistakes are told; there may be more."""

_PAUSE_LINES = 200
_PAUSE_S = 0.001


CustomId = (
    Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_CUSTOM_ID)]
    | Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
)
"""A text; tables write whole numbers, which come back as such."""


class BatchLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One request. body: what would be sent to the url, as JSON."""

    custom_id: CustomId
    method: Literal["POST"]
    url: str
    body: msgspec.Raw


class _Body(msgspec.Struct, frozen=True):
    """What of a body is looked at here. The rest is skipped, not made into millions of values."""

    stream: msgspec.Raw = msgspec.Raw(b"null")


_decoder = msgspec.json.Decoder(BatchLine)
_body_decoder = msgspec.json.Decoder(_Body)
_NO_STREAM = (b"null", b"false")


@dataclass(frozen=True, slots=True)
class BatchInput:
    """The lines of a file; empty ones do not count. Holds 12 bytes for each: where it is."""

    path: Path
    offsets: "array[int]" = field(default_factory=lambda: array("Q"))
    sizes: "array[int]" = field(default_factory=lambda: array("I"))
    """In bytes, both of them."""

    def __len__(self) -> int:
        return len(self.offsets)

    def read(self, index: int) -> BatchLine:
        """One of the lines. Raises OSError."""
        with self.path.open("rb") as file:
            file.seek(self.offsets[index])
            return _decoder.decode(file.read(self.sizes[index]))


def read_input(path: Path, endpoint: str) -> tuple[BatchInput, list[BatchError]]:
    """The lines of a file, and what is wrong with them. Blocks. Raises OSError."""
    found = BatchInput(path)
    errors: list[BatchError] = []
    seen: dict[str, int] = {}
    number = 0
    with path.open("rb") as file:
        # Editors and spreadsheets put a mark of the encoding before the text.
        start = file.read(len(BOM_UTF8))
        if start.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
            message = "the file is in UTF-16, as some shells of Windows write it: save it as UTF-8"
            return found, [BatchError(code="invalid_encoding", message=message)]
        offset = len(BOM_UTF8) if start == BOM_UTF8 else 0
        file.seek(offset)
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if number > MAX_ALL_LINES:
                message = f"the file has more than {MAX_ALL_LINES:,} lines, empty ones included"
                errors.append(BatchError(code="too_many_requests", message=message))
                break
            if len(line) > MAX_LINE_BYTES:
                message = f"the line has more than {MAX_LINE_BYTES:,} bytes"
                errors.append(BatchError(code="line_too_long", message=message, line=number))
                break
            if line.strip():
                if len(found) == MAX_LINES:
                    message = f"the file has more than {MAX_LINES:,} requests: split it"
                    errors.append(BatchError(code="too_many_requests", message=message))
                    break
                error = _mistake(line, number, endpoint, seen)
                if error is None:
                    found.offsets.append(offset)
                    found.sizes.append(len(line))
                else:
                    errors.append(error)
                    if len(errors) == MAX_ERRORS:
                        break
            offset += len(line)
            if number % _PAUSE_LINES == 0:
                time.sleep(_PAUSE_S)  # lets the server's own thread in
    if not len(found) and not errors:
        errors.append(BatchError(code="empty_file", message="the file has no requests"))
    return found, errors


def _mistake(text: bytes, number: int, endpoint: str, seen: dict[str, int]) -> BatchError | None:
    """What is wrong with a line; if nothing is, its custom_id is seen."""

    def wrong(code: str, message: str, param: str | None = None) -> BatchError:
        return BatchError(code=code, message=message, line=number, param=param)

    try:
        line = _decoder.decode(text)
        stream = bytes(_body_decoder.decode(line.body).stream)
    except (
        msgspec.ValidationError,
        msgspec.DecodeError,
        UnicodeDecodeError,
        RecursionError,
    ) as error:
        wanted = "each line is an object with custom_id, method, url and body"
        return wrong("invalid_json_line", f"{error}: {wanted}")
    if line.url != endpoint:
        message = f"the url is {line.url[:80]!r}, but the batch is for {endpoint!r}"
        return wrong("mismatched_url", message, "url")
    custom_id = str(line.custom_id)  # whoever reads the results may not tell 1 from "1"
    if custom_id in seen:
        message = f"custom_id {custom_id[:80]!r} stands in line {seen[custom_id]} already"
        return wrong("duplicate_custom_id", message, "custom_id")
    if stream not in _NO_STREAM:
        message = "'stream' is for requests that somebody waits for: leave it out"
        return wrong("unsupported_stream", message, "body.stream")
    seen[custom_id] = number
    return None
