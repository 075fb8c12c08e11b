"""Where keys come from: files, which are watched, the environment and the command line."""

import logging
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loire.base.errors import ConfigError
from loire.server.access.keys import ApiKey, KeyRing, parse_key
from loire.server.access.rates import NO_LIMITS, Limits
from loire.server.storage.file_watch import FileWatch

KEY_VARIABLE = "LOIRE_API_KEY"
ADMIN_VARIABLE = "LOIRE_ADMIN_KEY"
"""Environment variables with keys, separated by commas."""

log = logging.getLogger("loire.server")


@dataclass(frozen=True, slots=True)
class KeySources:
    """Where keys come from.

    key_files, admin_key_files: text files, one key a line; empty lines and lines that begin with #
    are skipped. keys: as given on the command line.
    """

    key_files: Sequence[Path] = ()
    admin_key_files: Sequence[Path] = ()
    keys: Sequence[str] = ()

    def read(
        self,
        environment: Mapping[str, str] = os.environ,
        limits: Limits = NO_LIMITS,
        *,
        may_be_empty: bool = False,
    ) -> tuple[ApiKey, ...]:
        """All keys. Raises ConfigError, which names the place and never repeats a key.

        limits: of keys that say nothing about theirs. may_be_empty: files without a key are no
        mistake.
        """
        sources = (
            *(_lines(path, may_be_empty, admin=False) for path in self.key_files),
            *(_lines(path, may_be_empty, admin=True) for path in self.admin_key_files),
            _variable(environment, KEY_VARIABLE, admin=False),
            _variable(environment, ADMIN_VARIABLE, admin=True),
            [("--api-key", text, False) for text in self.keys],
        )
        return tuple(
            parse_key(text, place=place, admin=admin, limits=limits)
            for source in sources
            for place, text, admin in source
        )

    def watch(
        self,
        ring: KeyRing,
        environment: Mapping[str, str] = os.environ,
        limits: Limits = NO_LIMITS,
    ) -> FileWatch | None:
        """What keeps a ring as the files say; None without files."""

        files = (*self.key_files, *self.admin_key_files)
        # A pipe, such as the shell's <(command), has nothing more to say.
        odd = [path for path in files if not path.is_file()]
        if odd:
            log.warning("no regular file, so that key files are not watched: %s", odd[0])
        if odd or not files:
            return None

        def read_again() -> None:
            before, now = ring.keys, self.read(environment, limits, may_be_empty=True)
            if now == before:
                return
            ring.replace(now)
            self.warn_of_readers()
            old, new = {key.name for key in before}, {key.name for key in now}
            log.info(
                "%d API keys now; added: %s; revoked: %s",
                len(now),
                _few(new - old),
                _few(old - new),
            )
            if not now:
                log.warning("no API key is left: nobody is let in")

        return FileWatch(files, read_again, "the keys read before stay")

    def warn_of_readers(self) -> None:
        """Say in the log which files others can read."""
        for path in (*self.key_files, *self.admin_key_files):
            try:
                mode = path.stat().st_mode
            except OSError:  # replaced since it was read: it will be read again
                continue
            if mode & (stat.S_IRGRP | stat.S_IROTH):
                log.warning("others can read the key file %s: run chmod 600 %s", path, path)


def _few(names: set[str]) -> str:
    """Names for a line of the log."""
    shown = ", ".join(sorted(names)[:10]) or "none"
    return f"{shown} and {len(names) - 10} more" if len(names) > 10 else shown


def _lines(path: Path, may_be_empty: bool, *, admin: bool) -> Iterator[tuple[str, str, bool]]:
    try:
        with path.open(encoding="utf-8-sig") as file:  # some editors begin it with a mark
            mode = os.fstat(file.fileno()).st_mode
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the key file {path} cannot be read: {error}") from error
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            f"others than its owner can write to the key file {path}, and so let themselves in: "
            f"run chmod 600 {path}"
        )
    count = 0
    for number, line in enumerate(text.splitlines(), 1):
        content = line.strip()
        if content and not content.startswith("#"):
            count += 1
            yield f"{path}, line {number}", content, admin
    if not count and not may_be_empty:
        raise ConfigError(f"the key file {path} has no keys: write one a line, as NAME:KEY")


def _variable(
    environment: Mapping[str, str], name: str, *, admin: bool
) -> Iterator[tuple[str, str, bool]]:
    for text in environment.get(name, "").split(","):
        if text.strip():
            yield name, text.strip(), admin
