"""Traces of real traffic: when requests came, and how long they were. Never what they said.

Formats: JSON lines with arrival_s, num_prompt and num_output; the CSV of the Azure LLM inference
traces (Patel et al. 2024, Splitwise); the JSON lines of Mooncake (Qin et al. 2024), whose hash_ids
name shared blocks of 512 tokens.
"""

import csv
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from loire.base.errors import ConfigError
from loire.workloads.loads import Load, LoadRequest, plain_tokens

MOONCAKE_BLOCK = 512
MAX_LENGTH = 2**22
"""Tokens; longer ones are taken for a damaged line."""


@dataclass(frozen=True, slots=True)
class TraceEntry:
    """One request of a trace."""

    arrival_s: float
    """Seconds after the first one."""
    num_prompt: int
    num_output: int
    hash_ids: tuple[int, ...] = ()
    """Contents of the prompt's blocks of 512 tokens; equal numbers are equal blocks."""


def read_trace(path: Path) -> list[TraceEntry]:
    """The entries in order of arrival. Raises ConfigError naming the line that cannot be read."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            first = file.readline()
            file.seek(0)
            entries = list(_csv(path, file) if first.startswith("TIMESTAMP") else _json(path, file))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the trace {path} cannot be read: {error}") from error
    if not entries:
        raise ConfigError(f"the trace {path} holds no requests")
    entries.sort(key=lambda entry: entry.arrival_s)
    start = entries[0].arrival_s
    return [
        TraceEntry(e.arrival_s - start, e.num_prompt, e.num_output, e.hash_ids) for e in entries
    ]


def trace_load(
    name: str,
    entries: Sequence[TraceEntry],
    *,
    vocab_size: int,
    max_model_len: int,
    max_output: int,
    speed: float = 1.0,
    seed: int = 0,
) -> Load:
    """Random tokens in the trace's lengths, at its times divided by speed.

    Lengths that do not fit are cut: outputs to max_output, prompts to what the window leaves.
    """
    rng = random.Random(seed)
    requests = []
    for entry in entries:
        output = max(1, min(entry.num_output, max_output))
        length = max(1, min(entry.num_prompt, max_model_len - max_output))
        prompt: list[int] = []
        for hash_id in entry.hash_ids:
            block = random.Random(f"{seed} {hash_id}")
            prompt += plain_tokens(block, MOONCAKE_BLOCK, vocab_size)
        prompt += plain_tokens(rng, length - len(prompt), vocab_size)
        requests.append(LoadRequest(tuple(prompt[:length]), output, entry.arrival_s / speed))
    return Load(name, tuple(requests))


def _csv(path: Path, file: Iterator[str]) -> Iterator[TraceEntry]:
    for number, row in enumerate(csv.DictReader(file), 2):
        try:
            # Seven digits of a second, one more than datetime reads.
            when = datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()
            yield _entry(when, row["ContextTokens"], row["GeneratedTokens"])
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{path}, line {number}, is not of an Azure trace: {error}"
            ) from error


def _json(path: Path, file: Iterator[str]) -> Iterator[TraceEntry]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            if "timestamp" in value:  # Mooncake: milliseconds
                ids = tuple(int(i) for i in value.get("hash_ids", ()))
                yield _entry(
                    value["timestamp"] / 1000, value["input_length"], value["output_length"], ids
                )
            else:
                yield _entry(value["arrival_s"], value["num_prompt"], value["num_output"])
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{path}, line {number}, has not the fields of a trace "
                f"(arrival_s, num_prompt, num_output): {error!r}"
            ) from error


def _entry(
    arrival: float, num_prompt: object, num_output: object, hash_ids: tuple[int, ...] = ()
) -> TraceEntry:
    entry = TraceEntry(float(arrival), int(str(num_prompt)), int(str(num_output)), hash_ids)
    for length in (entry.num_prompt, entry.num_output):
        if not 0 <= length <= MAX_LENGTH:
            raise ValueError(f"a length of {length} tokens")
    return entry
