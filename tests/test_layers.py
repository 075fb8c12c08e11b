"""Imports go downwards only (docs/architecture.md), and torch stays where computing happens."""

import ast
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import loire

ROOT = Path(loire.__file__).parent
RAY = ROOT / "fleet/ray"
LAYERS = (
    *("base", "checkpoint", "memory", "scheduling", "text", "planning"),
    *("kernels", "models", "execution", "quantize", "engine", "tracing", "api", "adapt"),
    "workloads",
    "fleet",
    *("server.web", "server.storage", "server.access", "server.observe", "server.serving"),
    ("server.openai", "server.anthropic", "server.batches", "server.operations"),
    *("server.host", "cli"),
)
"""From the ground up. Rooms of one floor, in brackets, do not import one another either."""
FLOORS = {
    room: floor
    for floor, rooms in enumerate(LAYERS)
    for room in ([rooms] if isinstance(rooms, str) else rooms)
}
WITHOUT_TORCH = (
    *("base", "checkpoint", "memory", "scheduling", "text", "planning", "tracing"),
    "fleet",
)


def modules() -> list[tuple[str, Path]]:
    """(room, file) of every module in a room."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        names = dotted(path).split(".")[1:]
        if names not in ([], ["__main__"], ["server"]):
            found.append((room_of(names), path))
    return found


def room_of(names: Sequence[str]) -> str:
    """The room of a module below loire: of server its rooms, of others the first name."""
    return ".".join(names[: 2 if names[0] == "server" else 1])


def imported(path: Path) -> set[str]:
    """Full names of what a file imports, wherever in it the import stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def dotted(path: Path) -> str:
    """The module's name."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def test_every_module_is_in_a_known_layer() -> None:
    assert {room for room, _ in modules()} == set(FLOORS)


def test_layers_import_only_from_below() -> None:
    wrong = []
    for room, path in modules():
        for name in imported(path):
            names = name.split(".")
            other = room_of(names[1:]) if names[0] == "loire" and len(names) > 1 else ""
            if other not in FLOORS or other == room:
                continue
            if FLOORS[other] >= FLOORS[room]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


def test_rooms_without_torch_name_it_nowhere() -> None:
    wrong = [
        str(path.relative_to(ROOT))
        for layer, path in modules()
        if layer in WITHOUT_TORCH and any(name.split(".")[0] == "torch" for name in imported(path))
    ]
    assert wrong == []


def test_ray_is_in_one_folder() -> None:
    wrong = [
        str(path.relative_to(ROOT))
        for _, path in modules()
        if RAY not in path.parents and any(name.split(".")[0] == "ray" for name in imported(path))
    ]
    assert wrong == []


def test_importing_those_rooms_brings_no_torch() -> None:
    # Ray is an extra; what is of it is in one folder.
    names = [
        dotted(path)
        for layer, path in modules()
        if layer in WITHOUT_TORCH and RAY not in path.parents
    ]
    names += ["loire", "loire.cli.main", "loire.engine.ledger", "loire.engine.frontend"]
    program = f"""
import importlib, sys
for name in {names!r}:
    importlib.import_module(name)
    heavy = {{"torch", "transformers"}} & set(sys.modules)
    assert not heavy, f"{{name}} imports {{heavy}}"
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_importing_loire_is_cheap() -> None:
    program = """
import sys
import loire
heavy = {"torch", "numpy", "fastapi", "pydantic", "transformers", "tokenizers", "rich"}
found = heavy & set(sys.modules)
assert not found, found
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
