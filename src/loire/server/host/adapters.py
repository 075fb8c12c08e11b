"""Adapters that are served from the start: what can be said of them before the model is there, and
how they are loaded once it is."""

import asyncio
from collections import Counter
from functools import partial
from pathlib import Path

from loire.base.errors import ConfigError
from loire.base.lora import MOST_ADAPTERS
from loire.checkpoint.adapter import check_place
from loire.engine.adapters import AdapterNames, check_limits, check_name
from loire.server.host.settings import ServerSettings
from loire.server.serving.served import ServedModel


def check_adapters(settings: ServerSettings) -> None:
    """Raises LoireError for what is wrong whatever the model is: that takes a while to be read."""
    check_limits(settings.options)
    if settings.lora_modules and not settings.options.enable_lora:
        raise ConfigError("--lora-modules names adapters, but --no-enable-lora switches them off")
    if settings.lora_root is not None:
        _folder(settings.lora_root)
    counts = Counter(module.name for module in settings.lora_modules)
    for module in settings.lora_modules:
        check_name(module.name, settings.names)
        if counts[module.name] > 1:
            raise ConfigError(f"--lora-modules has {counts[module.name]} named {module.name!r}")
        check_place(module.path)


async def load_adapters(
    adapters: AdapterNames, served: ServedModel, settings: ServerSettings
) -> None:
    """Those that are served from the start. Raises LoireError if one cannot be."""
    adapters.reserved = frozenset(settings.names)
    adapters.limit(settings.options)
    for module in settings.lora_modules:
        load = partial(adapters.load, pinned=module.pinned)
        await asyncio.to_thread(load, module.name, module.path)
    served.adapters = adapters
    served.max_adapters = settings.options.max_cpu_loras or MOST_ADAPTERS
    if settings.lora_root is not None:
        served.lora_root = _folder(settings.lora_root)


def _folder(path: Path) -> Path:
    """The root itself, wherever links lead. Raises ConfigError if it is no folder."""
    if not path.is_dir():
        raise ConfigError(f"--lora-root {path} is no folder")
    return path.resolve()
