"""No verb, and no process that one starts, runs code that lies in the folder it is started in."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import pytest

from loire.base import python_process
from loire.base.python_process import python_command, python_environment
from loire.cli.main import VERBS
from loire.engine.process import COMMAND

SMALL = ["--kv-cache-memory", "4MB", "--max-model-len", "64", "--num-threads", "1"]
SCRIPT = "import sys; sys.path.pop(0); from loire.__main__ import main; sys.exit(main())"
"""What the installed command does: the first place on its path is the folder of commands."""


def set_traps(folder: Path, *, without: Collection[str] = ()) -> None:
    """A module of every name that anybody might import; each tells in RAN that it ran."""
    names = {name for name in sys.stdlib_module_names if not name.startswith("_")}
    names |= {"torch", "numpy", "tokenizers", "gguf", "huggingface_hub", "jinja2", "fastapi"}
    names |= {"uvicorn", "pydantic", "rich", "psutil", "msgspec", "llguidance", "pip", "loire"}
    names |= {"safetensors", "prometheus_client", "starlette", "anyio", "requests", "yaml"}
    names |= {"sitecustomize", "usercustomize", "readline"}
    code = f"open({str(folder / 'RAN')!r}, 'a').write(__name__ + ' '); raise SystemExit(99)\n"
    for name in names - {*without}:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(code)


def ran(folder: Path) -> str:
    """Which traps ran."""
    told = folder / "RAN"
    return told.read_text() if told.exists() else ""


def arguments(verb: str, model: Path, folder: Path) -> list[str]:
    """A short run of each verb."""
    workload = folder / "workload.json"
    variant = [{"prompt": [5, 6], "out": 2}]
    workload.write_text(json.dumps({"name": "tiny", "variants": [variant, variant]}))
    text = folder / "text.txt"
    text.write_text("to be foretold " * 40)
    return {
        "run": ["Hello", "-m", str(model), "--max-tokens", "2", *SMALL],
        "chat": [str(model), "--max-tokens", "2", *SMALL],
        "serve": [str(model), "--port", "0", "--data-dir", str(folder / "data"), *SMALL],
        "deploy": [str(model)],
        "pull": ["smollm2"],
        "models": [],
        "plan": [str(model)],
        "show": [str(model)],
        "simulate": ["agents", "--sessions", "2"],
        "compare": [
            *[str(model), "--policies", "static,paged", "--requests", "2", "--prompt", "4"],
            *["--output", "2", "--cap", "4", "--max-model-len", "64", "--num-threads", "1"],
        ],
        "trace": [],
        "bench": [str(model), "--workload", str(workload), *SMALL],
        "eval": ["perplexity", str(model), str(text), "--context", "8"],
        "quantize": [
            *[str(model), "--bits", "5", "-o", str(folder / "small"), "--num-threads", "1"],
            *["--calibration", str(text)],
        ],
        "adapt": [
            *[str(model), "--original", str(model), "-o", str(folder / "adapter"), "--rank", "1"],
            *["--texts", "2", "--passes", "1", "--calibration", str(text), "--num-threads", "1"],
        ],
        "launch": ["codex", "--print", "-m", str(model)],
        "adapters": ["--url", "http://127.0.0.1:1"],
        "env": [],
        "keys": ["add", "alice", "--file", str(folder / "keys")],
    }[verb]


ENTRIES = {"command": [sys.executable, "-c", SCRIPT], "module": [sys.executable, "-m", "loire"]}


def taken_by_python_m(folder: Path) -> set[str]:
    """What `python -m` loads before any code of ours runs, from where it is told to."""
    (folder / "shown.py").write_text("import sys; print(*sys.modules)")
    command = [sys.executable, "-m", "shown"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return {"loire", "warnings", *done.stdout.split()}


@pytest.mark.parametrize(
    ("entry", "verb"),
    [
        *(("command", verb) for verb in VERBS),
        *(("module", verb) for verb in ("run", "serve", "env")),
    ],
)
def test_no_verb_runs_code_of_the_working_directory(
    entry: str, verb: str, tiny_llama: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "downloaded"
    folder.mkdir()
    command = ENTRIES[entry]
    set_traps(folder, without=taken_by_python_m(tmp_path) if entry == "module" else ())
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "LOIRE_HOME": str(tmp_path / "home"),
        # `pull` starts pip, which must not find anything.
        "PIP_INDEX_URL": (tmp_path / "no-index").as_uri(),
        "PIP_RETRIES": "0",
    }
    with subprocess.Popen(
        [*command, verb, *arguments(verb, tiny_llama, tmp_path)],
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        if verb == "serve":
            errors = served(process)
        else:
            _, errors = process.communicate("Hello\n/quit\n", timeout=120)
    assert ran(folder) == ""
    expected = 1 if verb in ("pull", "adapters") else 0
    assert process.returncode == expected, errors
    if verb == "pull":
        assert "could not be fetched; pip says" in errors


def served(process: "subprocess.Popen[str]") -> str:
    """What a server says that is stopped once it has loaded its model; it has ended then."""
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if re.search(r"loaded|ready|died", line):
            process.send_signal(signal.SIGTERM)
    process.wait(60)
    return "".join(said)


PROGRAM = "import loire.engine.worker, sys, json; print(json.dumps(sys.path))"


def path_of(command: Sequence[str], folder: Path, **variables: str) -> list[str]:
    """sys.path of a module `shown` that a command runs in a folder."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={**python_environment(), **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return [str(entry) for entry in json.loads(done.stdout)]


def test_a_module_is_found_where_pythonpath_says(tmp_path: Path) -> None:
    library, folder = tmp_path / "library", tmp_path / "downloaded"
    library.mkdir()
    folder.mkdir()
    set_traps(folder)
    (library / "shown.py").write_text("import json, sys, loire; print(json.dumps(sys.path))")
    path = path_of(python_command("shown"), folder, PYTHONPATH=str(library))
    assert path[0] == str(library)
    assert not {"", str(folder), str(Path(python_process.__file__).parent)} & {*path}
    assert ran(folder) == ""


def test_the_working_directory_counts_where_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "shown.py").write_text("import json, sys; print(json.dumps(sys.path))")
    path = path_of(python_command("shown"), tmp_path, PYTHONPATH=str(tmp_path))
    assert path[0] == str(tmp_path)


def test_an_empty_entry_of_pythonpath_names_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{os.pathsep}/somewhere{os.pathsep}")
    assert python_environment()["PYTHONPATH"] == "/somewhere"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["/bin", str(tmp_path), "/lib"])
    python_process.leave_working_directory()
    assert sys.path == ["/bin", "/lib"]


def test_a_child_takes_the_package_of_its_parent(tmp_path: Path) -> None:
    """Where `loire` came from the working directory, as in a checkout without installation."""
    (tmp_path / "loire").symlink_to(Path(python_process.__file__).parents[1])
    (tmp_path / "library").mkdir()
    shown = "import json, loire.base.units; print(json.dumps([loire.base.units.__file__]))"
    (tmp_path / "library" / "shown.py").write_text(shown)
    [file] = path_of(
        [sys.executable, str(tmp_path / "loire/base/python_process.py"), "shown"],
        tmp_path,
        PYTHONPATH=str(tmp_path / "library"),
    )
    assert file == str(tmp_path / "loire/base/units.py")


def test_the_engine_is_started_that_way() -> None:
    assert list(COMMAND) == python_command("loire.engine.worker")


@pytest.mark.parametrize("name", ["python3.10", "python3.11", "python3.12", "python3.13"])
def test_every_python_runs_a_module_that_way(name: str, tmp_path: Path) -> None:
    probe = [name, "-c", ""]
    if shutil.which(name) is None or subprocess.run(probe, capture_output=True).returncode != 0:
        pytest.skip(f"{name} is not here")
    set_traps(tmp_path)
    library = tmp_path / "library"
    library.mkdir()
    (library / "shown.py").write_text("import json, sys, loire.base; print(json.dumps(sys.path))")
    command = [name, *python_command("shown")[1:]]
    path = path_of(command, tmp_path, PYTHONPATH=str(library))
    assert str(tmp_path) not in path
    assert ran(tmp_path) == ""
