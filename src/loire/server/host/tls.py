"""TLS: the certificate that a server shows, read again when its files change."""

import ssl
from dataclasses import dataclass
from pathlib import Path

from loire.base.errors import ConfigError
from loire.server.storage.file_watch import FileWatch


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """certificate: PEM, with those that lead to the root after it. key: PEM, without a password;
    None if it stands in the certificate's file.
    """

    certificate: Path
    key: Path | None = None


class ServerTls:
    """The TLS of a server. Raises ConfigError if the files cannot be used.

    Attributes:
        context: for its sockets; each connection gets the newest certificate.
        watch: reads the files again when they change.
    """

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._newest = self.context = _context(files)
        self.context.sni_callback = self._choose
        paths = [files.certificate] if files.key is None else [files.certificate, files.key]
        self.watch = FileWatch(paths, self._read_again, "the certificate read before stays")

    def _read_again(self) -> None:
        self._newest = _context(self._files)

    def _choose(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        """Called in each handshake. A context is replaced whole: one whose files were read in the
        middle of a change might have the key of another certificate."""
        connection.context = self._newest


def _context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    where = files.certificate if files.key is None else f"{files.certificate} and {files.key}"
    try:
        context.load_cert_chain(files.certificate, files.key, password=_no_password)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"the certificate and key in {where} cannot be used: {reason}") from error
    return context


def _no_password() -> str:
    """Else OpenSSL would ask for one on the terminal."""
    raise ValueError("the key has a password; give one without")
