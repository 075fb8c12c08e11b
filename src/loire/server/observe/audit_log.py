"""The audit log: who called what, when, and how it was answered. No texts, no keys.

A thread writes it, so that a slow disk delays no call. Lines are JSON objects; the file is opened
anew when it was moved away (logrotate).
"""

import json
import logging
import logging.handlers
import queue
from datetime import datetime, timezone
from io import TextIOWrapper
from pathlib import Path

from loire.base.errors import ConfigError
from loire.server.storage.disk import open_private
from loire.server.web.call import Call

MAX_WAITING = 50_000
"""Lines that wait for the disk; beyond them they are lost, and the log says how many."""
MAX_PATH = 200

log = logging.getLogger("loire.server")


class AuditLog:
    """A file of calls. Raises ConfigError if it cannot be opened."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = _AuditFile(path, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"the audit log {path} cannot be opened: {error}") from error
        self._waiting: queue.Queue[logging.LogRecord] = queue.Queue(MAX_WAITING)
        self._listener = logging.handlers.QueueListener(self._waiting, self._file)
        self._listener.start()
        self._num_lost = 0

    def add(self, call: Call) -> None:
        """Note a call that was answered, or whose client is gone."""
        entry = {
            "time": datetime.fromtimestamp(call.start_unix_s, timezone.utc).isoformat(
                timespec="milliseconds"
            ),
            "request_id": call.call_id,
            "tenant": call.tenant or None,
            "address": call.address or None,
            "method": call.method,
            "path": call.path[:MAX_PATH],
            "status": call.status,
            "error": call.error_code,
            **({"unnoted": call.num_unnoted} if call.num_unnoted else {}),
        }
        line = json.dumps(entry)
        record = logging.LogRecord("loire.audit", logging.INFO, "", 0, line, None, None)
        try:
            self._waiting.put_nowait(record)
        except queue.Full:
            self._num_lost += 1
            return
        if self._num_lost:
            log.error("the audit log lost %d lines: its disk was too slow", self._num_lost)
            self._num_lost = 0

    def close(self) -> None:
        """Write what waits, and close the file."""
        self._listener.stop()
        self._file.close()


class _AuditFile(logging.handlers.WatchedFileHandler):
    """Is its owner's alone, and says once when it cannot be written, until it can again."""

    def __init__(self, path: Path, encoding: str) -> None:
        self._failed = False
        super().__init__(path, encoding=encoding)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        self._failing = False
        try:
            super().emit(record)
        except OSError:  # opening it anew, which the base class leaves to its caller
            self.handleError(record)
        self._failed = self._failing

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's name
        """Called where writing raises."""
        self._failing = True
        if not self._failed:
            log.error("the audit log cannot be written, and lines are lost", exc_info=True)

    def _open(self) -> TextIOWrapper:
        return open(self.baseFilename, "a", encoding=self.encoding, opener=open_private)
