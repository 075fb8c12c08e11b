"""The folder beside a result that holds what is done of it: a run that was broken off goes on.

Its files are whole or not there.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from stat import S_IMODE

from torch import Tensor

from loire.base.errors import ConfigError

ASKED = "asked.json"
"""Its first file: what the work is on."""


class WorkFolder:
    """OUT.partial, which is there from begin() on."""

    def __init__(self, out: Path, asked: Mapping[str, object]) -> None:
        """asked: all that the result depends on, in values that JSON has.

        Raises ConfigError if out exists or cannot be made, or the folder holds the work on
        something else.
        """
        if out.exists():
            raise ConfigError(f"{out} exists already; name another, or remove it")
        place = next(folder for folder in out.absolute().parents if folder.exists())
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            raise ConfigError(f"{out} cannot be written: {place} is no folder to write to")
        self.path = out.with_name(out.name + ".partial")
        self._asked = asked
        told = self.path / ASKED
        is_other = told.read_text() != json.dumps(asked) if told.exists() else self._has_tensors()
        if is_other:
            raise ConfigError(
                f"{self.path} holds unfinished work on another model, text or setting; finish "
                f"that, or remove the folder"
            )

    def begin(self) -> None:
        """Nothing is left to be refused for: make the folder. Raises ConfigError if it cannot be
        made."""
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.path / ASKED, json.dumps(self._asked))

    def _has_tensors(self) -> bool:
        return next(self.path.glob("*.safetensors"), None) is not None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises ConfigError where something cannot be written there."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{path} cannot be written: {reason}") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A whole safetensors file, or none, with the permissions that new files have: by itself the
    library lets nobody but the owner read it. Raises ConfigError if it cannot be written."""
    from safetensors.torch import save_file

    new = path.with_suffix(".new")
    with writing(path):
        new.touch()
        permissions = S_IMODE(new.stat().st_mode)
        save_file(dict(tensors), str(new), metadata=dict(metadata))
        new.chmod(permissions)
        new.replace(path)


def write_whole(path: Path, text: str) -> None:
    """A whole file, or none. Raises ConfigError if it cannot be written."""
    new = path.with_suffix(".new")
    with writing(path):
        new.write_text(text, encoding="utf-8")
        new.replace(path)
