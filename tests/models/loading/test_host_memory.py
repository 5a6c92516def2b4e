"""Free memory as reported by the machine, cgroup v1 and v2, and a container."""

from pathlib import Path

import pytest

from headrace.models.loading.host_memory import free_bytes

MEMINFO = "MemTotal:       16000 kB\nMemFree:         1000 kB\nMemAvailable:    8000 kB\n"
FREE = 8000 * 1024


@pytest.fixture
def root(tmp_path: Path) -> Path:
    put(tmp_path, "proc/meminfo", MEMINFO)
    return tmp_path


def put(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_groups_it_is_what_the_machine_has(root: Path) -> None:
    assert free_bytes(root) == FREE


def test_elsewhere_nothing_is_known(tmp_path: Path) -> None:
    assert free_bytes(tmp_path) is None


def test_the_tightest_group_counts_and_what_it_can_drop_is_free(root: Path) -> None:
    put(root, "proc/self/cgroup", "0::/slice/unit\n")
    put(root, "sys/fs/cgroup/slice/memory.max", "6000000\n")
    put(root, "sys/fs/cgroup/slice/memory.current", "5000000\n")
    put(root, "sys/fs/cgroup/slice/memory.stat", "anon 1\ninactive_file 400000\n")
    put(root, "sys/fs/cgroup/slice/unit/memory.max", "max\n")
    put(root, "sys/fs/cgroup/slice/unit/memory.current", "4000000\n")
    assert free_bytes(root) == 1_400_000


def test_a_container_whose_group_is_the_mount_itself(root: Path) -> None:
    put(root, "proc/self/cgroup", "0::/../../kubepods/pod1\n")
    put(root, "sys/fs/cgroup/memory.max", "3000000\n")
    put(root, "sys/fs/cgroup/memory.current", "1000000\n")
    assert free_bytes(root) == 2_000_000


def test_the_first_version_of_control_groups(root: Path) -> None:
    put(root, "proc/self/cgroup", "9:cpu:/a\n4:memory:/jobs\n0::/\n")
    put(root, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    put(root, "sys/fs/cgroup/memory/memory.usage_in_bytes", "5000000\n")
    put(root, "sys/fs/cgroup/memory/jobs/memory.limit_in_bytes", "2000000\n")
    put(root, "sys/fs/cgroup/memory/jobs/memory.usage_in_bytes", "1900000\n")
    put(root, "sys/fs/cgroup/memory/jobs/memory.stat", "inactive_file 7\ntotal_inactive_file 50000\n")
    assert free_bytes(root) == 150_000


def test_a_group_over_its_limit_leaves_nothing(root: Path) -> None:
    put(root, "proc/self/cgroup", "0::/\n")
    put(root, "sys/fs/cgroup/memory.max", "1000\n")
    put(root, "sys/fs/cgroup/memory.current", "5000\n")
    assert free_bytes(root) == 0
