"""What this process may use of its machine: CPUs and memory, within the limits of its container.

Containers and services are confined by Linux control groups, version 1 or 2. A limit may stand at
the process's own group or at any above it; inside a container its own group is often the topmost
that can be seen.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

UNLIMITED_BYTES = 2**60
"""Version 1 says "no limit" with a number near 2**63."""


@dataclass(frozen=True, slots=True)
class GroupMemory:
    """Memory of a control group, in bytes."""

    limit: int
    used: int
    """Without the file pages that the system drops when memory is needed."""


def usable_cores(root: Path = Path("/")) -> int:
    """CPUs that this process may use: its affinity, within its CPU quota; at least 1.

    A quota is rounded down: threads beyond it would use it up before its period ends, and then all
    of them stand still.
    """
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    return max(1, int(min([float(allowed), *_cpu_quotas(root)])))


def cores_of_ranks(count: int, root: Path = Path("/")) -> list[set[int]] | None:
    """Which CPUs each of so many processes, which compute together, should keep to: those of its
    own memory nodes where these can be divided evenly, else neighbours.

    None where there are fewer CPUs than processes, or where the system does not say.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    allowed = os.sched_getaffinity(0)
    folders = sorted((root / "sys/devices/system/node").glob("node[0-9]*"), key=_node_number)
    nodes = [_cpu_list(folder / "cpulist") & allowed for folder in folders]
    units: list[set[int]] = [node for node in nodes if node]
    if not units or len(units) % count or set().union(*units) != allowed:
        units = [{core} for core in sorted(allowed)]
    each = len(units) // count
    if not each:
        return None
    return [set().union(*units[each * i : each * (i + 1)]) for i in range(count)]


def _node_number(folder: Path) -> int:
    return int(folder.name.removeprefix("node"))


def _cpu_list(file: Path) -> set[int]:
    """Such as 0-3,8: the CPUs that a file of the system lists."""
    found: set[int] = set()
    for part in _text(file).split(","):
        first, _, last = part.partition("-")
        if first.isdecimal():
            found |= set(range(int(first), int(last or first) + 1))
    return found


def group_memory(root: Path = Path("/")) -> list[GroupMemory]:
    """The memory limits that this process is under, none if it is free."""
    found = []
    for folder in _folders(root, ""):
        limit, used = _number(folder / "memory.max"), _number(folder / "memory.current")
        found.append((limit, used, folder, "inactive_file"))
    for folder in _folders(root, "memory"):
        limit = _number(folder / "memory.limit_in_bytes")
        used = _number(folder / "memory.usage_in_bytes")
        found.append((limit, used, folder, "total_inactive_file"))
    return [
        GroupMemory(limit, max(used - _statistic(folder / "memory.stat", pages), 0))
        for limit, used, folder, pages in found
        if limit is not None and used is not None and limit < UNLIMITED_BYTES
    ]


def _cpu_quotas(root: Path) -> Iterator[float]:
    """In CPUs."""
    for folder in _folders(root, ""):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        if quota.isdecimal() and period.isdecimal() and int(period) > 0:
            yield int(quota) / int(period)
    for folder in _folders(root, "cpu"):
        time = _number(folder / "cpu.cfs_quota_us")  # -1 is no quota
        of = _number(folder / "cpu.cfs_period_us")
        if time is not None and of:
            yield time / of


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's group of a controller ("" is version 2), and of those above it."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup"
        if controller:
            # Mounted as "cpu,cpuacct", with a link "cpu"; in some containers by either name only.
            names = (controller, controllers)
            mount = next((mount / name for name in names if (mount / name).exists()), mount)
        path = mount / group.lstrip("/")
        # Seen from inside a container, a group's name may be the one it has outside.
        yield from (folder for folder in (path, *path.parents) if folder.is_relative_to(mount))


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _number(path: Path) -> int | None:
    """A file's number; None if there is no such file, or it says "max" or -1."""
    text = _text(path)
    return int(text) if text.isdecimal() else None


def _statistic(path: Path, name: str) -> int:
    for line in _text(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.isdecimal():
            return int(value)
    return 0
