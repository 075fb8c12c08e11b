"""How people name adapters."""

from dataclasses import dataclass
from pathlib import Path

MOST_ADAPTERS = 4096
"""In memory together."""


@dataclass(frozen=True, slots=True)
class LoRARequest:
    """An adapter that a call is for, as vLLM has it: a name for people, a number, and the adapter's
    directory in PEFT's format.

    What counts is the content of the directory: name and number may be used again for another.
    """

    lora_name: str
    lora_int_id: int = 0
    lora_path: str = ""


@dataclass(frozen=True, slots=True)
class LoRAModule:
    """An adapter that is served under a name. pinned: its weights stay in memory once read."""

    name: str
    path: Path
    pinned: bool = False
