"""Main memory: the machine's own, and limits of control groups in the files that the kernel writes."""

import psutil
import pytest

from safeflux.doctor.memory import main_memory

MB = 1 << 20
V1_NONE = 9223372036854771712  # the kernel's way to say: no limit
CONTAINER = "0::/\n"
SLICE = "0::/user.slice/app.scope\n"
OLD = "9:name=systemd:/\n4:memory:/jobs/one\n3:cpuset:/\n"
HYBRID = OLD + CONTAINER


def group(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n")


def v2(folder, limit, used=0, cache=0):
    group(folder, memory__max=limit, memory__current=used, memory__stat=f"anon 1\ninactive_file {cache}\nfile 3")


def v1(folder, limit, used=0, cache=0):
    stat = f"inactive_file 1\ntotal_inactive_file {cache}"
    group(folder, memory__limit_in_bytes=limit, memory__usage_in_bytes=used, memory__stat=stat)


def root_of(tmp_path, groups):
    group(tmp_path / "proc" / "self", cgroup=groups.rstrip("\n"))
    return tmp_path / "sys" / "fs" / "cgroup"


def test_without_a_limit_it_is_the_machines(tmp_path):
    machine, memory = psutil.virtual_memory(), main_memory(tmp_path)
    assert memory.total == machine.total
    assert memory.free == pytest.approx(machine.available, rel=0.2)
    assert 0 < memory.free <= memory.total
    assert main_memory().total <= machine.total


@pytest.mark.parametrize(
    ("groups", "lay", "path"),
    [(CONTAINER, v2, ""), (SLICE, v2, "user.slice/app.scope"), (OLD, v1, "memory/jobs/one"), (HYBRID, v1, "memory")],
)
def test_a_limit_counts_and_caches_are_free(tmp_path, groups, lay, path):
    top = root_of(tmp_path, groups)
    lay(top / path, 100 * MB, 70 * MB, 20 * MB)
    memory = main_memory(tmp_path)
    assert (memory.total, memory.free) == (100 * MB, 50 * MB)


def test_the_tightest_of_the_groups_around_counts(tmp_path):
    top = root_of(tmp_path, SLICE)
    v2(top / "user.slice" / "app.scope", "max", 10 * MB)
    v2(top / "user.slice", 90 * MB, 80 * MB)
    v2(top, 80 * MB, 20 * MB)
    memory = main_memory(tmp_path)
    assert (memory.total, memory.free) == (80 * MB, 10 * MB)


def test_more_than_the_limit_in_use_leaves_nothing(tmp_path):
    v2(root_of(tmp_path, CONTAINER), 10 * MB, 11 * MB)
    assert main_memory(tmp_path).free == 0


def test_no_limit_is_none_and_other_groups_do_not_count(tmp_path):
    top = root_of(tmp_path, HYBRID)
    v1(top / "memory" / "jobs" / "one", V1_NONE, 5 * MB)
    v1(top / "memory" / "jobs" / "two", MB, MB)
    assert main_memory(tmp_path).total == psutil.virtual_memory().total
