"""multipart/form-data (RFC 7578) as a stream: parts are given on as they arrive, never held whole.

FastAPI's own reading of forms keeps uploads in temporary files first; here they go straight to
where they stay, and whatever is too long is refused on the way. The parser that FastAPI uses for it
(python-multipart 0.0.34 was tried) refuses what RFC 2046 allows, such as a preamble or spaces
behind a boundary. Those are read here.
"""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass
from urllib.parse import unquote

from loire.server.web.errors import ApiError

MAX_PARTS = 32
MAX_HEADER_BYTES = 8192
MAX_BOUNDARY = 70
"""Characters, by RFC 2046."""
_PARAMETER = re.compile(r';\s*([^\s=;"]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;"]*))')
_ESCAPED = re.compile(r'\\(["\\])')
_CHARSETS = ("utf-8", "iso-8859-1")
"""Of names that are written by RFC 5987: the two that it asks for."""


@dataclass(frozen=True, slots=True)
class PartBegan:
    """A field begins. filename: only files have one."""

    name: str
    filename: str | None


@dataclass(frozen=True, slots=True)
class PartData:
    """More of the field's value."""

    data: bytes


@dataclass(frozen=True, slots=True)
class PartEnded:
    """The field is complete."""


Event = PartBegan | PartData | PartEnded


async def read_form(content_type: str, chunks: AsyncIterator[bytes]) -> AsyncGenerator[Event, None]:
    """The fields of a body. Raises ApiError (400) if it is no complete form."""
    parser = FormParser(_boundary(content_type))
    async for chunk in chunks:
        for event in parser.feed(chunk):
            yield event
    if not parser.complete:
        raise _wrong("the form ends in the middle: its closing boundary is missing")


class FormParser:
    """Finds the parts in bytes that come in pieces of any size."""

    def __init__(self, boundary: str) -> None:
        self.complete = False
        self._delimiter = b"\r\n--" + boundary.encode()
        # As if a line had ended before: then the first boundary is found like all others.
        self._buffer = bytearray(b"\r\n")
        self._step = self._preamble
        self._num_parts = 0

    def feed(self, data: bytes) -> Iterator[Event]:
        """Take more bytes; the events that they complete. Raises ApiError (400)."""
        self._buffer += data
        while not self.complete:
            step = self._step
            yield from step()
            if self._step == step:
                break  # it needs more bytes

    def _preamble(self) -> Iterator[Event]:
        if self._skip_to_delimiter() is not None:
            self._step = self._after_delimiter
        yield from ()

    def _after_delimiter(self) -> Iterator[Event]:
        if self._buffer.startswith(b"--"):
            self.complete = True
        elif (end := self._buffer.find(b"\r\n")) >= 0:
            if self._buffer[:end].strip(b" \t"):
                raise _wrong("a boundary is followed by other text on its line")
            # The line break stays, so that the end of no headers at all is found, too.
            del self._buffer[:end]
            self._step = self._headers
        elif len(self._buffer) > MAX_HEADER_BYTES:
            raise _wrong("the line of a boundary does not end")
        yield from ()

    def _headers(self) -> Iterator[Event]:
        end = self._buffer.find(b"\r\n\r\n")
        if end > MAX_HEADER_BYTES or (end < 0 and len(self._buffer) > MAX_HEADER_BYTES):
            raise _wrong(f"the headers of a field are longer than {MAX_HEADER_BYTES:,} bytes")
        if end < 0:
            return
        self._num_parts += 1
        if self._num_parts > MAX_PARTS:
            raise _wrong(f"the form has more than {MAX_PARTS} fields")
        began = _read_headers(bytes(self._buffer[:end]))
        del self._buffer[: end + 4]
        yield began
        self._step = self._value

    def _value(self) -> Iterator[Event]:
        value = self._skip_to_delimiter()
        if value is None:
            # What may be the beginning of a delimiter stays.
            certain = len(self._buffer) - len(self._delimiter) + 1
            if certain > 0:
                data = bytes(self._buffer[:certain])
                del self._buffer[:certain]
                yield PartData(data)
            return
        if value:
            yield PartData(value)
        yield PartEnded()
        self._step = self._after_delimiter

    def _skip_to_delimiter(self) -> bytes | None:
        """What stands before the next delimiter, which is skipped; None if there is none yet."""
        start = self._buffer.find(self._delimiter)
        if start < 0:
            return None
        before = bytes(self._buffer[:start])
        del self._buffer[: start + len(self._delimiter)]
        return before


def _boundary(content_type: str) -> str:
    kind, parameters = _read_header(content_type[:MAX_HEADER_BYTES])
    if kind != "multipart/form-data":
        raise _wrong(f"send a form (multipart/form-data), not {content_type[:80] or 'nothing'!r}")
    boundary = parameters.get("boundary", "").rstrip()
    if not boundary or len(boundary) > MAX_BOUNDARY or not boundary.isascii():
        raise _wrong(
            f"the Content-Type of a form needs a boundary of 1 to {MAX_BOUNDARY} ASCII characters"
        )
    return boundary


def _read_headers(block: bytes) -> PartBegan:
    kind, parameters = "", dict[str, str]()
    for line in block.split(b"\r\n"):
        field, _, value = line.partition(b":")
        if field.strip().lower() == b"content-disposition":
            try:
                kind, parameters = _read_header(value.decode())
            except ValueError as error:
                raise _wrong("the Content-Disposition of a field is no UTF-8 text") from error
            break
    if kind != "form-data" or "name" not in parameters:
        raise _wrong("each field needs a header 'Content-Disposition: form-data; name=\"...\"'")
    return PartBegan(parameters["name"], parameters.get("filename"))


def _read_header(text: str) -> tuple[str, dict[str, str]]:
    """What stands before the parameters, in lower case, and these; of two with a name, the first.

    In time that grows with the length: Python's own reading of it (email.message) takes the square,
    and lets the client choose among all codecs.
    """
    kind = text.partition(";")[0]
    found: dict[str, str] = {}
    for name, quoted, plain in _PARAMETER.findall(text, len(kind)):
        value: str | None = _ESCAPED.sub(r"\1", quoted) if quoted else plain.strip()
        name = name.lower()
        if name.endswith("*"):
            name, value = name[:-1], _decoded(value or "")
        if value is not None:
            found.setdefault(name, value)
    return kind.strip().lower(), found


def _decoded(value: str) -> str | None:
    """Of CHARSET'LANGUAGE'TEXT with escapes (RFC 5987); None where it is nothing of that kind."""
    charset, _, rest = value.partition("'")
    _, mark, escaped = rest.partition("'")
    return unquote(escaped, charset) if mark and charset.lower() in _CHARSETS else None


def _wrong(message: str) -> ApiError:
    return ApiError(400, message, code="invalid_form")
