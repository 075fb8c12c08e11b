"""CPUs and memory within a container's limits, in both versions of control groups."""

import os
from pathlib import Path

import pytest

from loire.base.machine import cores_of_ranks, group_memory, usable_cores

MANY = range(64)
V2 = {"proc/self/cgroup": "0::/kubepods/pod1\n"}
V1 = {
    "proc/self/cgroup": "12:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/x\n",
}


@pytest.fixture(autouse=True)
def _a_large_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(MANY), raising=False)


def tree(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_without_limits_affinity_counts(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == 64
    assert group_memory(tmp_path) == []
    unlimited = V2 | {
        "sys/fs/cgroup/kubepods/pod1/cpu.max": "max 100000\n",
        "sys/fs/cgroup/kubepods/pod1/memory.max": "max\n",
    }
    assert usable_cores(tree(tmp_path, unlimited)) == 64
    assert group_memory(tmp_path) == []


@pytest.mark.parametrize(
    ("quota", "cores"), [("400000 100000", 4), ("250000 100000", 2), ("50000 100000", 1)]
)
@pytest.mark.parametrize("folder", ["", "kubepods/", "kubepods/pod1/"])
def test_a_quota_of_version_2(tmp_path: Path, quota: str, cores: int, folder: str) -> None:
    """At the group itself, at one above it, or where a container sees its own as the topmost."""
    assert usable_cores(tree(tmp_path, V2 | {f"sys/fs/cgroup/{folder}cpu.max": quota})) == cores


def test_the_tightest_quota_counts(tmp_path: Path) -> None:
    files = V2 | {
        "sys/fs/cgroup/kubepods/cpu.max": "800000 100000",
        "sys/fs/cgroup/kubepods/pod1/cpu.max": "300000 100000",
    }
    assert usable_cores(tree(tmp_path, files)) == 3


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
@pytest.mark.parametrize("group", ["", "docker/abc/"])
def test_a_quota_of_version_1(tmp_path: Path, mount: str, group: str) -> None:
    files = V1 | {
        f"sys/fs/cgroup/{mount}/{group}cpu.cfs_quota_us": "400000\n",
        f"sys/fs/cgroup/{mount}/{group}cpu.cfs_period_us": "100000\n",
    }
    assert usable_cores(tree(tmp_path, files)) == 4
    (tmp_path / f"sys/fs/cgroup/{mount}/{group}cpu.cfs_quota_us").write_text("-1\n")
    assert usable_cores(tmp_path) == 64


def test_the_affinity_counts_within_a_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 2}, raising=False)
    assert usable_cores(tree(tmp_path, V2 | {"sys/fs/cgroup/cpu.max": "800000 100000"})) == 2


def test_page_cache_is_not_used_memory(tmp_path: Path) -> None:
    pod = "sys/fs/cgroup/kubepods/pod1/"
    files = V2 | {
        f"{pod}memory.max": "1000000000\n",
        f"{pod}memory.current": "900000000\n",
        f"{pod}memory.stat": "anon 100000000\ninactive_file 700000000\nactive_file 5\n",
    }
    [group] = group_memory(tree(tmp_path, files))
    assert (group.limit, group.used) == (10**9, 2 * 10**8)


def test_page_cache_of_version_1(tmp_path: Path) -> None:
    memory = "sys/fs/cgroup/memory/"
    files = V1 | {
        f"{memory}memory.limit_in_bytes": "1000000000\n",
        f"{memory}memory.usage_in_bytes": "900000000\n",
        f"{memory}memory.stat": "inactive_file 1\ntotal_inactive_file 700000000\n",
    }
    [group] = group_memory(tree(tmp_path, files))
    assert (group.limit, group.used) == (10**9, 2 * 10**8)
    (tmp_path / memory / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert group_memory(tmp_path) == []


def test_nonsense_is_no_limit(tmp_path: Path) -> None:
    files = V2 | {"sys/fs/cgroup/cpu.max": "100 0", "sys/fs/cgroup/memory.max": "a lot"}
    assert usable_cores(tree(tmp_path, files)) == 64
    assert group_memory(tmp_path) == []


def test_this_machine_has_some() -> None:
    assert usable_cores() >= 1


def test_processes_keep_to_their_own_memory_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3, 8, 9}, raising=False)
    for number, cpus in ((0, "0-1,8"), (1, "2-3,9"), (10, "")):
        folder = tmp_path / f"sys/devices/system/node/node{number}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(cpus + "\n")
    assert cores_of_ranks(2, tmp_path) == [{0, 1, 8}, {2, 3, 9}]
    assert cores_of_ranks(3, tmp_path) == [{0, 1}, {2, 3}, {8, 9}]
    assert cores_of_ranks(2, tmp_path / "none") == [{0, 1, 2}, {3, 8, 9}]
    assert cores_of_ranks(7, tmp_path) is None
