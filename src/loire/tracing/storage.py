"""Step records in a file: JSON lines, compact, versioned, and checked when read.

    {"format": "loire-trace", "version": 2, "name": "static", "step": [...], "slot": [...]}
    ["S_1", 0]                                         sequence 0 belongs to request S_1
    [0, 12.5, 0.01, ..., [[0, 0, 4, 0, 0, 1]]]         one step: its fields, the slots last

Every header begins another trace, so that one file can hold several policies' runs of one load.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from loire.base.errors import ConfigError
from loire.base.step import SlotRecord, StepRecord

FORMAT = "loire-trace"
VERSION = 2
STEP_FIELDS = (
    "step_id",
    "time_s",
    "compute_s",
    "num_running",
    "num_waiting",
    "blocks_free",
    "blocks_cached",
    "blocks_in_use",
    "kv_live_tokens",
    "kv_fragmented_tokens",
    "kv_reserved_tokens",
    "kv_idle_tokens",
    "num_preemptions",
    "num_prefix_hit_tokens",
    "slots",
)
SLOT_FIELDS = ("slot", "seq_id", "num_prefill_tokens", "num_decode_tokens", "ended", "num_blocks")
MAX_LINE_CHARACTERS = 2**24
MAX_SLOTS = 2**16
"""More rows than any batch has; a larger number in a file is damage."""
MAX_SECONDS = 1e12


@dataclass(frozen=True, slots=True)
class Trace:
    """The step records of one engine, under a name such as its policy."""

    name: str
    records: tuple[StepRecord, ...]


class TraceWriter:
    """Writes one trace step by step, so that a running engine can leave one behind."""

    def __init__(self, file: TextIO, name: str) -> None:
        self._file = file
        self._known: set[int] = set()
        header = {"format": FORMAT, "version": VERSION, "name": name}
        self._line({**header, "step": STEP_FIELDS, "slot": SLOT_FIELDS})

    def write(self, record: StepRecord) -> None:
        """Append one step."""
        slots = []
        for slot in record.slots:
            if slot.seq_id not in self._known:
                self._known.add(slot.seq_id)
                self._line([slot.request_id, slot.seq_id])
            slots.append(
                [
                    slot.slot,
                    slot.seq_id,
                    slot.num_prefill_tokens,
                    slot.num_decode_tokens,
                    int(slot.ended),
                    slot.num_blocks,
                ]
            )
        numbers = [getattr(record, name) for name in STEP_FIELDS[:-1]]
        self._line([*numbers, slots])

    def _line(self, value: object) -> None:
        self._file.write(json.dumps(value, separators=(",", ":")) + "\n")


def write_traces(path: Path, traces: Iterable[Trace]) -> None:
    """Save traces. Raises ConfigError if the file cannot be written."""
    try:
        with path.open("w", encoding="utf-8") as file:
            for trace in traces:
                writer = TraceWriter(file, trace.name)
                for record in trace.records:
                    writer.write(record)
    except OSError as error:
        raise ConfigError(f"the trace cannot be saved as {path}: {error.strerror}") from error


def read_traces(path: Path) -> list[Trace]:
    """The traces of a file. Raises ConfigError, naming the line, if it is not what it should be."""
    try:
        with path.open(encoding="utf-8") as file:
            traces = _Reader(path).read(file)
    except OSError as error:
        raise ConfigError(f"the trace {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a trace: it is not UTF-8 text ({error})") from error
    if not traces:
        raise ConfigError(f"{path} is empty; a trace begins with a header line")
    return traces


class _Reader:
    """Reads line by line; every error names the line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._line_number = 0
        self._request_ids: dict[int, str] = {}

    def read(self, file: TextIO) -> list[Trace]:
        traces: list[Trace] = []
        name: str | None = None
        records: list[StepRecord] = []
        for value in self._values(file):
            if isinstance(value, dict):
                if name is not None:
                    traces.append(Trace(name, tuple(records)))
                name = self._header(value)
                records = []
                self._request_ids.clear()
            elif name is None:
                raise self._error(f'it does not begin with {{"format": "{FORMAT}", ...}}')
            elif not isinstance(value, list):
                raise self._error("a line is a header, a sequence or a step")
            elif len(value) == 2:
                self._sequence(value)
            else:
                records.append(self._step(value, records[-1] if records else None))
        if name is not None:
            traces.append(Trace(name, tuple(records)))
        return traces

    def _values(self, file: TextIO) -> Iterator[object]:
        while line := file.readline(MAX_LINE_CHARACTERS + 1):
            self._line_number += 1
            if len(line) > MAX_LINE_CHARACTERS:
                raise self._error(f"it has more than {MAX_LINE_CHARACTERS:,} characters")
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise self._error(f"it is not JSON ({error})") from error
            yield value

    def _header(self, header: dict[str, object]) -> str:
        if header.get("format") != FORMAT:
            raise self._error(f"the format is {header.get('format')!r}, not {FORMAT!r}")
        if header.get("version") != VERSION:
            raise self._error(
                f"the version is {header.get('version')!r}, but this Loire reads {VERSION}"
            )
        if header.get("step") != list(STEP_FIELDS) or header.get("slot") != list(SLOT_FIELDS):
            raise self._error(f"the fields of steps or slots are not those of version {VERSION}")
        name = header.get("name")
        if not isinstance(name, str):
            raise self._error("the trace has no name")
        return name

    def _sequence(self, value: Sequence[object]) -> None:
        request_id, seq_id = value[0], self._count("seq_id", value[1])
        if not isinstance(request_id, str):
            raise self._error(f"a request id is text, not {request_id!r}")
        if seq_id in self._request_ids:
            raise self._error(f"sequence {seq_id} is introduced twice")
        self._request_ids[seq_id] = request_id

    def _step(self, value: Sequence[object], before: StepRecord | None) -> StepRecord:
        if len(value) != len(STEP_FIELDS):
            raise self._error(f"a step has {len(STEP_FIELDS)} fields, but this has {len(value)}")
        slots = value[-1]
        if not isinstance(slots, list):
            raise self._error("the slots of a step are a list")
        counts = {
            name: self._count(name, number)
            for name, number in zip(STEP_FIELDS[3:-1], value[3:-1], strict=True)
        }
        record = StepRecord(
            step_id=self._count("step_id", value[0]),
            time_s=self._seconds("time_s", value[1]),
            compute_s=self._seconds("compute_s", value[2]),
            slots=tuple(self._slot(slot) for slot in slots),
            **counts,
        )
        if len({slot.slot for slot in record.slots}) != len(record.slots):
            raise self._error("a slot occurs twice in one step")
        if before is not None:
            self._check_order(before, record)
        return record

    def _check_order(self, before: StepRecord, record: StepRecord) -> None:
        if record.step_id <= before.step_id:
            raise self._error(f"step {record.step_id} comes after step {before.step_id}")
        if record.time_s < before.time_s:
            raise self._error(
                f"step {record.step_id} at {record.time_s} s comes after one at {before.time_s} s"
            )
        num_blocks, pool = (
            step.blocks_free + step.blocks_cached + step.blocks_in_use for step in (record, before)
        )
        if num_blocks != pool:
            raise self._error(
                f"free, cached and used blocks sum to {num_blocks}, but to {pool} in the step "
                f"before: a pool does not change its size"
            )

    def _slot(self, value: object) -> SlotRecord:
        if not isinstance(value, list) or len(value) != len(SLOT_FIELDS):
            raise self._error(f"a slot is a list of {len(SLOT_FIELDS)} numbers, not {value!r:.80}")
        slot, seq_id, num_prefill, num_decode, ended, num_blocks = (
            self._count(name, number) for name, number in zip(SLOT_FIELDS, value, strict=True)
        )
        if slot >= MAX_SLOTS or ended > 1:
            raise self._error(
                f"slot {slot} with ended {ended} is not possible: slots are below {MAX_SLOTS}, "
                f"ended is 0 or 1"
            )
        if seq_id not in self._request_ids:
            raise self._error(f"sequence {seq_id} was not introduced")
        request_id = self._request_ids[seq_id]
        return SlotRecord(slot, seq_id, request_id, num_prefill, num_decode, ended == 1, num_blocks)

    def _count(self, name: str, value: object) -> int:
        if type(value) is not int or not 0 <= value < 2**63:
            raise self._error(f"{name} must be a whole number from 0, but is {value!r:.80}")
        return value

    def _seconds(self, name: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._error(f"{name} must be a number of seconds, but is {value!r:.80}")
        if not 0 <= value < MAX_SECONDS:  # NaN is not, either
            raise self._error(f"{name} must be from 0 to {MAX_SECONDS:g} s, but is {value!r:.80}")
        return float(value)

    def _error(self, what: str) -> ConfigError:
        return ConfigError(f"{self._path}, line {self._line_number}: {what}")
