"""Versions, CPU features, which kernels are active, and how a model is sampled by default."""

import argparse
import json
import platform
import re
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from loire import __version__
from loire.base.machine import usable_cores
from loire.checkpoint.open import open_checkpoint
from loire.checkpoint.store import loire_home, resolve_model
from loire.cli.columns import aligned
from loire.cli.show import sampling_facts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `loire env`."""
    parser.add_argument(
        "model", nargs="?", help="tell how this model is sampled where requests say nothing of it"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    """Run the verb; the exit status."""
    facts = collect()
    if args.model is not None:
        checkpoint = open_checkpoint(resolve_model(args.model, allow_download=False))
        facts[f"sampling of {args.model}"] = sampling_facts(checkpoint)
    if args.json:
        print(json.dumps(facts))
        return 0
    for section, entries in facts.items():
        print(section)
        assert isinstance(entries, dict)
        for line in aligned(entries):
            print(line)
    return 0


def collect() -> dict[str, object]:
    """Everything that a report of a problem should hold."""
    import torch

    from loire.execution.device import available_memory, select_device
    from loire.kernels.select import available_backends, select_backend

    device = select_device("auto")
    active = select_backend("auto", device, torch.bfloat16)
    return {
        "loire": {
            "version": __version__,
            "home": str(loire_home()),
            "python": platform.python_version(),
            "platform": platform.platform(),
        },
        "machine": {
            "cpu": _cpu_name(),
            "cores usable": usable_cores(),
            "cpu features": _cpu_features(),
            "device": str(device),
            "memory available": f"{available_memory(device) / 1e9:.1f} GB",
        },
        "kernels": {
            "active": active.name,
            **{
                backend.name: ("usable: " if backend.usable else "not usable: ") + backend.why
                for backend in available_backends()
            },
        },
        "packages": _package_versions(),
    }


def _cpu_info(key: str) -> str:
    """A field of Linux's /proc/cpuinfo, empty elsewhere."""
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return ""


def _cpu_name() -> str:
    return _cpu_info("model name") or platform.processor() or platform.machine()


FEATURES = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8",
            "asimd", "asimddp", "bf16", "i8mm", "sve")  # fmt: skip


def _cpu_features() -> list[str]:
    flags = set((_cpu_info("flags") or _cpu_info("Features")).split())
    return [feature for feature in FEATURES if feature in flags] or ["unknown"]


def _package_versions() -> dict[str, str]:
    found = {}
    for requirement in requires("loire") or ():
        name = re.split(r"[^\w.-]", requirement)[0]
        optional = "extra ==" in requirement
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            if not optional:
                found[name] = "not installed"
    return {name: found[name] for name in found if name != "loire"}
