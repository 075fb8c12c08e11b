"""The log on stderr: as lines for people, or as JSON objects for machines."""

import json
import logging
import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal, TypeAlias

from loire.server.observe.rare_log import RareLines

LogFormat: TypeAlias = Literal["text", "json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogOptions:
    """What the log looks like. prompts: whether it shows what was asked. spans: whether calls are
    also told to OpenTelemetry. audit_file: where each call is noted in a line of its own.
    """

    format: LogFormat = "text"
    prompts: bool = False
    spans: bool = False
    audit_file: Path | None = None


def log_to_stderr(log_format: LogFormat = "text") -> None:
    """From Loire, one line per stage and per call; from uvicorn only what went wrong."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    for name, level in (("loire", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False
    # A line for each connection that says what is no HTTP, or wants another protocol.
    logging.getLogger("uvicorn.error").addFilter(RareLines())


class TextFormatter(logging.Formatter):
    """Time, level and message; then the fields of `extra={"fields": ...}` as name=value."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  logging's name
        """The line, without tracebacks."""
        fields = " ".join(f"{name}={_shown(value)}" for name, value in _fields(record).items())
        line = super().formatMessage(record)
        return f"{line} {fields}" if fields else line


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (UTC), level, logger, message, the fields, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        time = datetime.fromtimestamp(record.created, timezone.utc)
        entry = {
            "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields: dict[str, object] = getattr(record, "fields", {})
    return fields


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value)
